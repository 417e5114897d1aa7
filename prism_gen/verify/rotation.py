"""rotate on small shapes against the reference's rounding and against pool; its part of the section `numerics`.

Owns rotate's raw signature on the side of the checks, its tables and what a right answer is. Must not time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from prism_gen.families.pool import BLOCK_SIZES
from prism_gen.runtime.reference_pool import granules_per_block, pool_chunk
from prism_gen.runtime.reference_rotate import rotate
from prism_gen.verify.buffers import Guarded, guarded, guarded_like
from prism_gen.verify.cases import QUICK_CASES, RAGGED, Case
from prism_gen.verify.kernels import Kernel, bands_of, of_family
from prism_gen.verify.pooling import Pooled, judge
from prism_gen.verify.report import Findings, Group, Report, Trial
from prism_gen.verify.sub_means import SubMeans

THETA = 500000.0  # Llama-3.1's
SUB_BLOCKS = ((4, 8), (8, 16), (16, 4))
STARTS = (0, 100)  # keys before the chunk: none, and some that end inside a granule of a block


def rope_tables(kernel: Kernel, num_tokens: int, start: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [1, num_tokens, rotary_dim / 2] of the tokens from `start` on: halves of wider tables, as models'."""
    rotary_dim = kernel.problem.rotary_dim
    inv_freq = THETA ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim)
    angle = torch.arange(start, start + num_tokens, dtype=torch.float32, device=device)[:, None] * inv_freq
    wide = (torch.cat([table, table], dim=-1).to(kernel.dtype)[None] for table in (angle.cos(), angle.sin()))
    cos, sin = (table[..., : rotary_dim // 2] for table in wide)
    return cos, sin


def check_rotate(
    kernel: Kernel, case: Case, device: torch.device, *, start: int, block_sizes: tuple[int, int]
) -> Findings:
    """Rotated q and k bit for bit, their means and energies as pool makes them; guards; in place and alone.

    k is a chunk behind `start` keys, whose part of its first block is given as random sums.
    """
    found, problem = Findings(), kernel.problem
    q, k, v = case.qkv(problem.head_dim, kernel.dtype, device)
    q = q if q.shape[1] == k.shape[1] else v  # v has as many tokens as k
    cos, sin = rope_tables(kernel, k.shape[1], start, device)
    rotated = [rotate(x, cos, sin, interleaved=problem.interleaved) for x in (q, k)]
    outs = [guarded_like(x, case.layout) for x in (q, k)]
    size, rows = block_sizes[1], (k.shape[0], k.shape[2])
    behind = k.new_zeros(k.shape[0], start + k.shape[1], *k.shape[2:])  # only its shape is used: all keys
    pooled = Pooled.of(q, behind, block_sizes)
    tail = torch.zeros(*rows, granules_per_block(size), problem.head_dim, device=device)
    tail[:, :, : -(-(start % size) // 32)].normal_()  # the granules that the earlier keys reach
    tail_out = guarded(tail.shape, torch.float32, device)
    views = [out.view for out in outs]
    kernel.launch(q, k, cos, sin, *views, *pooled.views, *block_sizes, start, tail, tail_out.view)
    for name, out, wanted in zip(("q_out", "k_out"), outs, rotated, strict=True):
        found.require(out.view.equal(wanted), f"{name} has other bits than the reference's rotation")
        found.require(out.intact(), f"wrote outside {name}", "bounds")
    judge_pooled(found, kernel, rotated, pooled, block_sizes, start, tail)
    end = start + k.shape[1]
    untouched = end % size == 0
    wanted_tail = pool_chunk(rotated[1], size, bands_of(problem), start=start, tail=tail).tail
    found.require(untouched or tail_out.view.equal(wanted_tail), "tail_out is not the last block's sums")
    found.require(tail_out.intact(), "wrote outside tail_out", "bounds")
    if kernel.alone is not None:
        check_alone(found, kernel, (q, k), (cos, sin), rotated)
    for sizes in SUB_BLOCKS if kernel.sub_blocks else ():
        check_sub_blocks(found, kernel, (q, k), (cos, sin), rotated, sizes=sizes, start=start)
    return found


def judge_pooled(
    found: Findings,
    kernel: Kernel,
    rotated: list[Tensor],
    pooled: Pooled,
    block_sizes: tuple[int, int],
    start: int,
    tail: Tensor,
) -> None:
    """Means in the reference's bits, energies near float64, nothing outside."""
    bands = bands_of(kernel.problem)
    for name, x, mean, energy, size, first in zip(
        "qk", rotated, pooled.views[::2], pooled.views[1::2], block_sizes, (0, start), strict=True
    ):
        given = tail if name == "k" else None
        chunk = pool_chunk(x, size, bands, start=first, tail=given)
        exact = pool_chunk(x.double(), size, bands, start=first, tail=None if given is None else given.double())
        ours = mean[:, :, first // size :], energy[:, :, first // size :]
        found.require(ours[0].equal(chunk.mean), f"{name}_mean has other bits than pooling the rotated tokens")
        scale = x if given is None else torch.cat([x.flatten().float(), given.flatten()])
        judge(found, name, scale, ours, (exact.mean, exact.energy))
    for name, output in pooled.outputs.items():
        found.require(output.intact(), f"wrote outside {name}", "bounds")


def check_alone(
    found: Findings, kernel: Kernel, tokens: tuple[Tensor, Tensor], tables: tuple[Tensor, Tensor], rotated: list[Tensor]
) -> None:
    """The rotation alone, in place."""
    copies: list[Guarded] = [guarded_like(x, "contiguous") for x in tokens]
    for copy, x in zip(copies, tokens, strict=True):
        copy.view.copy_(x)
    views = [copy.view for copy in copies]
    if kernel.alone is not None:
        kernel.alone(*views, *tables, *views)
    for name, copy, wanted in zip("qk", copies, rotated, strict=True):
        found.require(copy.view.equal(wanted), f"{name} rotated in place has other bits than the reference's rotation")
        found.require(copy.intact(), f"wrote outside {name}", "bounds")


def check_sub_blocks(
    found: Findings,
    kernel: Kernel,
    tokens: tuple[Tensor, Tensor],
    tables: tuple[Tensor, Tensor],
    rotated: list[Tensor],
    *,
    sizes: tuple[int, int],
    start: int,
) -> None:
    """The rotation with the means of sub-blocks; k goes on with random sums of its first one."""
    outs = [guarded_like(x, "contiguous") for x in tokens]
    tail = torch.randn(tokens[1].shape[0], tokens[1].shape[2], 1, tokens[1].shape[3], device=tokens[1].device)
    means = SubMeans.of(*tokens, sizes, start, tail if start % sizes[1] else None)
    if kernel.sub_blocks is not None:
        kernel.sub_blocks(*tokens, *tables, *(out.view for out in outs), *means.arguments)
    for name, out, wanted in zip("qk", outs, rotated, strict=True):
        found.require(out.view.equal(wanted), f"{name} rotated for sub-blocks has other bits than the reference's")
        found.require(out.intact(), f"wrote outside {name}", "bounds")
    means.judge(found, rotated[0], rotated[1])


def trials(kernel: Kernel, device: torch.device, *, quick: bool) -> Iterator[Trial]:
    """One rotate kernel on pool's cases, block sizes in turn."""
    pairs = [(q, k) for q in BLOCK_SIZES for k in BLOCK_SIZES]
    for i, case in enumerate(QUICK_CASES[:3] if quick else RAGGED):
        for start in STARTS:
            sizes = pairs[(i + start) % len(pairs)]
            check = partial(check_rotate, kernel, case, device, start=start, block_sizes=sizes)
            yield Trial(kernel.name, f"{case}-after{start}-{sizes[0]}x{sizes[1]}", check)


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Every rotate kernel on pool's cases, block sizes in turn; one line of progress a kernel."""
    for kernel in of_family(kernels, "rotate"):
        Group(report, kernel.name).run(trials(kernel, report.device, quick=quick))
