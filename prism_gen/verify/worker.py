"""The process that examines a bundle: every kernel, then every layer, one JSON line a case.

Owns the order, and what a line says beyond its case. Whoever started it (supervise.py) outlives a hang or a CUDA fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch

from prism_gen.manifest import KernelEntry
from prism_gen.model import ModelSpec
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.environment import environment
from prism_gen.runtime.load import load_bundle
from prism_gen.verify.job import BEGIN, END, LOST_STATUS, OPEN, SECTION, Job
from prism_gen.verify.kernels import Kernel, bundle_kernel, kernel_name
from prism_gen.verify.layers import file_trials, layer_name, layer_trials
from prism_gen.verify.reference_kernels import reference_kernel
from prism_gen.verify.report import DeviceLostError, Findings, Report, Trial
from prism_gen.verify.trials import kernel_trials


class Subject(NamedTuple):
    """A kernel or a layer: its name in the records, and how its trials are made, which opens libraries."""

    name: str
    trials: Callable[[], list[Trial]]


class Opened:
    """The kernels of a job's arch, each opened when it is first asked for."""

    def __init__(self, job: Job) -> None:
        self._job, self.bundle, self.device = job, load_bundle(job.bundle), torch.device(job.device)
        self.entries = [entry for entry in self.bundle.manifest.kernels if entry.arch == job.arch]
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, entry: KernelEntry) -> Kernel:
        """One kernel, or plain torch in its place. Raises: BundleError where it does not open."""
        if entry.key not in self._kernels:
            stands_in = self._job.backend == "reference"
            self._kernels[entry.key] = reference_kernel(entry.spec) if stands_in else bundle_kernel(self.bundle, entry)
        return self._kernels[entry.key]

    def kernel_trials(self, entry: KernelEntry) -> list[Trial]:
        """The trials of one kernel; those of select also launch the pools."""
        needed = (
            [other for other in self.entries if other.spec.family == "pool"] if entry.spec.family == "select" else []
        )
        kernels = [self.kernel(other) for other in needed]
        return kernel_trials(self.kernel(entry), kernels, self.device, quick=self._job.quick)

    def layer_trials(self, model: ModelSpec, block_size: tuple[int, int]) -> list[Trial]:
        """The trials of a model's first full-attention layer, on the job's files too."""
        backend = self._job.backend
        device = self.device if backend == "cuda" else None
        layer = model.layer_kinds.index("full")
        attention = PrismAttention(
            self.bundle, model.name, layer, block_size=block_size, backend=backend, device=device
        )
        files = chain.from_iterable(file_trials(attention, path, self.device) for path in self._job.qkv)
        return [*layer_trials(attention, self.device), *files]


def subjects(job: Job) -> list[Subject]:
    """Every kernel for the job's arch, and every model at each of its block sizes, narrowed by `only`."""
    opened = Opened(job)
    found = [Subject(kernel_name(entry.spec), partial(opened.kernel_trials, entry)) for entry in opened.entries]
    for model in opened.bundle.manifest.models:
        found += [
            Subject(layer_name(model, size), partial(opened.layer_trials, model, size))
            for size in model.selection.block_sizes
        ]
    return [subject for subject in found if job.only in subject.name]


def work(job: Job) -> None:
    """Examines what is left. Raises: SystemExit with LOST_STATUS after a CUDA fault."""
    device = torch.device(job.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)  # tensors are small, and the machine may be shared
    report = Report(SECTION, job.records, device, quiet=True)
    if not job.done:
        report.add("environment", "", **environment(device))
    for subject in subjects(job):
        if subject.name in job.done:
            continue
        started = time.monotonic()
        report.add(subject.name, BEGIN)
        try:
            _examine(report, subject)
        except DeviceLostError:
            raise SystemExit(LOST_STATUS) from None
        report.add(subject.name, END, seconds=round(time.monotonic() - started, 1))


def _examine(report: Report, subject: Subject) -> None:
    trials: list[Trial] = []

    def open_all() -> Findings:
        trials.extend(subject.trials())
        found = Findings()
        found.figures["trials"] = len(trials)
        return found

    report.case(subject.name, OPEN, open_all)
    for trial in trials:
        report.case(trial.what, trial.case, trial.check)
