"""Timing on one GPU: medians with their spread, and measured ceilings.

Owns how a number is taken. Must not know kernels, masks or peers.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

MIN_RUNS = 7  # a figure counts as the median of at least seven runs (benchmarks/results/README.md)
REST_S = 0.1  # seconds, several hundred times a launch; 0.15 gave the same figures on an H200
# Before a run that is timed in turn with others the GPU is kept busy for longer than the host takes to launch it: in a
# model launches queue up too, and a peer that takes .3 ms of Python would seem twice as slow at 8K tokens.
HEAD_START, MOST_HEAD_START_S = 1.5, 5e-3
CYCLES_PER_S = 2e9  # of the SM clock, or a little less: then the head start is longer
# The first .03 s of launches of .13 ms in a process were up to a third slower on an H200 than those after (its clocks
# rise, we think), and a comparison of two processes took that for a regression.
RAMP_S = 0.2
# Where the power limit sets the clock, it goes by the last tenths of a second, whoever ran in them: of two calls that
# are launched one by one in turn, the one that needs more energy slows the other down. Behind so many seconds of the
# same call each has the clock that it would have in a chain of its own.
SETTLE_S = 0.2
LONG_MS = 100.0  # from which on a call gets half the runs: it hardly varies, and 14 of half a second take long
CEILING_MATMUL = 8192  # rows and columns of the matrix product that stands for the tensor-core ceiling
CEILING_COPY_BYTES = 4 << 30  # far beyond the 60 MB L2, so that the copy is HBM bandwidth


_Key = TypeVar("_Key")  # of several calls that are timed in turn


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, fastest and slowest of `runs` runs, each the mean of `calls` calls."""

    median_ms: float
    min_ms: float
    max_ms: float
    runs: int
    calls: int

    @classmethod
    def of(cls, times_ms: Sequence[float], calls: int = 1) -> Timing:
        """Of the runs' own times."""
        return cls(statistics.median(times_ms), min(times_ms), max(times_ms), len(times_ms), calls)

    def record(self) -> dict[str, float | int]:
        """The fields of a JSON line; spread is (max - min) / median."""
        spread = (self.max_ms - self.min_ms) / self.median_ms if self.median_ms > 0 else 0.0
        return {
            "ms": round(self.median_ms, 5),
            "min_ms": round(self.min_ms, 5),
            "max_ms": round(self.max_ms, 5),
            "spread": round(spread, 4),
            "runs": self.runs,
            "calls": self.calls,
        }


def _run_cuda(fn: Callable[[], object], calls: int, head_start_s: float = 0.0) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    if head_start_s > 0:
        torch.cuda._sleep(round(head_start_s * CYCLES_PER_S))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(calls):
        fn()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / calls


def _run_host(fn: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    return (time.perf_counter() - start) * 1e3 / calls


def measure(
    fn: Callable[[], object],
    device: torch.device,
    *,
    runs: int = MIN_RUNS,
    warm: int = 3,
    calls: int = 1,
    rest_s: float = 0.0,
) -> Timing:
    """Median time of fn() on `device`: CUDA events on the current stream, the host clock on a CPU.

    runs: timed runs, at least MIN_RUNS. warm: untimed calls before. calls: calls inside one pair of events; 1 is what
    the peers' published figures use and holds the launch gap, more shows back-to-back throughput. rest_s: seconds
    without work before each timed run; with REST_S a long launch shows what it costs before the power limit acts.
    Raises: ValueError for fewer runs than MIN_RUNS.
    """
    if runs < MIN_RUNS:
        raise ValueError(f"runs is {runs}, a figure needs at least {MIN_RUNS}")
    once = _run_cuda if device.type == "cuda" else _run_host
    for _ in range(warm):
        fn()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    times = []
    for _ in range(runs):
        if rest_s > 0:
            time.sleep(rest_s)
        times.append(once(fn, calls))
    return Timing.of(times, calls)


def measure_each(
    calls: Mapping[_Key, Callable[[], object]],
    device: torch.device,
    *,
    runs: int = MIN_RUNS,
    warm: int = 2,
    settle_s: float = 0.0,
) -> dict[_Key, tuple[float, ...]]:
    """Milliseconds of every run of several calls in turn, so that a clock that wanders slows all of them alike.

    On a GPU the time from the first kernel's start to the last one's end, launches queued (HEAD_START), after RAMP_S of
    the same. runs: of each call, half as many but at least MIN_RUNS where it takes LONG_MS or more. settle_s: seconds
    of the same call before each of its runs (SETTLE_S).
    """
    timed = {name: _Timed(call, device, warm) for name, call in calls.items()}
    began = time.perf_counter()
    while device.type == "cuda" and time.perf_counter() - began < RAMP_S:
        for call in timed.values():
            call.run()
    taken: dict[_Key, list[float]] = {name: [] for name in calls}
    for i in range(runs):
        for name, call in timed.items():
            if i < max(MIN_RUNS, runs // 2) or not call.is_long:
                taken[name].append(call.run(settle_s))
    return {name: tuple(round(ms, 5) for ms in times) for name, times in taken.items()}


class _Timed:
    """A call that was warmed up, with the head start that it needs. is_long: whether it takes LONG_MS or more."""

    def __init__(self, call: Callable[[], object], device: torch.device, warm: int) -> None:
        self._call, self._on_gpu = call, device.type == "cuda"
        for _ in range(warm):
            call()
        if self._on_gpu:
            torch.cuda.synchronize(device)
        host_s = _run_host(call, 1) / 1e3
        if self._on_gpu:
            torch.cuda.synchronize(device)
        self._head_start_s = min(HEAD_START * host_s, MOST_HEAD_START_S)
        self._ms = self.run()
        self.is_long = self._ms >= LONG_MS

    def run(self, settle_s: float = 0.0) -> float:
        """Milliseconds of one run, on a GPU behind so many seconds of the same call."""
        if self._on_gpu and settle_s > 0:
            for _ in range(math.ceil(settle_s * 1e3 / self._ms)):
                self._call()
        return _run_cuda(self._call, 1, self._head_start_s) if self._on_gpu else _run_host(self._call, 1)


def host_cost_us(fn: Callable[[], object], device: torch.device, *, calls: int = 200) -> float:
    """Host microseconds that one call takes to return, median of MIN_RUNS runs of `calls` calls each.

    The device's queue is drained before each run; `calls` stays below the launch queue's depth (1024).
    """
    times = []
    for _ in range(MIN_RUNS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(_run_host(fn, calls))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return statistics.median(times) * 1e3


def captured(fn: Callable[[], object]) -> Callable[[], None]:
    """fn() as a CUDA graph: the replay function. fn is called three times on a side stream first."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


def _time_product(device: torch.device, size: int) -> Timing:
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return measure(lambda: a @ b, device, runs=15, warm=5)


def _time_copy(device: torch.device, copy_bytes: int) -> Timing:
    source = torch.randint(0, 1 << 30, (copy_bytes // 4,), device=device, dtype=torch.int32)
    target = torch.empty_like(source)
    return measure(lambda: target.copy_(source), device, runs=9)


def ceilings(
    device: torch.device, *, size: int = CEILING_MATMUL, copy_bytes: int = CEILING_COPY_BYTES
) -> list[dict[str, Any]]:
    """The two ceilings of this process: bf16 matrix product (TFLOP/s) and device copy (TB/s, read + write)."""
    product, copy = _time_product(device, size), _time_copy(device, copy_bytes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return [
        {"what": f"matmul{size}_bf16", "tflops": round(2 * size**3 / product.median_ms / 1e9, 1), **product.record()},
        {"what": "copy", "tbps": round(2 * copy_bytes / copy.median_ms / 1e9, 3), **copy.record()},
    ]
