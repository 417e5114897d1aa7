"""Every trial of one kernel of a bundle, whatever its family.

Owns which checks a family gets. Must not run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import torch

from prism_gen.verify import numerics, pooling, rotation, selection, subblock
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.problem import make_problem, prepare_launch
from prism_gen.verify.report import Findings, Trial
from prism_gen.verify.spots import spot_check

# Far more tiles than one wave of CTAs, offsets beyond what small shapes reach, and K and V of a head beyond L2: attend
# then orders its tiles by the lengths of their lists.
LARGE_TOKENS = 196608
SMALL_TOKENS = 512  # the same check where plain torch stands in for the kernels
LARGE_DENSITY = 0.25
LARGE_KV_HEADS = 2
GROUP_SIZE = 4  # q heads of a KV head, where each has a list of its own


def check_large(kernel: Kernel, seqlen: int, device: torch.device) -> Findings:
    """attend at a length that is served: spots against float64, and the same bits on a second launch."""
    found = Findings()
    shared = kernel.problem.heads_per_list
    heads = (LARGE_KV_HEADS * (GROUP_SIZE if shared == 1 else shared), LARGE_KV_HEADS)
    problem = make_problem(kernel, seqlen, LARGE_DENSITY, heads, device)
    launch, out = prepare_launch(kernel, problem)
    launch()
    first = out.clone()
    out.fill_(float("nan"))
    launch()
    found.require(torch.equal(first, out), "two launches differ", "repeat")
    spot_check(found, problem, out)
    return found


def _attend_trials(kernel: Kernel, _kernels: list[Kernel], device: torch.device, *, quick: bool) -> Iterator[Trial]:
    yield from numerics.trials(kernel, device, quick=quick)
    seqlen = LARGE_TOKENS if device.type == "cuda" else SMALL_TOKENS
    yield Trial(kernel.name, f"large-n{seqlen}", partial(check_large, kernel, seqlen, device))


def _select_trials(kernel: Kernel, kernels: list[Kernel], device: torch.device, *, quick: bool) -> Iterator[Trial]:
    dtypes = sorted({pool.dtype for pool in of_family(kernels, "pool")}, key=str)
    fused = (selection.fused_trials(kernels, kernel, dtype, device, quick=quick) for dtype in dtypes)
    yield from chain(selection.trials(kernel, device, quick=quick), *fused)


def _pool_trials(kernel: Kernel, _kernels: list[Kernel], device: torch.device, *, quick: bool) -> Iterator[Trial]:
    return pooling.trials(kernel, device, quick=quick)


def _rotate_trials(kernel: Kernel, _kernels: list[Kernel], device: torch.device, *, quick: bool) -> Iterator[Trial]:
    return rotation.trials(kernel, device, quick=quick)


def _subpool_trials(kernel: Kernel, _kernels: list[Kernel], device: torch.device, *, quick: bool) -> Iterator[Trial]:
    return subblock.subpool_trials(kernel, device, quick=quick)


def _score_trials(kernel: Kernel, _kernels: list[Kernel], device: torch.device, *, quick: bool) -> Iterator[Trial]:
    return subblock.score_trials(kernel, device, quick=quick)


FAMILY_TRIALS: dict[str, Callable[..., Iterator[Trial]]] = {
    "pool": _pool_trials,
    "rotate": _rotate_trials,
    "select": _select_trials,
    "subpool": _subpool_trials,
    "score": _score_trials,
    "attend": _attend_trials,
}


def kernel_trials(kernel: Kernel, kernels: list[Kernel], device: torch.device, *, quick: bool) -> list[Trial]:
    """The trials of one kernel; none for a family without checks. kernels: all of the bundle, for its pools."""
    trials = FAMILY_TRIALS.get(kernel.spec.family)
    return list(trials(kernel, kernels, device, quick=quick)) if trials else []
