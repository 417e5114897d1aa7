"""What calibrate asks of a model: to run with attention as a callable.

Owns that protocol. Must not load models (integrations/text_model.py does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from prism_gen.calibrate.divergence import Predictions
from prism_gen.model import ModelSpec

# Layer, q [batch, tokens, num_q_heads, head_dim], k and v [batch, tokens, num_kv_heads, head_dim], post-RoPE -> like q.
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class CausalModel(Protocol):
    """A decoder whose attention is a callable, with gradients through it."""

    @property
    def spec(self) -> ModelSpec:
        """Its shapes, and the selection that is calibrated."""
        ...

    def nll(self, ids: Tensor, attention: Attention) -> Tensor:
        """Negative log-likelihood of each next token, [batch, tokens - 1]; ids: int64 [batch, tokens]."""
        ...

    def predictions(self, ids: Tensor, attention: Attention) -> Predictions:
        """Its logits, in parts, and the tokens that follow."""
        ...
