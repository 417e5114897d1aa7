"""The three stages behind one interface, and its plain-torch form.

Owns the Backend protocol that PrismAttention drives. Arguments arrive checked (checks.py). Must not resolve or load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor

from prism_gen.rope import Bands
from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.rules import PAPER_RULES, SelectRules
from prism_gen.runtime.selection import Selection


class Pooled(NamedTuple):
    """What select needs of q and k.

    *_mean: [batch, num_heads, num_blocks, head_dim]. *_energy: [batch, num_heads, num_blocks, 3]. fp32 (fp64 for fp64
    inputs).
    """

    q_mean: Tensor
    k_mean: Tensor
    q_energy: Tensor
    k_energy: Tensor
    grid: BlockGrid


class Backend(Protocol):
    """Stages as reference.py defines them."""

    @property
    def name(self) -> str:
        """ "cuda" or "reference"."""
        ...

    def pool(self, x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        """Means and energies of the blocks of x [batch, seqlen, num_heads, head_dim]."""
        ...

    def select(self, pooled: Pooled, thresholds: Tensor, *, with_probs: bool) -> Selection:
        """The chosen blocks; thresholds: fp32 [num_lists, 2] on the device of pooled."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """out like q, and lse [batch, num_q_heads, seqlen_q] or None."""
        ...


@dataclass(frozen=True)
class ReferenceBackend:
    """reference.py on whatever device the tensors are on."""

    bands: Bands
    rules: SelectRules = PAPER_RULES
    name: str = "reference"

    def pool(self, x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
        """See Backend.pool."""
        return reference.pool(x, block_size, self.bands)

    def select(self, pooled: Pooled, thresholds: Tensor, *, with_probs: bool) -> Selection:
        """See Backend.select; the probabilities exist anyway and are left out unless asked for."""
        chosen = reference.select(
            pooled.q_mean,
            pooled.k_mean,
            pooled.q_energy,
            pooled.k_energy,
            thresholds,
            bands=self.bands,
            grid=pooled.grid,
            rules=self.rules,
        )
        return chosen if with_probs else replace(chosen, probs=None)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, selection: Selection, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend.attend."""
        out, lse = reference.attend(q, k, v, selection, softmax_scale=softmax_scale)
        return out, lse if return_lse else None
