"""Energy of a kernel that runs for seconds: joules per TFLOP, watts and the clock, read from the driver's own counters.

Owns how power is read. On an H200 the power limit, not the tensor cores, sets the speed of every kernel that runs for
more than a few milliseconds, so a figure in TFLOP/s says little without it. Must not know kernels.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SECONDS = 1.5  # of running: the energy counter ticks every 20 to 100 ms
CLOCK_SM = 1  # nvmlClockType_t: NVML_CLOCK_SM
CALLS_BETWEEN_READINGS = 4


class PowerMeter:
    """NVML's energy counter and clock of one device, by its PCI address. Raises: OSError where NVML is missing."""

    def __init__(self, device: torch.device) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._check(self._nvml.nvmlInit_v2())
        self._handle = ctypes.c_void_p()
        properties: Any = torch.cuda.get_device_properties(device)
        address = (
            f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0".encode()
        )
        self._check(self._nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(self._handle)))

    def joules(self) -> float:
        """Energy since the driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        self._check(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules)))
        return millijoules.value / 1e3

    def clock_mhz(self) -> int:
        """The SM clock now."""
        clock = ctypes.c_uint()
        self._check(self._nvml.nvmlDeviceGetClockInfo(self._handle, CLOCK_SM, ctypes.byref(clock)))
        return clock.value

    @staticmethod
    def _check(status: int) -> None:
        if status != 0:
            raise OSError(f"NVML answered {status}")


def sustained(
    fn: Callable[[], object], flops: float, meter: PowerMeter, *, seconds: float = SECONDS
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
