"""The stand of candidates on a real device: a bundle of them on a GPU, or plain torch in their place.

Owns how a candidate is judged, timed, and put beside dense attention. Must not decide which is best.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prism_gen.bench.fine_workload import make_fine_problem
from prism_gen.bench.peers import attend_peers
from prism_gen.bench.peers.checked import prepare_checked
from prism_gen.bench.timing import MIN_RUNS, measure_each
from prism_gen.bench.workloads import Heads, calls_for, selection_call, shared_heads
from prism_gen.crossover import Crossing, Crossover, wins_below
from prism_gen.manifest import KernelEntry
from prism_gen.model import ModelSpec
from prism_gen.runtime.load import load_bundle
from prism_gen.runtime.rules import SelectRules
from prism_gen.spec import KernelSpec
from prism_gen.specialize import block_pair_scoring, layer_problems
from prism_gen.sub_blocks import SubBlocks
from prism_gen.tune.shapes import CROSSOVER_DENSITIES
from prism_gen.tuning_table import Shape
from prism_gen.verify.kernels import Kernel, bundle_kernel, of_family
from prism_gen.verify.masks import density_of
from prism_gen.verify.problem import Problem, make_problem, prepare_launch
from prism_gen.verify.reference_kernels import reference_kernel
from prism_gen.verify.report import LOST
from prism_gen.verify.select_cases import SelectCase
from prism_gen.verify.trials import kernel_trials

MAX_PROBLEMS = 3  # of a wrong candidate that its record holds
OWN_DENSE = "this kernel on every block"


@dataclass(frozen=True)
class OpenStand:
    """How a process opens its stand on a device, such as "cuda:0"; on "cpu" plain torch stands in for the kernels."""

    device: str

    def __call__(self, bundle: Path | None) -> DeviceStand:
        """bundle: of the candidates; None on the CPU. Raises: BundleError as load_bundle does."""
        if self.device == "cpu":
            torch.set_num_threads(1)  # tensors are small, and the machine may be shared
        return DeviceStand(bundle, torch.device(self.device))


class DeviceStand:
    """See Stand in unit.py."""

    def __init__(self, bundle: Path | None, device: torch.device) -> None:
        self._device = device
        self._bundle = load_bundle(bundle) if bundle else None
        self._entries: dict[str, KernelEntry] = {}
        if self._bundle:
            self._entries = {entry.key: entry for entry in self._bundle.manifest.kernels}
        self._kernels: dict[str, Kernel] = {}
        if device.type == "cuda":
            torch.cuda.set_device(device)

    def kernel(self, spec: KernelSpec) -> Kernel:
        """The opened kernel of a candidate."""
        if spec.key not in self._kernels:
            entry = self._entries.get(spec.key)
            made = bundle_kernel(self._bundle, entry) if self._bundle and entry else reference_kernel(spec)
            self._kernels[spec.key] = made
        return self._kernels[spec.key]

    def problems(self, spec: KernelSpec) -> list[str]:
        """The first few that its trials find. Raises: RuntimeError where the device is lost, which ends the process."""
        kernel = self.kernel(spec)
        found: list[str] = []
        for trial in kernel_trials(kernel, self._first("pool"), self._device, quick=True):
            try:
                problems = trial.check().problems
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
            except Exception as error:
                if any(sign in str(error) for sign in LOST):
                    raise
                problems = [f"{type(error).__name__}: {error}"]
            found += [f"{trial.case}: {problem}" for problem in problems]
            if len(found) >= MAX_PROBLEMS:
                break
        return found[:MAX_PROBLEMS]

    def time(self, specs: Sequence[KernelSpec], shape: Shape, heads: Heads, runs: int) -> dict[str, tuple[float, ...]]:
        """Every run of each candidate on the same inputs, in turn."""
        kernels = [self.kernel(spec) for spec in specs]
        calls = calls_for(kernels, shape.seqlen, shape.density, shape.batch, heads, self._device)
        keyed = dict(zip((spec.key for spec in specs), calls, strict=True))
        return measure_each(keyed, self._device, runs=runs)

    def crossover(self, spec: KernelSpec, seqlens: Sequence[int], heads: Heads) -> Crossover | None:
        """attend at several densities, its selection, and the fastest dense attention that is installed."""
        if spec.family != "attend":
            return None
        kernel = self.kernel(spec)
        heads = shared_heads(kernel, heads)
        crossings = tuple(self._crossing(kernel, seqlen, heads) for seqlen in seqlens)
        return Crossover(arch=spec.arch, label=spec.problem.label(), key=spec.key, heads=heads, crossings=crossings)

    def _crossing(self, kernel: Kernel, seqlen: int, heads: Heads) -> Crossing:
        points = []
        for density in CROSSOVER_DENSITIES:  # the last selects every block
            problem = make_problem(kernel, seqlen, density, heads, self._device)
            launch, out = prepare_launch(kernel, problem)
            points.append((density_of(problem.block_mask, problem.grid), self._ms(launch)))
        points = [(round(density, 4), round(ms, 5)) for density, ms in sorted(dict(points).items())]
        dense, dense_ms = self._dense(problem, out, points[-1][1])
        selection_ms = self._selection_ms(kernel, seqlen, heads)
        return Crossing(
            seqlen=seqlen,
            dense=dense,
            dense_ms=round(dense_ms, 5),
            selection_ms=round(selection_ms, 5),
            attend_ms=tuple(points),
            wins_below=round(wins_below(points, selection_ms, dense_ms), 4),
        )

    def _dense(self, problem: Problem, out: Tensor, own_ms: float) -> tuple[str, float]:
        """(name, milliseconds) of the fastest dense attention here, this kernel on every block among them.

        out: of this kernel on every block, which a peer must reproduce to count.
        """
        times = {OWN_DENSE: own_ms}
        for name, peer in attend_peers().items():
            if not peer.sparse and (call := prepare_checked(peer, problem, out).call):
                times[name] = self._ms(call)
        best = min(times, key=lambda name: times[name])
        return best, times[best]

    def _selection_ms(self, attend: Kernel, seqlen: int, heads: Heads) -> float:
        """What chooses the blocks of this attend in the bundle's models, the slowest of them; 0 without a bundle."""
        problem = attend.problem
        sizes = (problem.block_size_q, problem.block_size_k)
        slowest = 0.0
        for model in self._bundle.manifest.models if self._bundle else ():
            problems = layer_problems(model, sizes) if sizes in model.selection.block_sizes else {}
            if problems.get("attend") == problem:
                call = self._selection(model, sizes, problems, seqlen, heads)
                slowest = max(slowest, self._ms(call))
        return slowest

    def _ms(self, call: Callable[[], object]) -> float:
        """Median of MIN_RUNS runs, its launches hidden: a peer's Python must not make dense attention look slow."""
        return statistics.median(measure_each({"": call}, self._device, runs=MIN_RUNS)[""])

    def _selection(
        self, model: ModelSpec, sizes: tuple[int, int], problems: dict[str, Any], seqlen: int, heads: Heads
    ) -> Callable[[], object]:
        """pool and select, or subpool and score, with their default schedules."""
        kernels = {
            name: next(kernel for kernel in self._first(name) if kernel.problem == problem)
            for name, problem in problems.items()
            if name in ("pool", "select", "subpool", "score")
        }
        scoring = block_pair_scoring(model, sizes)
        if isinstance(scoring, SubBlocks):
            pair = (kernels["subpool"], kernels["score"])
            return make_fine_problem(pair, (scoring.q, scoring.k), seqlen, heads, self._device).run
        rules = SelectRules(share=model.selection.share)
        case = SelectCase(seqlen, seqlen, *sizes, num_q_heads=heads[0], num_kv_heads=heads[1], rules=rules)
        return selection_call(kernels["pool"], kernels["select"], case, self._device)

    def _first(self, family: str) -> list[Kernel]:
        """The first kernel of each problem of a family: the default, which a bundle of candidates lists first."""
        firsts: dict[Any, KernelSpec] = {}
        for entry in self._entries.values():
            if entry.spec.family == family:
                firsts.setdefault(entry.spec.problem, entry.spec)
        return of_family([self.kernel(spec) for spec in firsts.values()], family)
