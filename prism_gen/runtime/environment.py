"""What a figure stands on: GPU, driver, CUDA, torch, Python, commit and command.

Owns that record. Must not time.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from prism_gen.provenance import commit_of
from prism_gen.runtime.nvml import Nvml

UNKNOWN = "unknown"


def environment(device: torch.device, *, commit: str | None = None) -> dict[str, Any]:
    """The record of this process on `device`.

    commit: for a copy of the tree without .git; None reads the checkout's, "unknown" where there is none.
    """
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    driver = UNKNOWN if gpu else "none"
    if gpu:
        with contextlib.suppress(OSError):
            driver = Nvml().driver_version()
    return {
        "gpu": gpu.name if gpu else platform.processor() or "cpu",
        "sms": gpu.multi_processor_count if gpu else 0,
        "driver": driver,
        "cuda": torch.version.cuda or "none",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "commit": commit or commit_of(Path(__file__).resolve().parents[2]) or UNKNOWN,
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
    }
