"""`prism_gen bench` on a CPU, with the reference as kernels: what it takes, writes, draws and refuses."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from prism_gen.bench import command
from prism_gen.bench.figures import OURS, read_run
from prism_gen.bench.workloads import calls_for
from prism_gen.errors import UnsupportedError
from prism_gen.model import SelectionSpec
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize
from prism_gen.verify.kernels import Kernel
from prism_gen.verify.reference_kernels import reference_kernel

CPU = torch.device("cpu")


def measure(bundle, **options):
    nothing = dict.fromkeys(("peers", "prism_src", "qkv", "device"))
    defaults = {"lengths": (128, 200), "densities": (0.5,), **nothing}
    return command.measure(bundle, backend="reference", console=Console(width=100), **{**defaults, **options})


def test_every_stage_is_taken_written_drawn_and_equal_to_itself(make_bundle, tmp_path, capsys):
    run = measure(make_bundle())
    ours = [figure for figure in run.timed() if figure.who == OURS]
    assert [(figure.stage, figure.seqlen) for figure in ours if figure.label == "bf16-d64-b64x64"] == [
        (stage, seqlen) for seqlen in (128, 200) for stage in ("attend", "selection", "layer")
    ]
    assert {figure.label for figure in ours} == {"bf16-d64-b64x64", "bf16-d64-b128x64"}
    assert all(len(figure.ms) == 14 and figure.median_ms > 0 and 0 < figure.density <= 1 for figure in ours)
    attend = next(figure for figure in ours if figure.stage == "attend" and figure.density == 1.0)
    assert attend.flops == 4 * 64 * 9 * 128 * 128 / 2  # half of the square: causal
    skipped = {figure.who: figure.skipped for figure in run.figures if figure.skipped}
    assert skipped["cudnn-dense"] == "needs a GPU"
    assert "flash_attn_interface" in skipped["fa3-dense"]
    command.report(run, json=tmp_path / "run.json", plots=tmp_path / "plots", console=Console(width=100))
    assert read_run(tmp_path / "run.json") == run
    drawn = {path.name for path in (tmp_path / "plots").glob("*.png")}
    assert drawn >= {"roofline.png", "ceiling.png"}
    assert "not everywhere: fa4-dense" in capsys.readouterr().out
    assert command.guard(tmp_path / "run.json", run, 0.05, Console(width=100))


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


def test_a_family_without_a_workload_is_said():
    kernel = Kernel(KernelSpec(family="decode", arch="sm90", problem=None, schedule=None), lambda *given: None)
    with pytest.raises(UnsupportedError, match="no workload for kernels of the family 'decode'"):
        calls_for([kernel], 200, 0.5, 1, (2, 1), CPU)
