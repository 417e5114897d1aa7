"""compute-sanitizer over a few small cases: the section `sanitizer`, and what runs under it.

Owns the tools, their command and the reading of their verdict. Must not judge numerics (the cases judge themselves).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prism_gen.verify.cases import SANITIZER_CASES
from prism_gen.verify.kernels import Kernel, Launch
from prism_gen.verify.numerics import check_attend
from prism_gen.verify.pooling import check_chunks, check_pool
from prism_gen.verify.report import Findings, Report
from prism_gen.verify.rotation import check_rotate
from prism_gen.verify.select_cases import SANITIZER_SELECT_CASES
from prism_gen.verify.selection import check_select
from prism_gen.verify.subblock import check_score, check_subpool
from prism_gen.verify.subblock_cases import SANITIZER_SUB_BLOCK_CASES
from tools.check.options import SANITIZED, Options

TOOLS = ("memcheck", "racecheck")
ERROR_EXIT = 86  # --error-exitcode: unlike any status of Python or of the check itself
MAX_LINES = 16  # of the tool's output, kept in a failure's record: the first finding with its place
ENDED_WELL = 0.9  # of the section's time is given to the tools together, the rest to the report
SUMMARY = re.compile(r"(ERROR SUMMARY|RACECHECK SUMMARY): (\d+)")
# In order, and reported: racecheck does not follow a lane that arrives for its warp behind a __syncwarp. All lanes of
# attend's consumers read a step, lane 0 gives its slot back, and where the ring comes round the loader writes it again.
IN_ORDER = re.compile(r"Read access at \S*::WarpGroup<.*::wait_step\(.*\n=+ +and Write access at \S*::Loader<.*::run\(")


def exact_copy(view: Tensor, device: torch.device) -> Tensor:
    """`view` on `device` with the same strides, in an allocation that ends with its last element."""
    if view.numel() == 0:
        return view.to(device, copy=True)
    extent = 1 + sum((n - 1) * stride for n, stride in zip(view.shape, view.stride(), strict=True))
    return view.as_strided((extent,), (1,)).to(device, copy=True).as_strided(view.shape, view.stride(), 0)


def offloaded(kernel: Kernel, device: torch.device) -> Kernel:
    """The kernel for CPU tensors: copies to `device`, launches, copies back.

    So torch launches nothing under the tool, which then sees our kernels alone, and a step outside a tensor leaves its
    allocation.
    """

    def on_device(launch: Launch, *arguments: object) -> None:
        copies = [(x, exact_copy(x, device)) if isinstance(x, Tensor) else (x, x) for x in arguments]
        launch(*(copy for _, copy in copies))
        for original, copy in copies:
            if isinstance(original, Tensor) and isinstance(copy, Tensor):
                original.copy_(copy)

    sub_blocks = None if kernel.sub_blocks is None else partial(on_device, kernel.sub_blocks)
    return replace(kernel, launch=partial(on_device, kernel.launch), alone=None, sub_blocks=sub_blocks)


def run_sanitized(kernels: list[Kernel], report: Report, device: torch.device) -> None:
    """The worker: every kernel on SANITIZER_CASES, its inputs and its judge on the CPU. report: for the CPU.

    fp16 kernels are left out: they are the bf16 ones with another element type, and racecheck is slow.
    """
    for kernel in (offloaded(kernel, device) for kernel in kernels if kernel.dtype == torch.bfloat16):
        if kernel.spec.family == "score":
            for fine_case in SANITIZER_SUB_BLOCK_CASES:
                report.case(kernel.name, str(fine_case), partial(check_score, kernel, fine_case, report.device))
            continue
        if kernel.spec.family == "select":
            for select_case in SANITIZER_SELECT_CASES:
                report.case(kernel.name, str(select_case), partial(check_select, kernel, select_case, report.device))
            continue
        for case in SANITIZER_CASES:
            if kernel.spec.family == "attend":
                shared = case.shared_by(kernel.problem.heads_per_list)
                report.case(kernel.name, str(shared), partial(check_attend, kernel, shared, report.device))
                continue
            if kernel.spec.family == "rotate":
                turned = partial(check_rotate, kernel, case, report.device, start=100, block_sizes=(64, 128))
                report.case(kernel.name, str(case), turned)
                continue
            if kernel.spec.family == "subpool":
                fine = partial(check_subpool, kernel, case, report.device, sizes=(4, 16), start=case.seqlen_k // 2)
                report.case(kernel.name, str(case), fine)
                continue
            report.case(kernel.name, str(case), partial(check_pool, kernel, case, report.device))
            chunks = partial(check_chunks, kernel, case, report.device, block_size=128)
            report.case(kernel.name, f"{case}-chunks", chunks)


def check_tool(tool: str, executable: str, worker: list[str], log: Path, timeout_s: float) -> Findings:
    """Runs the worker under one tool; torch's caching allocator is off, so that every tensor has its own bounds.

    log: where the whole output goes if there is a finding.
    """
    found = Findings()
    command = [executable, "--tool", tool, "--error-exitcode", str(ERROR_EXIT), sys.executable, *worker]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, check=False, env=environment, text=True, timeout=timeout_s, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        found.require(False, f"{tool} took more than {timeout_s:.0f} s")
        return found
    summary = SUMMARY.search(done.stdout)
    reported, in_order = int(summary.group(2)) if summary else -1, len(IN_ORDER.findall(done.stdout))
    found.figures.update(exit_status=done.returncode, reported=reported, in_order=in_order)
    found.require(summary is not None, f"{tool} printed no summary")
    if done.returncode != (ERROR_EXIT if in_order else 0) or reported != in_order:
        log.write_text(done.stdout)
        said = [line for line in done.stdout.splitlines() if line.startswith("=====")] or done.stdout.splitlines()
        found.require(False, "\n".join([f"see {log.name}", *said[:MAX_LINES]]))
    return found


def run(script: Path, options: Options, report: Report, worker: list[str]) -> None:
    """memcheck and racecheck of the worker, or a note where there is no GPU or no compute-sanitizer.

    worker: this process's own arguments, without --worker.
    """
    executable = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if report.device.type != "cuda" or executable is None:
        reason = "no GPU" if report.device.type != "cuda" else "compute-sanitizer is not on PATH"
        report.add("compute-sanitizer", ",".join(TOOLS), show=True, skipped=reason)
        return
    arguments = [str(script), *worker, "--worker", SANITIZED]
    for tool in TOOLS:
        seconds = options.timeout * ENDED_WELL / len(TOOLS)
        log = options.out.with_suffix(f".{tool}.txt")
        check = partial(check_tool, tool, executable, arguments, log, seconds)
        report.case("compute-sanitizer", tool, check, show=True)
