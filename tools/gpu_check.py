"""One-shot check of the kernels of one or more bundles: right, repeatable, clean under compute-sanitizer, and how fast.

    python tools/gpu_check.py --bundle generated/llama --out benchmarks/results/2026-11-23-h200-foundation.jsonl

Each section runs in a process of its own under a watchdog, so that a hang or a CUDA fault costs that section alone.
Every finding is one JSON line in --out; the failures are printed last, and the exit status is 1 if there is any.
Owns the processes and the final table. Must not check anything itself (prism_gen/verify/ and tools/check/ do).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, without installation

import torch  # noqa: E402

from prism_gen.runtime.environment import environment  # noqa: E402
from prism_gen.verify import numerics, selection, subblock  # noqa: E402
from prism_gen.verify.kernels import Kernel, bundle_kernels  # noqa: E402
from prism_gen.verify.reference_kernels import reference_kernels  # noqa: E402
from prism_gen.verify.report import DeviceLostError, Report, current_case, current_path, emit  # noqa: E402
from tools.check import arguments as wrong_arguments  # noqa: E402
from tools.check import attend_speed, build, graph, pool_speed, power, sanitizer, score_speed, select_speed  # noqa: E402
from tools.check.options import SANITIZED, Options, parse  # noqa: E402
from tools.check.table import print_failures, print_table, read_records  # noqa: E402

FIGURES = {
    "attend_speed": attend_speed.run,
    "pool_speed": pool_speed.run,
    "select_speed": select_speed.run,
    "score_speed": score_speed.run,
    "power": power.run,
}
# Sections that run an attend kernel behind its pool and select, whatever --only leaves out.
PIPELINE_SECTIONS = ("graph", "select_speed")
CPU_SECTIONS = ("build", SANITIZED)  # judged on the CPU, whatever they open or launch
FAILED_STATUS = 3  # of a worker that ran to its end; 1 is what an uncaught Python exception leaves


def load_kernels(options: Options) -> list[Kernel]:
    """Every kernel under check, once each, narrowed by --only."""
    if options.backend == "reference":
        found = reference_kernels()
    else:
        found = [kernel for path in options.bundle for kernel in bundle_kernels(path)]
    unique = {kernel.spec.key: kernel for kernel in found}
    whole = options.worker in PIPELINE_SECTIONS
    return [k for k in unique.values() if options.only in k.name or (whole and k.spec.family != "attend")]


def choose_device(options: Options) -> torch.device:
    """The GPU, or the CPU for the reference, which needs none. Raises: SystemExit where there is no GPU."""
    if options.backend == "reference":
        torch.set_num_threads(1)  # tensors are small, and the machine may be shared
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible to torch; --backend reference runs the check's own logic without one")
    return torch.device("cuda", 0)


def report_nothing(options: Options, kernels: list[Kernel], report: Report) -> None:
    """What a section that had nothing to do says: a failure where no kernel at all has the name asked for."""
    if kernels:
        report.add("kernels", "any", show=True, skipped=f"no kernel named {options.only!r} here")
        return
    names = sorted(kernel.name for kernel in load_kernels(replace(options, only="")))
    problem = f"no kernel named {options.only!r}; there are: {', '.join(names) or 'none'}"
    report.add("kernels", "any", ok=False, show=True, problems=[problem])


def run_section(options: Options, arguments: list[str]) -> int:
    """The worker: one section in this process. Returns the number of failures."""
    section = options.worker
    device = torch.device("cpu") if section in CPU_SECTIONS else choose_device(options)
    report = Report(section, options.out, device, verbose=options.verbose)
    if section == "build":
        build.run(options.bundle, report)
        return report.failed
    kernels = load_kernels(options)
    try:
        if section == "numerics":
            numerics.run(kernels, report, quick=options.quick)
            if options.backend == "cuda":
                wrong_arguments.run(kernels, report)
        elif section == "select":
            selection.run(kernels, report, quick=options.quick)
        elif section == "subblock":
            subblock.run(kernels, report, quick=options.quick)
        elif section == "graph":
            graph.run(kernels, report, quick=options.quick)
        elif section in FIGURES:
            FIGURES[section](kernels, report, options)
        elif section == "sanitizer":
            sanitizer.run(Path(__file__).resolve(), options, report, arguments)
        elif section == SANITIZED:
            sanitizer.run_sanitized(kernels, report, choose_device(options))
    except DeviceLostError as lost:
        print(f"  {section}: given up, the device is lost: {lost}", flush=True)
    if not report.written:
        report_nothing(options, kernels, report)
    return report.failed


def supervise(section: str, options: Options, arguments: list[str]) -> None:
    """Runs one section in a child process; a crash or a time-out becomes a failing record of its own."""
    start = time.monotonic()
    print(f"== {section}", flush=True)
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--worker", section]
    child = subprocess.Popen(command, start_new_session=True)
    late = threading.Event()

    def kill() -> None:
        late.set()
        os.killpg(child.pid, signal.SIGKILL)  # the session holds whatever the section itself started

    watchdog = threading.Timer(options.timeout, kill)
    watchdog.start()
    try:
        status = child.wait()
    finally:
        watchdog.cancel()
    seconds = round(time.monotonic() - start, 1)
    problem, current = "", current_case(options.out)
    if late.is_set():
        problem = f"killed after {seconds} s in {current}"
    elif status not in (0, FAILED_STATUS):
        problem = f"ended with status {status} in or after {current}"
    record: dict[str, Any] = {"section": section, "what": "section", "case": "process", "ok": not problem}
    with options.out.open("a") as out:
        emit({**record, "seconds": seconds, **({"problems": [problem]} if problem else {})}, out=out)


def main(arguments: list[str]) -> int:
    """Runs the sections asked for; returns the exit status: 1 if anything failed."""
    options = parse(arguments)
    if options.worker:
        return FAILED_STATUS if run_section(options, arguments_of_parent(arguments)) else 0
    device = choose_device(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w") as out:
        head = {"section": "environment", "what": "environment", "case": "", "ok": None}
        emit({**head, **environment(device, commit=options.commit)}, out=out)
    for section in options.sections:
        if section == "build" and not options.bundle:
            continue
        supervise(section, options, [*arguments, "--out", str(options.out.resolve())])
    current_path(options.out).unlink(missing_ok=True)
    records = read_records(options.out)
    print_table([record for record in records if record["section"] in FIGURES])
    return int(print_failures(records) > 0)


def arguments_of_parent(arguments: list[str]) -> list[str]:
    """The command line without --worker and its value."""
    at = arguments.index("--worker")
    return arguments[:at] + arguments[at + 2 :]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
