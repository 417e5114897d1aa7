"""The guard against regressions: what fails a comparison, and what noise, another chip's day or a peer must not."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from prism_gen.bench.compare import compare, parse_share
from prism_gen.bench.figures import (
    BENCH_SCHEMA_VERSION,
    OURS,
    BenchRun,
    Ceilings,
    Figure,
    fastest_dense,
    read_run,
    write_run,
)
from prism_gen.errors import ConfigError


def figure(ms: float = 1.0, *, stage="attend", who=OURS, density=0.1, spread=0.003, seed=0, seqlen=8192, **fields):
    draw = random.Random(seed)
    runs = tuple(ms * draw.gauss(1, spread) for _ in range(14))
    base = {"label": "bf16-d128-b128x128", "heads": (32, 8), "flops": 1e12, "bytes_moved": 1e9}
    return Figure(stage=stage, who=who, seqlen=seqlen, density=density, ms=runs, **{**base, **fields})


def run_of(*figures: Figure, tflops: float = 700.0, tbps: float = 4.0, gpu: str = "NVIDIA H200") -> BenchRun:
    ceilings = Ceilings(tflops=tflops, tbps=tbps)
    return BenchRun(
        schema_version=BENCH_SCHEMA_VERSION, machine={"gpu": gpu}, ceilings=ceilings, figures=tuple(figures)
    )


def verdicts(old: BenchRun, new: BenchRun, fail_over: float = 0.05) -> list[bool]:
    return [change.failed for change in compare(old, new, fail_over)]


@pytest.mark.parametrize(("ms", "failed"), [(1.0, False), (1.04, False), (1.07, True), (0.9, False)])
def test_a_median_beyond_the_limit_fails(ms, failed):
    assert verdicts(run_of(figure(1.0)), run_of(figure(ms, seed=1))) == [failed]


@pytest.mark.parametrize("seed", range(10))
def test_spread_that_covers_the_difference_does_not_fail(seed):
    assert verdicts(run_of(figure(1.0, spread=0.15)), run_of(figure(1.06, spread=0.15, seed=seed))) == [False]


def test_a_disturbed_process_whose_fastest_run_is_as_fast_does_not_fail():
    """Selection at 8K in two processes on an H200, the second one disturbed."""
    before = (0.039, 0.04, 0.039, 0.039, 0.04, 0.039, 0.04, 0.039, 0.041, 0.04, 0.039, 0.039, 0.041, 0.04)
    disturbed = (0.083, 0.043, 0.094, 0.07, 0.062, 0.081, 0.073, 0.077, 0.097, 0.061, 0.099, 0.084, 0.086, 0.083)
    old = replace(figure(stage="selection"), ms=before)
    assert verdicts(run_of(old), run_of(replace(old, ms=disturbed))) == [False]
    assert verdicts(run_of(old), run_of(replace(old, ms=tuple(2 * ms for ms in before)))) == [True]


def test_a_chip_that_is_slower_as_a_whole_is_no_regression():
    old = run_of(figure(1.0), figure(1.0, stage="selection"))
    slow_chip = run_of(figure(1.1, seed=1), figure(1.1, stage="selection", seed=1), tflops=630.0, tbps=3.6)
    assert verdicts(old, slow_chip) == [False, False]
    slow_memory = run_of(figure(1.1, seed=1), figure(1.1, stage="selection", seed=1), tbps=3.6)
    assert verdicts(old, slow_memory) == [True, False]


def test_peers_and_what_only_one_run_has_are_left_out():
    old = run_of(figure(1.0), figure(1.0, who="cudnn-dense", density=1.0), figure(1.0, seqlen=32768))
    new = run_of(figure(1.0), figure(9.0, who="cudnn-dense", density=1.0), figure(9.0, seqlen=65536))
    assert verdicts(old, new) == [False]


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(ConfigError, match="NVIDIA H100"):
        compare(run_of(figure()), run_of(figure(), gpu="NVIDIA H100"), 0.05)
    with pytest.raises(ConfigError, match="no figure in common"):
        compare(run_of(figure()), run_of(figure(seqlen=1)), 0.05)


def test_a_run_survives_its_file_and_a_damaged_one_is_named(tmp_path):
    run = run_of(figure(), figure(who="fa2-dense", density=1.0))
    write_run(tmp_path / "run.json", run)
    assert read_run(tmp_path / "run.json") == run
    (tmp_path / "torn.json").write_bytes((tmp_path / "run.json").read_bytes()[:50])
    with pytest.raises(ConfigError, match=r"torn\.json holds no bench run"):
        read_run(tmp_path / "torn.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_run(tmp_path / "absent.json")


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("0%", 0.0), ("12.5%", 0.125)])
def test_shares_are_read(text, share):
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "x", "-1%", "100%", ""])
def test_other_shares_are_refused(text):
    with pytest.raises(ConfigError, match="--fail-over"):
        parse_share(text)


def test_the_fastest_dense_attention_is_of_the_same_length_and_heads():
    figures = [
        figure(3.0, who="cudnn-dense", density=1.0),
        figure(2.0, who="flash2-dense", density=1.0),
        figure(1.0, who="cudnn-dense", density=1.0, seqlen=4096),
        figure(1.0, who="cudnn-dense", density=1.0, heads=(8, 8)),
        figure(0.5),
    ]
    assert fastest_dense(figures, 8192, (32, 8)) is figures[1]
    assert fastest_dense(figures, 16384, (32, 8)) is None
