"""The outputs of a launch that pools sub-blocks, subpool's or rotate's, and what is right about them.

Owns the order of these arguments and the judgement. Must not launch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prism_gen.families.score import TILE_COLUMNS
from prism_gen.runtime.reference_pool import pool_chunk
from prism_gen.verify import oracle
from prism_gen.verify.buffers import Guarded, guarded
from prism_gen.verify.report import Findings
from prism_gen.verify.subblock_cases import tile_places

MEAN_TOLERANCE = 2e-6  # of the largest |x|: an fp32 sum of up to 16 values, beside fp16's 2^-11 of the mean


class SubMeans(NamedTuple):
    """Guarded outputs. sizes: of sub-blocks (q, k), tokens. start: the token of its sequence that new_k begins with.

    tail_in: sums of the sub-block that holds token `start` so far, [batch, num_kv_heads, 1, head_dim]; None: start is
    0.
    """

    q_sub: Guarded
    k_sub: Guarded
    tail_out: Guarded
    sizes: tuple[int, int]
    start: int
    tail_in: Tensor | None

    @classmethod
    def of(cls, q: Tensor, new_k: Tensor, sizes: tuple[int, int], start: int, tail_in: Tensor | None) -> SubMeans:
        """Room for the means of q and of all keys up to the last of new_k."""
        rows = (-(-q.shape[1] // sizes[0]), -(-(start + new_k.shape[1]) // (sizes[1] * TILE_COLUMNS)) * TILE_COLUMNS)
        q_sub, k_sub = (
            guarded((x.shape[0], x.shape[2], n, x.shape[3]), torch.float16, x.device)
            for x, n in zip((q, new_k), rows, strict=True)
        )
        tail_out = guarded((new_k.shape[0], new_k.shape[2], 1, new_k.shape[3]), torch.float32, q.device)
        return cls(q_sub, k_sub, tail_out, sizes, start, tail_in)

    @property
    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """Of subpool and rotate_sub_blocks, behind their inputs."""
        outputs = (self.q_sub.view, self.k_sub.view)
        return (*outputs, *self.sizes, self.start, self.tail_in, self.tail_out.view)

    def judge(self, found: Findings, q: Tensor, new_k: Tensor) -> None:
        """The reference's bits, in order, near float64, and nothing else touched."""
        first, end = self.start // self.sizes[1], self.start + new_k.shape[1]
        places = tile_places(-(-end // self.sizes[1]), q.device)[first:]
        untouched = torch.ones(self.k_sub.view.shape[2], dtype=torch.bool, device=q.device)
        untouched[places] = False
        found.require(bool(self.k_sub.view[:, :, untouched].isnan().all()), "wrote where no mean belongs", "bounds")
        intact = all(output.intact() for output in (self.q_sub, self.k_sub, self.tail_out))
        found.require(intact, "wrote outside the means or tail_out", "bounds")
        ours = (self.q_sub.view, self.k_sub.view[:, :, places])
        starts, tails = (0, self.start), (None, self.tail_in)
        for name, x, mean, size, start, tail in zip("qk", (q, new_k), ours, self.sizes, starts, tails, strict=True):
            by_reference = pool_chunk(x, size, None, start=start, tail=tail)
            exact = pool_chunk(x.double(), size, None, start=start, tail=None if tail is None else tail.double()).mean
            same = by_reference.mean.half().equal(mean)
            found.require(same, f"{name}_sub has other bits than the reference, rounded to fp16")
            excess = (mean.double() - exact).abs() - exact.abs() * 2**-11
            scale = max(float(y.abs().max()) for y in (x, tail) if y is not None)
            found.figures[f"{name}_sub_error"] = oracle.max_abs(excess.clamp_min(0)) / scale
            found.require(found.figures[f"{name}_sub_error"] <= MEAN_TOLERANCE, f"{name}_sub is off")
        complete = end % self.sizes[1] == 0
        found.require(
            complete or self.tail_out.view.equal(by_reference.tail), "tail_out is not the last sub-block's sums"
        )
