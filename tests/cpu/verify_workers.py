"""Workers that go wrong in one way each: what the tests of `verify` give to its supervisor, by name.

Owns no judgement. Must import torch only where a worker needs it: each runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from prism_gen.verify.job import BEGIN, END, Job
from prism_gen.verify.report import current_path


def _say(job: Job, what: str, case: str, **figures: Any) -> None:
    with job.records.open("a") as file:
        file.write(json.dumps({"section": "verify", "what": what, "case": case, "ok": None, **figures}) + "\n")


def _three_kernels(job: Job, second: Any) -> None:
    for name in ("first", "second", "third"):
        if name in job.done:
            continue
        _say(job, name, BEGIN)
        current_path(job.records).write_text(f"verify {name} q17k17")
        if name == "second":
            second()
        _say(job, name, "q17k17", ok=True, aspects={"answer": True})
        _say(job, name, END, seconds=0.1)


def hangs(job: Job) -> None:
    """In the second of three kernels."""
    _three_kernels(job, lambda: time.sleep(60))


def crashes(job: Job) -> None:
    """In the second of three kernels."""
    _three_kernels(job, lambda: os._exit(139))


def never_starts(job: Job) -> None:
    """Ends before anything is begun."""
    raise SystemExit(5)


def wrong_attend(job: Job) -> None:
    """The real worker, with an attend that is 2 % too large."""
    from dataclasses import replace

    from prism_gen.verify import worker
    from prism_gen.verify.kernels import Kernel
    from prism_gen.verify.reference_kernels import reference_kernel

    def scaled(spec: Any) -> Kernel:
        kernel = reference_kernel(spec)

        def launch(*given: Any) -> None:
            kernel.launch(*given)
            given[3].mul_(1.02)

        return replace(kernel, launch=launch) if spec.family == "attend" else kernel

    worker.reference_kernel = scaled
    worker.work(job)
