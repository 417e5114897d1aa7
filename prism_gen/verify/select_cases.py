"""The cases of the section `select`: shapes, scores, thresholds, and the block means that carry them.

Owns which selection problems are tried. Must not judge answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.rules import PAPER_RULES, SelectRules

# "weak": the high band a twentieth of the low one, and one key block four times as long as the others; "low": nothing
# in the high band. "even": nearly the same for all key blocks; "strong": but for one, far above the others.
Scores = Literal["flat", "peaked", "ties", "zero", "weak", "low", "even", "strong"]
SCORES: tuple[Scores, ...] = ("flat", "peaked", "ties", "zero", "weak", "low", "even", "strong")
PEAKED_RANK = 6  # directions that blocks share: makes a few keys matter to each query block


@dataclass(frozen=True)
class SelectCase:
    """One selection problem. Lengths and block sizes in tokens; thresholds are drawn per head around `threshold`."""

    seqlen_q: int
    seqlen_k: int
    block_size_q: int = 128
    block_size_k: int = 128
    num_q_heads: int = 4
    num_kv_heads: int = 2
    batch: int = 1
    scores: Scores = "peaked"
    threshold: float = 0.9
    rules: SelectRules = PAPER_RULES

    def __str__(self) -> str:
        rules = self.rules
        forced = f"s{int(rules.force_sink)}r{int(rules.force_recent)}-{rules.share}-{rules.calibration}-{rules.cut}"
        forced += "" if rules.max_blocks is None else f"-max{rules.max_blocks}"
        shape = f"q{self.seqlen_q}k{self.seqlen_k}-{self.block_size_q}x{self.block_size_k}"
        return (
            f"{shape}-b{self.batch}-h{self.num_q_heads}:{self.num_kv_heads}-{self.scores}-t{self.threshold:g}-{forced}"
        )

    @property
    def grid(self) -> BlockGrid:
        """The case's block grid."""
        return BlockGrid(self.seqlen_q, self.seqlen_k, self.block_size_q, self.block_size_k)

    @property
    def num_lists(self) -> int:
        """Lists per query block."""
        return self.rules.num_lists(self.num_q_heads, self.num_kv_heads)

    @property
    def scratch_sizes(self) -> tuple[int, ...]:
        """The arguments of select's scratch_floats."""
        heads = (self.num_q_heads, self.num_kv_heads, int(self.rules.share == "group"))
        return (self.batch, *heads, self.grid.num_q_blocks, self.grid.num_k_blocks)

    def thresholds(self, device: torch.device) -> Tensor:
        """fp32 [num_lists, 2]: a different value for each list and band, all 1 where `threshold` is 1."""
        steps = torch.linspace(0.6, 1.0, 2 * self.num_lists, device=device).reshape(2, -1).T
        return (torch.ones_like(steps) if self.threshold == 1.0 else steps * self.threshold).contiguous()

    def means(self, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Seeded q and k block means, fp32 [batch, heads, num_blocks, head_dim]."""
        draw = torch.Generator(device=device).manual_seed(self.seqlen_k + self.num_q_heads)
        shapes = ((self.num_q_heads, self.grid.num_q_blocks), (self.num_kv_heads, self.grid.num_k_blocks))
        basis = torch.randn(PEAKED_RANK, head_dim, generator=draw, device=device)
        means = []
        for heads, blocks in shapes:
            mean = torch.randn(self.batch, heads, blocks, head_dim, generator=draw, device=device)
            if self.scores == "peaked":
                weights = torch.randn(self.batch, heads, blocks, PEAKED_RANK, generator=draw, device=device)
                mean = 0.2 * mean + weights @ basis
            if self.scores == "ties":
                mean = mean[:, :, :1].expand_as(mean).contiguous()
            if self.scores == "zero":
                mean = torch.zeros_like(mean)
            if self.scores in ("weak", "low"):
                high = torch.arange(head_dim, device=device) % (head_dim // 2) < head_dim // 4  # of half-split pairs
                mean = torch.where(high, mean * (0.05 if self.scores == "weak" else 0.0), mean)
                mean[:, :, blocks // 2] *= 4.0
            if self.scores in ("even", "strong"):
                mean *= 0.3
            means.append(mean)
        q_mean, k_mean = means
        if self.scores == "strong":
            common = torch.randn(head_dim, generator=torch.Generator(device=device).manual_seed(1), device=device)
            q_mean += common
            k_mean[:, :, self.grid.num_k_blocks // 3] += common
        return q_mean, k_mean

    def tokens(self, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Seeded q and k [batch, seqlen, heads, head_dim]: this case's means, repeated, under noise."""
        draw = torch.Generator(device=device).manual_seed(self.seqlen_q)
        sizes = ((self.block_size_q, self.seqlen_q), (self.block_size_k, self.seqlen_k))
        tokens = []
        for mean, (block_size, seqlen) in zip(self.means(head_dim, device), sizes, strict=True):
            spread = mean.repeat_interleave(block_size, 2)[:, :, :seqlen].transpose(1, 2)
            tokens.append((spread + torch.randn(spread.shape, generator=draw, device=device)).to(dtype).contiguous())
        return tokens[0], tokens[1]


GROUPS = ((1, 1), (3, 1), (9, 3), (5, 1), (16, 2), (8, 8))
FORCED = (SelectRules(force_recent=False), SelectRules(force_sink=False), SelectRules(False, False))
# Rules beside the paper's, each with a threshold that means something to it.
RULES = (
    (SelectRules(share="group"), 0.9),
    (SelectRules(share="group", calibration="prefix"), 0.6),
    (SelectRules(calibration="prefix"), 0.9),
    (SelectRules(cut="top_k"), 5.0),
    (SelectRules(cut="density"), 0.3),
    (SelectRules(max_blocks=6), 0.9),
    (SelectRules(share="group", max_blocks=5), 0.95),
)
GROUP = SelectRules(share="group")  # below also of more heads than most shapes have rows for
SELECT_CASES = (
    *(SelectCase(n, n, batch=1 + n % 2) for n in (1, 17, 63, 128, 129, 300, 641)),
    *(SelectCase(q, k, 128, 64) for q, k in ((129, 129), (64, 192), (100, 1000), (1, 2000), (1500, 1500))),
    *(SelectCase(q, k, 64, 64, batch=2) for q, k in ((65, 65), (63, 64), (200, 1029), (1999, 1999))),
    *(SelectCase(400, 900, num_q_heads=q, num_kv_heads=kv) for q, kv in GROUPS),
    SelectCase(400, 900, num_q_heads=24, num_kv_heads=1, rules=GROUP),
    SelectCase(300, 140_000, num_q_heads=40, num_kv_heads=1, rules=GROUP),
    *(SelectCase(4096, 4096, scores=s) for s in SCORES),
    *(SelectCase(2000, 2000, threshold=t) for t in (0.05, 0.5, 1.0)),
    *(SelectCase(2000, 2300, scores="flat", rules=rules) for rules in FORCED),
    *(SelectCase(n, n + 640, rules=rules, threshold=t, batch=2) for n in (300, 4096) for rules, t in RULES),
    *(SelectCase(2000, 2000, 128, 64, scores="ties", rules=rules, threshold=t) for rules, t in RULES),
    *(SelectCase(300, 70_000, 128, 64, num_q_heads=8, rules=rules, threshold=t) for rules, t in RULES),
    *(SelectCase(300, 150_000, 64, 64, num_q_heads=5, num_kv_heads=1, rules=rules, threshold=t) for rules, t in RULES),
    SelectCase(16384, 16384, 64, 64, num_q_heads=2, num_kv_heads=1, scores="flat"),
    SelectCase(32768, 32768, 128, 64, num_q_heads=2, num_kv_heads=1),
    # Long rows, under the paper's rules a path of their own.
    *(SelectCase(5000, 150_000, 64, 64, scores=s) for s in SCORES),
    *(SelectCase(3000, 150_001, 64, 64, threshold=t, batch=2) for t in (0.05, 0.5, 1.0)),
    *(SelectCase(300, 150_000, 64, 64, num_q_heads=q, num_kv_heads=kv, scores="flat") for q, kv in GROUPS),
    SelectCase(20_000, 150_000, 64, 64, num_q_heads=7, num_kv_heads=1, scores="flat"),
    SelectCase(100_000, 131_072, 128, 128, num_q_heads=4, num_kv_heads=2),
    # The shortest of them: 512 blocks are still another kernel's, 513 with one q block and more.
    *(
        SelectCase(q, k, 64, 64, batch=2, scores="flat")
        for q, k in ((300, 512 * 64), (300, 512 * 64 + 1), (1, 513 * 64))
    ),
    SelectCase(36_900, 36_900, 64, 64, num_q_heads=2, num_kv_heads=1, batch=2),
    SelectCase(70_000, 70_000, 64, 64, num_q_heads=7, num_kv_heads=1, scores="flat"),
    # Lists after the passes of other rows, and beside them: where each of an H200's SMs has two works of these or more.
    *(
        SelectCase(70_000, 1536 * 64, 64, 64, num_q_heads=7 * heads, num_kv_heads=heads, scores="flat")
        for heads in (2, 4)
    ),
    SelectCase(300, 1 << 19, 64, 64, num_q_heads=2, num_kv_heads=1),
    SelectCase(129, 1 << 20, 64, 64, num_q_heads=3, num_kv_heads=1, scores="flat"),
    # A threshold so near 1 that each of many equal masses is needed for its share.
    SelectCase(65, 89_600, 64, 64, scores="zero", threshold=0.9999999),
    # Under other rules rows of 8192 key blocks fill shared memory, rows of 16384 take the scratch path; under the
    # paper's, rows of more than 65535.
    SelectCase(300, 1 << 19, 64, 64, num_q_heads=2, num_kv_heads=1, rules=SelectRules(calibration="prefix")),
    SelectCase(
        129, 1 << 20, 64, 64, num_q_heads=3, num_kv_heads=1, scores="flat", rules=SelectRules(calibration="prefix")
    ),
    SelectCase(65, 66_000 * 64, 64, 64, num_q_heads=2, num_kv_heads=1, scores="flat"),
)
QUICK_SELECT_CASES = (
    SELECT_CASES[4],
    SELECT_CASES[9],
    SELECT_CASES[13],
    SelectCase(1000, 1000, scores="ties"),
    *(SelectCase(300, 940, rules=rules, threshold=t) for rules, t in RULES),
)
FUSED_CASES = (
    SelectCase(129, 129),
    SelectCase(300, 1000, 128, 64, batch=2),
    SelectCase(1000, 1000, 64, 64),
    SelectCase(4096, 4096, num_q_heads=8),
    SelectCase(4096, 4096, 128, 64, num_q_heads=8, scores="flat"),
    SelectCase(4096, 5000, 64, 64, num_q_heads=8, scores="flat"),
)
SANITIZER_SELECT_CASES = (
    SelectCase(129, 300, num_q_heads=2, num_kv_heads=1),
    SelectCase(300, 150_000, 64, 64),
    SelectCase(65, 65, 64, 64, scores="ties"),
    SelectCase(65, 70_000, 64, 64, scores="zero"),
    SelectCase(300, 70_000, 128, 64, rules=SelectRules(share="group", calibration="prefix", max_blocks=9)),
)
