"""`prism_gen tune` on a simulated stand: what wins, what is rejected, and what an interruption costs."""

from __future__ import annotations

import io
import multiprocessing
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prism_gen.errors import ConfigError, DeviceError
from prism_gen.model import SelectionSpec
from prism_gen.runtime import load_bundle
from prism_gen.tune.command import tune
from prism_gen.tune.execute import Plan, run_local
from prism_gen.tune.journal import Ended, Journal, Judged, Machine, Timed
from prism_gen.tune.prepare import make_units, shard
from prism_gen.tune.ray_executor import pack_bundle, run_ray, unpack_bundle
from prism_gen.tune.unit import Memory, Unit, tune_unit, tuned_kernel
from prism_gen.tuning_table import Shape, TuningTable, read_table
from tests.cpu.simulated_stand import MakeSimulated, Simulated, no_stand

SHAPES = (Shape(seqlen=4096, density=0.1), Shape(seqlen=8192, density=0.5), Shape(seqlen=1024, density=1.0))
MACHINE = Machine(gpu="simulated", driver="1", cuda="13.0")


@pytest.fixture
def units(model) -> list[Unit]:
    """pool, select and two attends of the small model."""
    return make_units([model], ["sm90"], SHAPES, bundle=None)


@pytest.fixture
def attend(units) -> Unit:
    return units[-1]


def slower(units: list[Unit], winner: int = 4) -> dict[str, float]:
    """Candidate number `winner` takes 1.0, the default 1.2, every other 1.1 or more."""
    times = {}
    for unit in units:
        for i, spec in enumerate(unit.candidates):
            times[spec.key] = 1.0 if i == winner else 1.2 if i == 0 else 1.1 + i / 100
    return times


def run(
    folder: Path,
    units: list[Unit],
    execute: Any = run_local,
    stall_s: float = 60.0,
    winner: int = 4,
    **stand: Any,
) -> TuningTable:
    plan = Plan(
        units=tuple(units),
        make_stand=MakeSimulated(slower(units, winner), **stand),
        bundle=None,
        journal=folder / "t.journal.jsonl",
        machine=MACHINE,
        deadline=float("inf"),
        stall_s=stall_s,
    )
    return tune(plan, execute, out=folder / "t.json", toolchain={"nvcc": "13.0"}, console=Console())


def test_the_fastest_right_candidate_of_every_kernel_wins_and_the_file_says_by_how_much(units, tmp_path):
    table = run(tmp_path, units)
    assert table == read_table(tmp_path / "t.json")
    assert (table.gpu, table.toolchain, table.heads) == ("simulated", {"nvcc": "13.0"}, (9, 3))
    assert len(table.kernels) == len(units) == 4
    for row, unit in zip(table.kernels, units, strict=True):
        assert row.best == unit.candidates[4].key
        assert row.speedup == pytest.approx(1.2, rel=0.01)
        assert row.complete
        assert row.speedups.keys() == {shape.label for shape in unit.shapes}
    attend = table.kernels[-1]
    default = attend.candidates[0]
    assert all(len(measured.ms) == 7 for measured in default.measured)
    assert {measured.stage for measured in default.measured} >= {"round 1", "final 1", "final 3"}
    assert [crossover.label for crossover in table.crossovers] == ["bf16-d64-b64x64", "bf16-d64-b128x64"]
    assert table.crossovers[0].wins_from(0.5) == 4096


def test_wrong_dying_and_hanging_candidates_are_rejected_with_their_reason(attend, tmp_path):
    wrong, dies, hangs, refused = (spec.key for spec in attend.candidates[1:5])
    unit = Unit(
        attend.default, attend.candidates[:7], attend.templates, SHAPES, attend.heads, {refused: "40 bytes of spills"}
    )
    table = run(
        tmp_path,
        [unit],
        stall_s=3.0,
        wrong=frozenset([wrong]),
        dies=frozenset([dies]),
        hangs=frozenset([hangs]),
    )
    candidates = {candidate.key: candidate for candidate in table.kernels[0].candidates}
    assert candidates[wrong].outcome == "wrong"
    assert "error 1 is above" in candidates[wrong].reason
    assert (candidates[dies].outcome, candidates[hangs].outcome) == ("crashed", "crashed")
    assert "status 139" in candidates[dies].reason
    assert "stood still" in candidates[hangs].reason
    assert (candidates[refused].outcome, candidates[refused].reason) == ("refused", "40 bytes of spills")
    assert not any(candidates[key].measured for key in (wrong, dies, hangs, refused))
    assert table.kernels[0].best == attend.candidates[5].key  # the fastest of the others


def test_the_families_of_the_other_estimator_race_through_the_same_tables(make_model, tmp_path):
    model = make_model(selection=SelectionSpec(estimator="subblock"))
    units = make_units([model], ["sm90"], SHAPES, bundle=None)
    table = run(tmp_path, units, winner=2)
    assert [row.family for row in table.kernels] == ["subpool", "score", "attend"]
    for row, unit in zip(table.kernels, units, strict=True):
        assert row.best == unit.candidates[2].key
        assert len(row.speedups) == len({(shape.seqlen, shape.batch) for shape in SHAPES})


def test_where_the_default_is_wrong_it_stays_and_nothing_is_raced(attend, tmp_path):
    table = run(tmp_path, [attend], wrong=frozenset([attend.default.key]))
    assert table.kernels[0].best == attend.default.key
    assert not any(candidate.measured for candidate in table.kernels[0].candidates)


def test_an_interrupted_unit_goes_on_where_it_was_and_ends_the_same(attend, tmp_path):
    whole, parts = Journal(tmp_path / "whole.jsonl"), Journal(tmp_path / "parts.jsonl")
    stand = Simulated(slower([attend]))
    tune_unit(attend, stand, Memory(attend, []), whole.add, lambda: False)
    steps = []
    for _ in range(200):
        pieces = Simulated(slower([attend]))
        budget = iter([False, False, False])
        lines = list(parts.lines())
        if Memory(attend, lines).ended:
            break
        tune_unit(attend, pieces, Memory(attend, lines), parts.add, lambda budget=budget: next(budget, True))
        assert len(pieces.steps) <= 3
        steps += pieces.steps
    assert steps == stand.steps
    assert tuned_kernel(attend, list(parts.lines())) == tuned_kernel(attend, list(whole.lines()))


def test_ctrl_c_ends_the_process_too_and_the_same_command_goes_on(attend, tmp_path, capsys):
    def interrupted(plan, on_line):
        taken = []

        def stop_after_ten(line):
            taken.append(line)
            if len(taken) == 10:
                raise KeyboardInterrupt
            on_line(line)

        run_local(plan, stop_after_ten)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [attend], execute=interrupted)
    assert not multiprocessing.active_children()
    assert "the same command goes on" in capsys.readouterr().out.replace("\n", " ")
    assert not (tmp_path / "t.json").exists()
    kept = len(list(Journal(tmp_path / "t.journal.jsonl").lines()))
    assert kept >= 10
    resumed = run(tmp_path, [attend])
    (tmp_path / "whole").mkdir()
    assert resumed.kernels == run(tmp_path / "whole", [attend]).kernels


def test_a_budget_that_ends_keeps_the_default_and_says_so(attend, tmp_path):
    budget = iter([False] * 20)
    journal = Journal(tmp_path / "j.jsonl")
    tune_unit(attend, Simulated(slower([attend])), Memory(attend, []), journal.add, lambda: next(budget, True))
    row = tuned_kernel(attend, list(journal.lines()))
    assert (row.best, row.complete, row.speedup) == (attend.default.key, False, 1.0)


def test_a_second_run_measures_nothing_and_gives_the_same_table(units, tmp_path):
    first = run(tmp_path, units[:1])
    lines = len(list(Journal(tmp_path / "t.journal.jsonl").lines()))
    second = run(tmp_path, units[:1])
    assert second.kernels == first.kernels
    assert len(list(Journal(tmp_path / "t.journal.jsonl").lines())) == lines + 1  # the machine


def test_lines_of_another_gpu_or_template_are_ignored_with_a_warning(attend, tmp_path, capsys):
    journal = Journal(tmp_path / "t.journal.jsonl")
    journal.add(Machine(gpu="other", driver="1", cuda="13.0"))
    journal.add(Judged(unit=attend.name, key=attend.default.key, outcome="wrong"))
    journal.add(MACHINE)
    journal.add(Judged(unit=attend.name.replace(".", ".0"), key=attend.default.key, outcome="wrong"))
    table = run(tmp_path, [attend])
    assert "2 lines of" in capsys.readouterr().out.replace("\n", " ")
    assert table.kernels[0].candidates[0].outcome == "right"


def test_a_half_written_line_is_left_out(attend, tmp_path):
    run(tmp_path, [attend])
    path = tmp_path / "t.journal.jsonl"
    data = path.read_bytes()
    last_timing = data.rindex(b'{"type":"timed"')
    path.write_bytes(data[: last_timing + 40])
    lines = list(Journal(path).lines())
    assert not any(isinstance(line, Ended) for line in lines)
    assert run(tmp_path, [attend]).kernels[0].complete


def test_a_stand_that_does_not_open_is_an_error_and_not_a_loop(attend, tmp_path):
    plan = Plan((attend,), no_stand, None, tmp_path / "j.jsonl", MACHINE, time.time() + 60, 30.0)
    Journal(plan.journal).add(MACHINE)
    with pytest.raises(DeviceError, match="before its first step"):
        run_local(plan, lambda line: None)


def test_shards_are_whole_and_apart(units):
    parts = [shard(units, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(unit.name for part in parts for unit in part) == sorted(unit.name for unit in units)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for text in ("0/3", "4/3", "x", "1"):
        with pytest.raises(ConfigError, match="--shard"):
            shard(units, text)


def test_a_bundle_travels_to_a_worker_and_writes_nothing_outside_its_folder(make_bundle, tmp_path):
    bundle, there = make_bundle(), tmp_path / "there"
    assert unpack_bundle(pack_bundle(bundle), there) == there
    assert load_bundle(there).manifest == load_bundle(bundle).manifest
    assert [path.read_bytes() for path in sorted(there.glob("lib/*"))] == [
        path.read_bytes() for path in sorted(bundle.glob("lib/*"))
    ]
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("../outside", b"")
    unpack_bundle(foreign.getvalue(), tmp_path / "foreign")
    assert not (tmp_path / "outside").exists()


@pytest.mark.slow
def test_ray_gives_the_table_of_a_local_run_and_outlives_a_crash(units, tmp_path):
    ray = pytest.importorskip("ray")
    dies = frozenset([units[0].candidates[2].key])
    (tmp_path / "ray").mkdir()
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        over_ray = run(tmp_path / "ray", units, lambda plan, bar: run_ray(plan, bar, num_gpus=0), dies=dies)
    finally:
        ray.shutdown()
    local = run(tmp_path, units, dies=dies)
    for ours, theirs in zip(over_ray.kernels, local.kernels, strict=True):
        assert (ours.default, ours.best, ours.speedups) == (theirs.default, theirs.best, theirs.speedups)
    assert over_ray.kernels[0].candidates[2].outcome == "crashed"


def test_a_journal_holds_every_timing_that_a_race_is_reckoned_by(attend, tmp_path):
    run(tmp_path, [attend])
    timed = [line for line in Journal(tmp_path / "t.journal.jsonl").lines() if isinstance(line, Timed)]
    assert sum(len(line.ms) for line in timed) + len(attend.candidates) == attend.steps
