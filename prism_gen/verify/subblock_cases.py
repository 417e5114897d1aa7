"""The cases of subpool and score: shapes, sub-blocks, rules, and the means that carry the scores.

Owns which problems of the subblock estimator are tried. Must not judge answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prism_gen.families import ScoreProblem
from prism_gen.families.score import TILE_COLUMNS
from prism_gen.model import Reduce
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.verify.select_cases import FORCED, GROUPS

MeansKind = Literal["flat", "peaked", "rising", "ties"]
GAINS: dict[MeansKind, float] = {"flat": 1.0, "peaked": 3.0, "rising": 3.0, "ties": 1.0}
RISE = 20.0  # how much larger the last keys of "rising" are than the mean: reference points move many times


@dataclass(frozen=True)
class SubBlockCase:
    """One problem. Lengths and sub-blocks in tokens; block sizes are the kernel's multiples of the sub-blocks."""

    seqlen_q: int
    seqlen_k: int
    sub_block_q: int = 8
    sub_block_k: int = 8
    num_q_heads: int = 4
    num_kv_heads: int = 2
    batch: int = 1
    means: MeansKind = "peaked"
    threshold: float = 0.9
    rules: SelectRules = PAPER_RULES
    reduce: Reduce = "max"
    exclude_forced: bool = False

    def __str__(self) -> str:
        rules = self.rules
        chosen = f"s{int(rules.force_sink)}r{int(rules.force_recent)}-{rules.share}-{rules.cut}"
        chosen += "" if rules.max_blocks is None else f"-max{rules.max_blocks}"
        chosen += "-exclude" if self.exclude_forced else ""
        return (
            f"q{self.seqlen_q}k{self.seqlen_k}-{self.sub_block_q}x{self.sub_block_k}-b{self.batch}"
            f"-h{self.num_q_heads}:{self.num_kv_heads}-{self.means}-{self.reduce}-t{self.threshold:g}-{chosen}"
        )

    @property
    def num_lists(self) -> int:
        """Lists per query block."""
        return self.rules.num_lists(self.num_q_heads, self.num_kv_heads)

    @property
    def fine(self) -> BlockGrid:
        """The grid of sub-rows and sub-columns."""
        return BlockGrid(self.seqlen_q, self.seqlen_k, self.sub_block_q, self.sub_block_k)

    def grid(self, problem: ScoreProblem) -> BlockGrid:
        """The grid of blocks that a kernel makes of the sub-blocks."""
        block_q, block_k = problem.rows_per_block * self.sub_block_q, problem.columns_per_block * self.sub_block_k
        return BlockGrid(self.seqlen_q, self.seqlen_k, block_q, block_k)

    def thresholds(self, device: torch.device) -> Tensor:
        """fp32 [num_lists, 1]: a different value for each list, all 1 where `threshold` is 1."""
        steps = torch.linspace(0.6, 1.0, self.num_lists, device=device)[:, None]
        return torch.ones_like(steps) if self.threshold == 1.0 else steps * self.threshold

    def sub_means(self, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Seeded fp16 means in order: q's [batch, num_q_heads, sub-rows, head_dim], k's likewise."""
        draw = torch.Generator(device=device).manual_seed(self.seqlen_k + self.num_q_heads)
        counts = ((self.num_q_heads, self.fine.num_q_blocks), (self.num_kv_heads, self.fine.num_k_blocks))
        means = []
        for heads, count in counts:
            common = torch.randn(1, heads, 1, head_dim, generator=draw, device=device)
            own = torch.randn(self.batch, heads, count, head_dim, generator=draw, device=device)
            means.append((common + own) * GAINS[self.means])
        q, k = means
        if self.means == "rising":
            k = k * torch.linspace(0, RISE, k.shape[2], device=device)[:, None]
        if self.means == "ties":
            k = k[:, :, :1].expand_as(k)
        return q.half(), k.half()


def tile_places(count: int, device: torch.device) -> Tensor:
    """Where sub-columns 0 .. count - 1 lie among k's means (templates/README.md), int64 [count]."""
    column = torch.arange(count, device=device)
    owner, index = column % TILE_COLUMNS // 32, column % 32
    return column - column % TILE_COLUMNS + index // 2 * 8 + owner * 2 + index % 2


def in_tile_order(k_means: Tensor) -> Tensor:
    """k_means [batch, heads, sub-columns, head_dim] as score reads them; NaN where no sub-column lies."""
    batch, heads, count, head_dim = k_means.shape
    rows = -(-count // TILE_COLUMNS) * TILE_COLUMNS
    placed = torch.full((batch, heads, rows, head_dim), float("nan"), dtype=k_means.dtype, device=k_means.device)
    placed[:, :, tile_places(count, k_means.device)] = k_means
    return placed


SIZES = ((8, 8), (4, 16), (4, 8), (16, 16), (16, 4))
# Rules beside the defaults, each with a threshold that means something to it.
RULES = (
    (SelectRules(share="group"), 0.9),
    (SelectRules(cut="top_k"), 5.0),
    (SelectRules(cut="density"), 0.3),
    (SelectRules(max_blocks=70), 0.99),
    (SelectRules(share="group", max_blocks=70), 0.99),
)
SUB_BLOCK_CASES = (
    *(SubBlockCase(n, n, *SIZES[i % 5], batch=1 + i % 2) for i, n in enumerate((1, 3, 17, 63, 129, 300, 641, 2085))),
    *(SubBlockCase(q, k, *SIZES[i % 5]) for i, (q, k) in enumerate(((1, 129), (5, 1029), (100, 1000), (300, 3001)))),
    *(SubBlockCase(400, 900, num_q_heads=q, num_kv_heads=kv) for q, kv in GROUPS),
    *(SubBlockCase(400, 900, num_q_heads=q, num_kv_heads=kv, rules=SelectRules(share="group")) for q, kv in GROUPS),
    *(SubBlockCase(4096, 4096, *SIZES[i % 5], means=kind) for i, kind in enumerate(GAINS)),
    *(SubBlockCase(2000, 2000, threshold=t) for t in (0.05, 0.5, 1.0)),
    *(SubBlockCase(2000, 2300, rules=rules, exclude_forced=i % 2 == 0) for i, rules in enumerate(FORCED)),
    *(SubBlockCase(n, n + 640, rules=rules, threshold=t, batch=2) for n in (300, 4096) for rules, t in RULES),
    SubBlockCase(2000, 2000, reduce="mean"),
    SubBlockCase(2000, 2000, 4, 8, reduce="mean", rules=SelectRules(share="group"), means="flat"),
    SubBlockCase(2000, 2000, means="flat", exclude_forced=True),
    SubBlockCase(4096, 4096, means="rising", exclude_forced=True, batch=2),
    # Longer than the rows that registers hold: 64 words of 32 blocks at 64 tokens are 131072.
    SubBlockCase(300, 150_000, 8, 8, num_kv_heads=1),
    SubBlockCase(300, 150_000, 16, 4, num_kv_heads=4, means="flat"),
    # More tiles than CTAs: reference points, sums and slots of one tile after another's.
    SubBlockCase(9001, 9001, 8, 8, num_q_heads=8, batch=2),
    SubBlockCase(4500, 4500, 4, 8, num_q_heads=12, num_kv_heads=4, batch=2, means="flat"),
)
QUICK_SUB_BLOCK_CASES = (
    SUB_BLOCK_CASES[1],
    SUB_BLOCK_CASES[5],
    SUB_BLOCK_CASES[10],
    SubBlockCase(200, 300, 4, 16, reduce="mean", rules=SelectRules(share="group")),
    SubBlockCase(300, 340, exclude_forced=True, means="flat"),
)
SANITIZER_SUB_BLOCK_CASES = (
    SubBlockCase(129, 300, num_q_heads=2, num_kv_heads=1),
    SubBlockCase(65, 2065, 4, 16, rules=SelectRules(share="group"), means="rising"),
)
