"""`prism_gen bench` on a CPU, with the reference as kernels: what it takes, writes, draws and refuses."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
import torch
from rich.console import Console

from prism_gen.bench import command, run, timing
from prism_gen.bench.figures import OURS, read_run, write_run
from prism_gen.bench.peers import Peer
from prism_gen.bench.workloads import calls_for
from prism_gen.errors import UnsupportedError
from prism_gen.model import SelectionSpec
from prism_gen.runtime.load import load_bundle
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize
from prism_gen.verify import oracle
from prism_gen.verify.kernels import Kernel
from prism_gen.verify.oracle import token_mask
from prism_gen.verify.reference_kernels import reference_kernel

CPU = torch.device("cpu")


def measure(bundle, **options):
    nothing = dict.fromkeys(("peers", "prism_src", "flashprefill_lib", "qkv", "device"))
    defaults = {"lengths": (128, 200), "densities": (0.5,), **nothing}
    return command.measure(bundle, backend="reference", console=Console(width=100), **{**defaults, **options})


def test_every_stage_is_taken_written_drawn_and_equal_to_itself(make_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "LONG_MS", math.inf)  # on a busy machine plain torch is slow, and gets fewer runs
    found = measure(make_bundle())
    ours = [figure for figure in found.timed() if figure.who == OURS]
    assert [(f.stage, f.seqlen, f.density == 1.0) for f in ours if f.label == "bf16-d64-b64x64"] == [
        ("attend", 128, True),  # the mask holds every block, so that dense attention is the same figure
        ("selection", 128, True),
        ("layer", 128, True),
        ("attend", 200, False),
        ("attend", 200, True),
        ("selection", 200, False),
        ("layer", 200, False),
    ]
    assert {figure.label for figure in ours} == {"bf16-d64-b64x64", "bf16-d64-b128x64"}
    assert all(len(figure.ms) == 14 and figure.median_ms > 0 and 0 < figure.density <= 1 for figure in ours)
    attend = next(figure for figure in ours if figure.stage == "attend" and figure.density == 1.0)
    assert attend.flops == 4 * 64 * 9 * 128 * 128 / 2  # half of the square: causal
    skipped = {figure.who: figure.skipped for figure in found.figures if figure.skipped}
    assert skipped["cudnn-dense"] == "needs a GPU"
    assert "flash_attn_interface" in skipped["fa3-dense"]
    command.report(found, json=tmp_path / "run.json", plots=tmp_path / "plots", console=Console(width=100))
    assert read_run(tmp_path / "run.json") == found
    drawn = {path.name for path in (tmp_path / "plots").glob("*.png")}
    assert drawn >= {"roofline.png", "ceiling.png"}
    assert "not everywhere: fa4-dense" in capsys.readouterr().out
    assert command.guard(tmp_path / "run.json", found, 0.05, Console(width=100))


@pytest.mark.parametrize(
    "selection",
    [
        SelectionSpec(block_sizes=((64, 64),), estimator="subblock"),
        SelectionSpec(block_sizes=((64, 64),), share="group"),
    ],
    ids=["subblock", "group"],
)
def test_models_of_other_selections_are_taken(make_bundle, make_model, selection):
    model = make_model(selection=selection, num_q_heads=4, num_kv_heads=2)
    bundle = load_bundle(make_bundle(specs=specialize(model, ["sm90"])))
    bundle = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, models=(model,)))
    found = run.run_bench(bundle, run.Plan("reference", CPU, (300,), (0.5,)), lambda _figure: None)
    attend, dense, selected, layer = found.timed()
    assert [f.stage for f in (attend, dense, selected, layer)] == ["attend", "attend", "selection", "layer"]
    assert dense.density == 1.0
    # 5 blocks of 64 a side, 4 heads of 128: 15 visible pairs, of whole blocks in two bands or of 8 x 8 sub-blocks.
    dims = 128 * 8 * 8 if selection.estimator == "subblock" else 64 + 96
    assert selected.flops == 300 * (4 + 2) * 128 + 2 * dims * 15 * 4


def exact(problem):
    """A peer's call: attention on the lists, in fp64."""
    mask = token_mask(problem.head_mask[None], problem.grid)
    return lambda: oracle.attend(problem.q, problem.k, problem.v, mask, problem.softmax_scale)[0]


def broken(problem):
    raise ValueError("no such tile\nand a trace of fifty lines")


def test_a_peer_that_fails_or_is_wrong_is_skipped_and_the_rest_is_timed(make_bundle, monkeypatch):
    def attend_peers(*_given):
        rows = [
            Peer("exact", True, lambda _: "", exact),
            Peer("wrong", True, lambda _: "", lambda problem: lambda: exact(problem)() * 1.1),
            Peer("broken", True, lambda _: "", broken),
            Peer("zeros", False, lambda _: "", lambda problem: lambda: torch.zeros_like(problem.q)),
        ]
        return {peer.name: peer for peer in rows}

    for module in (command, run):
        monkeypatch.setattr(module, "attend_peers", attend_peers)
    figures = {figure.who: figure for figure in measure(make_bundle(), lengths=(200,)).figures}
    assert figures["exact"].ms
    assert 0 < figures["exact"].distance < 1e-2
    assert "differs from ours by 0.1" in figures["wrong"].skipped
    assert figures["broken"].skipped == "failed: ValueError: no such tile"
    assert "differs from ours by 1" in figures["zeros"].skipped  # a dense peer is compared on every block


def test_a_comparison_of_runs_with_other_peers_says_so(make_bundle, tmp_path, capsys):
    found = measure(make_bundle(), lengths=(200,))
    peer = msgspec.structs.replace(found.figures[-1], who="fa4-sparse")
    write_run(tmp_path / "old.json", msgspec.structs.replace(found, figures=(*found.figures, peer)))
    assert command.guard(tmp_path / "old.json", found, 0.05, Console(width=100))
    assert "not in both runs: fa4-sparse" in capsys.readouterr().out
    write_run(tmp_path / "same.json", found)
    assert command.guard(tmp_path / "same.json", found, 0.05, Console(width=100))
    assert "not in both runs" not in capsys.readouterr().out


def test_an_interrupted_run_reports_what_it_took(make_bundle, tmp_path, capsys):
    taken = []

    def interrupt_after_three(figure):
        taken.append(figure)
        if len(taken) == 3:
            raise KeyboardInterrupt

    plan = run.Plan("reference", CPU, (128, 200), (0.5,), peers=())
    found = run.run_bench(load_bundle(make_bundle()), plan, interrupt_after_three)
    assert list(found.figures) == taken
    assert not found.complete
    command.report(found, json=tmp_path / "run.json", plots=None, console=Console(width=100))
    assert read_run(tmp_path / "run.json") == found
    assert "interrupted" in capsys.readouterr().out


def test_a_peer_that_does_not_exist_is_named(make_bundle):
    with pytest.raises(UnsupportedError, match="no peer 'fa9'"):
        measure(make_bundle(), peers=("fa9",))


@pytest.mark.parametrize("family", ["pool", "rotate", "select", "subpool", "score", "attend"])
def test_a_workload_launches_every_candidate_on_the_same_inputs(make_model, family):
    fine = {"selection": SelectionSpec(block_sizes=((128, 128),), estimator="subblock")}
    model = make_model(**(fine if family in ("subpool", "score") else {"fused_rope": True}))
    spec = next(spec for spec in specialize(model, ["sm90"]) if spec.family == family)
    seen: list[tuple[object, ...]] = []

    def recorded(spec: KernelSpec) -> Kernel:
        kernel = reference_kernel(spec)

        def launch(*given: object) -> None:
            seen.append(given)
            kernel.launch(*given)

        return Kernel(spec, launch, kernel.scratch_floats, kernel.alone)

    calls = calls_for([recorded(spec), recorded(spec)], 200, 0.5, 2, (model.num_q_heads, model.num_kv_heads), CPU)
    for call in calls:
        call()
    first, second = seen
    assert first[0] is second[0]  # q, or its means
    assert isinstance(first[0], torch.Tensor)
    assert first[0].shape[0] == 2


def test_the_device_asked_for_becomes_the_current_one(make_bundle, monkeypatch):
    steps = []
    monkeypatch.setattr(command, "cuda_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", steps.append)
    monkeypatch.setattr(command, "run_bench", lambda _bundle, plan, _show: steps.append(plan.device))
    options = {
        "lengths": (128,),
        "densities": (0.5,),
        "peers": (),
        **dict.fromkeys(("prism_src", "flashprefill_lib", "qkv")),
    }
    command.measure(make_bundle(), backend="cuda", device="cuda:1", console=Console(), **options)
    assert steps == [torch.device("cuda", 1)] * 2


def test_a_family_without_a_workload_is_said():
    kernel = Kernel(KernelSpec(family="decode", arch="sm90", problem=None, schedule=None), lambda *given: None)
    with pytest.raises(UnsupportedError, match="no workload for kernels of the family 'decode'"):
        calls_for([kernel], 200, 0.5, 1, (2, 1), CPU)
