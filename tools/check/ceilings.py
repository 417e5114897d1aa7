"""The two ceilings of a process, as records of its section.

Owns their sizes on a CPU. Must not time (prism_gen/bench/timing.py does).
"""

from __future__ import annotations

from prism_gen.bench.timing import ceilings
from prism_gen.verify.report import Report

# Sizes for a CPU, where the ceilings only have to exist for the figures that quote them.
CPU_MATMUL, CPU_COPY_BYTES = 256, 1 << 20


def report_ceilings(report: Report) -> dict[str, float]:
    """Takes the two ceilings of this process; returns {"tflops": ..., "tbps": ...}."""
    on_gpu = report.device.type == "cuda"
    rows = ceilings(report.device) if on_gpu else ceilings(report.device, size=CPU_MATMUL, copy_bytes=CPU_COPY_BYTES)
    found: dict[str, float] = {}
    for row in rows:
        report.add("ceiling", row.pop("what"), show=True, **row)
        found.update({key: row[key] for key in ("tflops", "tbps") if key in row})
    return found
