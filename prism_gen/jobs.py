"""How many compiles a machine can run at once.

Owns that number. Must not compile.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PEAK_BYTES_PER_JOB = 4 << 30  # one attend kernel peaks at 3.9 GiB in nvcc 13.0


def default_jobs() -> int:
    """Compiles that this machine can run at once: bounded by cores and by free memory."""
    cores = len(os.sched_getaffinity(0))
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # /proc counts reclaimable page cache as available
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        free_bytes = int(meminfo.split("MemAvailable:")[1].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max" where the cgroup sets no limit
        free_bytes = min(free_bytes, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return max(1, min(cores, free_bytes // PEAK_BYTES_PER_JOB))
