"""pool on small shapes against float64, and chunk by chunk against itself; its part of the section `numerics`.

Owns pool's raw signature on the side of the checks, and what a right answer is. Must not know where kernels come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from prism_gen.families.pool import BLOCK_SIZES
from prism_gen.runtime.reference_pool import granules_per_block, pool
from prism_gen.verify import oracle
from prism_gen.verify.buffers import Guarded, guarded
from prism_gen.verify.cases import QUICK_CASES, RAGGED, Case
from prism_gen.verify.kernels import Kernel, bands_of, of_family
from prism_gen.verify.report import Findings, Group, Report, Trial

# fp32 sums of up to 128 values, whatever their order: 128 * 2^-24 of the largest value at the very worst.
MEAN_TOLERANCE = 2e-6  # of the largest |x|
ENERGY_TOLERANCE = 2e-5  # relative: a sum of up to 256 squares
LAUNCHES = 2  # the second must give the same bits
CHUNK_TOKENS = (1, 5, 31, 32, 33, 64, 100, 128, 200)  # parts of granules and blocks, and several blocks


class Pooled(NamedTuple):
    """Means and energies of q and of k, in outputs between guards."""

    q_mean: Guarded
    q_energy: Guarded
    k_mean: Guarded
    k_energy: Guarded

    @classmethod
    def of(cls, q: Tensor, k: Tensor, block_sizes: tuple[int, int]) -> Pooled:
        """Fresh outputs for q and k [batch, seqlen, num_heads, head_dim], poisoned."""
        outputs = []
        for x, size in zip((q, k), block_sizes, strict=True):
            rows = (x.shape[0], x.shape[2], -(-x.shape[1] // size))
            outputs += [guarded((*rows, width), torch.float32, x.device) for width in (x.shape[3], 3)]
        return cls(*outputs)

    @property
    def outputs(self) -> dict[str, Guarded]:
        """Each output by its name."""
        return self._asdict()

    @property
    def views(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q_mean, q_energy, k_mean, k_energy, as the kernel is given them."""
        return self.q_mean.view, self.q_energy.view, self.k_mean.view, self.k_energy.view


def launch_pool(kernel: Kernel, q: Tensor, k: Tensor, block_sizes: tuple[int, int]) -> Pooled:
    """One launch over whole q and k into fresh outputs."""
    pooled = Pooled.of(q, k, block_sizes)
    kernel.launch(q, k, *pooled.views, *block_sizes, 0, None, None)
    return pooled


def find_pool(kernels: list[Kernel], select: Kernel, block_sizes: tuple[int, int], dtype: torch.dtype) -> Kernel | None:
    """The pool kernel with select's head dim and bands, or None; also None for block sizes that pool does not take."""
    wanted = (select.problem.head_dim, select.problem.high_dims, select.problem.low_dims)
    if not set(block_sizes) <= set(BLOCK_SIZES):
        return None
    for kernel in of_family(kernels, "pool"):
        problem = kernel.problem
        if kernel.dtype == dtype and wanted == (problem.head_dim, problem.high_dims, problem.low_dims):
            return kernel
    return None


def check_pool(
    kernel: Kernel, case: Case, device: torch.device, *, block_sizes: tuple[int, int] = (128, 64)
) -> Findings:
    """pool of q and k in the case's layout against float64; guards, poison and repeatability."""
    found = Findings()
    q, k, _ = case.qkv(kernel.problem.head_dim, kernel.dtype, device)
    first, second = (launch_pool(kernel, q, k, block_sizes) for _ in range(LAUNCHES))
    bits = [[view.view(torch.int32) for view in pooled.views] for pooled in (first, second)]
    same = all(torch.equal(a, b) for a, b in zip(*bits, strict=True))
    found.require(same, "two launches differ", "repeat")
    for name, output in first.outputs.items():
        found.require(output.intact(), f"wrote outside {name}", "bounds")
    for name, x, mean, energy, size in zip("qk", (q, k), first.views[::2], first.views[1::2], block_sizes, strict=True):
        judge(found, name, x, (mean, energy), pool(x.double(), size, bands_of(kernel.problem)))
        by_reference, _ = pool(x, size, bands_of(kernel.problem))
        found.figures[f"{name}_mean_differing"] = int((by_reference != mean).sum())
        found.require(by_reference.equal(mean), f"{name}_mean has other bits than the reference's order of summation")
    return found


def judge(found: Findings, name: str, x: Tensor, ours: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> None:
    """Mean and energy against float64."""
    error = oracle.max_abs(ours[0] - exact[0]) / float(x.double().abs().max())
    relative = oracle.max_abs((ours[1] - exact[1]) / exact[1].clamp_min(1e-30))
    found.figures.update({f"{name}_mean_error": error, f"{name}_energy_error": relative})
    found.require(error <= MEAN_TOLERANCE, f"{name}_mean is off by over {MEAN_TOLERANCE:g} of max|x|")
    found.require(relative <= ENERGY_TOLERANCE, f"{name}_energy is off by over {ENERGY_TOLERANCE:g}")


def check_chunks(kernel: Kernel, case: Case, device: torch.device, *, block_size: int) -> Findings:
    """k appended in random chunks to a cache with room to spare: the bits of one launch, and nothing else touched."""
    found = Findings()
    q, k, _ = case.qkv(kernel.problem.head_dim, kernel.dtype, device)
    whole = launch_pool(kernel, q, k, (BLOCK_SIZES[0], block_size))
    rows, blocks = (k.shape[0], k.shape[2]), whole.k_mean.view.shape[2]
    mean, energy = (guarded((*rows, blocks + 2, width), torch.float32, device) for width in (k.shape[3], 3))
    shape = (*rows, granules_per_block(block_size), k.shape[3])
    tails = [guarded(shape, torch.float32, device) for _ in range(2)]
    nothing = Pooled.of(q[:, :0], k, (BLOCK_SIZES[0], block_size))
    draw, ends = random.Random(case.seqlen_k), [0]
    while ends[-1] < k.shape[1]:
        ends.append(min(k.shape[1], ends[-1] + draw.choice(CHUNK_TOKENS)))
    for i, (start, end) in enumerate(pairwise(ends)):
        outputs = (*nothing.views[:2], mean.view, energy.view)
        read, written = tails[i % 2].view, tails[1 - i % 2].view
        kernel.launch(q[:, :0], k[:, start:end], *outputs, BLOCK_SIZES[0], block_size, start, read, written)
    found.figures["chunks"] = len(ends) - 1
    for name, ours, one_launch in (("mean", mean, whole.k_mean), ("energy", energy, whole.k_energy)):
        found.require(ours.view[:, :, :blocks].equal(one_launch.view), f"{name} differs from one launch")
        found.require(bool(ours.view[:, :, blocks:].isnan().all()), f"{name} was written past the last block", "bounds")
        found.require(ours.intact(), f"wrote outside {name}", "bounds")
    found.require(all(tail.intact() for tail in tails), "wrote outside a tail", "bounds")
    return found


def trials(kernel: Kernel, device: torch.device, *, quick: bool) -> Iterator[Trial]:
    """One pool kernel on its cases, block sizes in turn."""
    pairs = [(q, k) for q in BLOCK_SIZES for k in BLOCK_SIZES]
    for i, case in enumerate(QUICK_CASES[:3] if quick else RAGGED):
        for sizes in pairs[i % 2 :: 4] if quick else pairs:
            whole = partial(check_pool, kernel, case, device, block_sizes=sizes)
            yield Trial(kernel.name, f"{case}-{sizes[0]}x{sizes[1]}", whole)
        for size in BLOCK_SIZES:
            chunks = partial(check_chunks, kernel, case, device, block_size=size)
            yield Trial(kernel.name, f"{case}-chunks{size}", chunks)


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Every pool kernel on its cases, block sizes in turn; one line of progress a kernel."""
    for kernel in of_family(kernels, "pool"):
        Group(report, kernel.name).run(trials(kernel, report.device, quick=quick))
