"""Energy of a kernel that runs for seconds: joules per TFLOP, watts and the clock, read from the driver's own counters.

Owns how power is read. On an H200 the power limit, not the tensor cores, sets the speed of every kernel that runs for
more than a few milliseconds, so a figure in TFLOP/s says little without it. Must not know kernels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from prism_gen.runtime.nvml import Nvml, NvmlDevice

SECONDS = 1.5  # of running: the energy counter ticks every 20 to 100 ms
CALLS_BETWEEN_READINGS = 4


def power_meter(device: torch.device) -> NvmlDevice:
    """NVML's counters of a torch device, found by its PCI address. Raises: OSError where NVML is missing."""
    properties: Any = torch.cuda.get_device_properties(device)
    address = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return Nvml().device(address)


def sustained(
    fn: Callable[[], object], flops: float, meter: NvmlDevice, *, seconds: float = SECONDS
) -> dict[str, float]:
    """Runs fn() for `seconds` on the current CUDA stream, draining the queue every CALLS_BETWEEN_READINGS calls.

    fn: some milliseconds long, so that draining costs nothing. flops: of one call. Returns sustained_tflops, watts,
    joules_per_tflop and clock_mhz (the median of readings).
    """
    fn()
    torch.cuda.synchronize()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    calls, clocks = 0, []
    joules, began = meter.joules(), time.perf_counter()
    start.record()
    while time.perf_counter() - began < seconds:
        fn()
        calls += 1
        if calls % CALLS_BETWEEN_READINGS == 0:
            clocks.append(meter.clock_mhz())  # while launches are queued
            torch.cuda.synchronize()
    stop.record()
    torch.cuda.synchronize()
    elapsed, joules = time.perf_counter() - began, meter.joules() - joules
    teraflops = flops * calls / 1e12
    return {
        "sustained_tflops": round(teraflops / (start.elapsed_time(stop) / 1e3), 1),
        "watts": round(joules / elapsed, 1),
        "joules_per_tflop": round(joules / teraflops, 3),
        "clock_mhz": statistics.median(clocks) if clocks else float("nan"),
    }
