"""What a call gives beside its output, and the measures taken of it.

Owns Output, Stats and their definitions. Must not run a stage.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prism_gen.runtime.selection import Selection


class Stats(NamedTuple):
    """What a call selected, on its device (reading it synchronises).

    counts: int32 [batch, num_lists, num_q_blocks], selected key blocks. density: fp32 [batch, num_lists], selected over
    visible blocks. num_lists: q heads, or KV heads where a group shares its list. visible_blocks: of one list.
    """

    counts: Tensor
    density: Tensor
    visible_blocks: int

    @classmethod
    def of(cls, selection: Selection) -> Stats:
        """The statistics of a selection."""
        visible = selection.grid.total_visible
        return cls(selection.block_counts, selection.block_counts.sum(-1) / visible, visible)


class Output(NamedTuple):
    """out: like q. lse: natural log, [batch, num_q_heads, seqlen_q], or None. stats: or None."""

    out: Tensor
    lse: Tensor | None
    stats: Stats | None


def mass_kept(lse_sparse: Tensor, lse_dense: Tensor) -> Tensor:
    """Share of dense attention's probability that the selected blocks hold, per row, in [0, 1]; 0 for an empty row.

    lse_*: natural log, [batch, num_q_heads, seqlen_q]; dense means attend with every visible block selected.
    """
    return (lse_sparse - lse_dense).exp()


def relative_error(out: Tensor, exact: Tensor) -> Tensor:
    """|out - exact| / |exact| per head, Frobenius norms over batch, rows and dims; [num_q_heads] fp32.

    out, exact: [batch, seqlen_q, num_q_heads, head_dim]. A head of zeros that is reproduced has error 0.
    """
    difference, exact = (out.float() - exact.float()), exact.float()
    dims = (0, 1, 3)
    return (difference.square().sum(dims) / exact.square().sum(dims).clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
