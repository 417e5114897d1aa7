"""Timing: medians with their spread, JSON lines, and the environment of a figure."""

from __future__ import annotations

import io
import json
import statistics
import time
from functools import partial

import pytest
import torch

from prism_gen.bench import timing
from prism_gen.bench.timing import MIN_RUNS, Timing, ceilings, host_cost_us, measure
from prism_gen.runtime.environment import environment
from prism_gen.verify.report import emit

CPU = torch.device("cpu")


class _IdleMachine:
    """The clock of a machine with nothing else to do, in place of timing's `time`: sleep ends a microsecond late."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def perf_counter(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds + 1e-6


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> _IdleMachine:
    machine = _IdleMachine()
    monkeypatch.setattr(timing, "time", machine)
    return machine


def test_measure_is_the_median_of_single_calls_after_warm_up(idle: _IdleMachine) -> None:
    calls = []

    def sleep_longer_each_time() -> None:
        calls.append(1)
        idle.sleep(0.001 * len(calls))

    taken = measure(sleep_longer_each_time, CPU, runs=7, warm=2, calls=1)
    assert len(calls) == 9
    assert taken.runs == 7
    assert taken.min_ms <= taken.median_ms <= taken.max_ms
    assert 6.0 <= taken.median_ms < 9.0  # calls 3 to 9 sleep 3 to 9 ms
    assert taken.min_ms >= 3.0


def test_measure_divides_by_the_calls_of_a_run(idle: _IdleMachine) -> None:
    taken = measure(lambda: idle.sleep(0.001), CPU, calls=5)
    assert 1.0 <= taken.median_ms < 3.0


def test_measure_refuses_fewer_runs_than_a_figure_needs() -> None:
    with pytest.raises(ValueError, match=f"at least {MIN_RUNS}"):
        measure(lambda: None, CPU, runs=3)


def test_calls_in_turn_are_timed_alike_and_long_ones_half_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG_MS", 5.0)
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = {"short": partial(call, "short", 0.0), "long": partial(call, "long", 0.006)}
    taken = timing.measure_each(calls, CPU, runs=20, warm=2)
    assert {name: len(times) for name, times in taken.items()} == {"short": 20, "long": 10}
    assert min(taken["long"]) >= 6.0 > statistics.median(taken["short"])
    assert order[-30:] == ["short", "long"] * 10 + ["short"] * 10


def test_on_a_gpu_the_launch_is_hidden_behind_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU sleeps for longer than the host needs, before the first event: in this order."""
    steps: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            steps.append("event")

        def synchronize(self) -> None: ...

        def elapsed_time(self, _other: object) -> float:
            return 1.5

    monkeypatch.setattr(timing, "RAMP_S", 0.01)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: steps.append(f"sleep {cycles >= 2e9 * 0.002}"))

    def call() -> None:
        steps.append("call")
        time.sleep(0.002)

    taken = timing.measure_each({"a": call}, torch.device("cuda"), runs=7)
    assert taken == {"a": (1.5,) * 7}
    assert steps.count("sleep True") >= 7 + 1 + 3  # timed, the one that says whether it is long, 10 ms of 2 to ramp up
    assert steps[-4:] == ["sleep True", "event", "call", "event"]
    timing.measure_each({"a": call}, torch.device("cuda"), runs=7, settle_s=0.004)  # of calls of 1.5 ms
    assert steps[-7:] == ["call"] * 3 + ["sleep True", "event", "call", "event"]


def test_host_cost_is_in_microseconds() -> None:
    assert 1000.0 <= host_cost_us(lambda: time.sleep(0.001), CPU, calls=3) < 3000.0


def test_record_gives_the_spread() -> None:
    record = Timing(median_ms=2.0, min_ms=1.0, max_ms=4.0, runs=7, calls=1).record()
    assert record == {"ms": 2.0, "min_ms": 1.0, "max_ms": 4.0, "spread": 1.5, "runs": 7, "calls": 1}


def test_ceilings_name_their_unit() -> None:
    product, copy = ceilings(CPU, size=64, copy_bytes=1 << 16)
    assert product["what"] == "matmul64_bf16"
    assert product["tflops"] >= 0
    assert copy["what"] == "copy"
    assert copy["tbps"] > 0


def test_emit_writes_one_parsable_line_even_for_nan(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    emit({"a": 1.5, "bad": float("nan"), "far": float("-inf")}, out=out)
    assert json.loads(out.getvalue()) == {"a": 1.5, "bad": "nan", "far": "-inf"}
    assert capsys.readouterr().out == out.getvalue()
    emit({"a": 1}, out=out, echo=False)
    assert capsys.readouterr().out == ""
    assert len(out.getvalue().splitlines()) == 2


def test_environment_says_what_a_figure_stands_on() -> None:
    record = environment(CPU, commit="abc")
    assert record["commit"] == "abc"
    assert record["torch"] == torch.__version__
    assert {"gpu", "driver", "cuda", "python", "command", "date"} <= record.keys()
