"""NVIDIA's management library: the driver's version, and the counters of one device.

Owns its calls, through ctypes: no package has to be installed. Must not time.
"""

from __future__ import annotations

import ctypes
from typing import Any

CLOCK_SM = 1  # nvmlClockType_t: NVML_CLOCK_SM
VERSION_CHARS = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


class Nvml:
    """The library, initialised. Raises: OSError where it is missing or refuses."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: Any) -> None:
        """One function by its name. Raises: OSError with the status where it is not 0."""
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} answered {status}")

    def driver_version(self) -> str:
        """Such as 580.65.06."""
        text = ctypes.create_string_buffer(VERSION_CHARS)
        self.call("nvmlSystemGetDriverVersion", text, VERSION_CHARS)
        return text.value.decode()

    def device(self, pci_address: str) -> NvmlDevice:
        """The device at a PCI address, such as 00000000:0f:00.0."""
        handle = ctypes.c_void_p()
        self.call("nvmlDeviceGetHandleByPciBusId_v2", pci_address.encode(), ctypes.byref(handle))
        return NvmlDevice(self, handle)


class NvmlDevice:
    """One device's counters."""

    def __init__(self, nvml: Nvml, handle: ctypes.c_void_p) -> None:
        self._nvml, self._handle = nvml, handle

    def joules(self) -> float:
        """Energy since the driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        self._nvml.call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    def clock_mhz(self) -> int:
        """The SM clock now."""
        clock = ctypes.c_uint()
        self._nvml.call("nvmlDeviceGetClockInfo", self._handle, CLOCK_SM, ctypes.byref(clock))
        return clock.value
