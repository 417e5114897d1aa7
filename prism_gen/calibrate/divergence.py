"""How far a sparse model's predictions are from the dense model's.

Owns the Kullback-Leibler divergence. Unlike the change of perplexity it is never negative and carries no noise of the
text, so that it tells small changes of one list of blocks apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# Logits, fp32 [batch, some tokens, words], and the tokens that follow, int64 [batch, some tokens].
Predictions = Iterable[tuple[Tensor, Tensor]]


class Distance(NamedTuple):
    """Of each sequence, mean over its tokens, nats: KL(dense || sparse), and the negative log-likelihood added."""

    divergence: tuple[float, ...]
    added_nll: tuple[float, ...]


class DensePredictions:
    """The dense model's predictions, kept whole: 4 bytes a token and word, 1.6 GB for 8192 tokens of 49,152 words."""

    def __init__(self, predictions: Predictions) -> None:
        self._probs: list[Tensor] = []
        self._tokens = 0
        self._entropy, self._nll = self._sums(predictions, keep=True)

    def distance(self, predictions: Predictions) -> Distance:
        """Of a model's predictions of the same tokens, in the same parts."""
        crossed, nll = self._sums(predictions, keep=False)
        divergence, added = (crossed - self._entropy) / self._tokens, (nll - self._nll) / self._tokens
        return Distance(tuple(divergence.tolist()), tuple(added.tolist()))

    def _sums(self, predictions: Predictions, *, keep: bool) -> tuple[Tensor, Tensor]:
        """-sum p log q with the dense p, and -log q of the tokens that follow; fp64 [batch]."""
        crossed, nll = [], []
        for part, (logits, targets) in enumerate(predictions):
            log_probs = logits.log_softmax(-1)
            if keep:
                self._probs.append(log_probs.exp())
                self._tokens += targets.shape[1]
            # a batch of dot products reads both once
            products = torch.bmm(self._probs[part].flatten(0, 1)[:, None], log_probs.flatten(0, 1)[..., None])
            crossed.append(-products.reshape(targets.shape).double().sum(-1))
            nll.append(-log_probs.gather(-1, targets[..., None]).double().sum((-2, -1)))
        return torch.stack(crossed).sum(0), torch.stack(nll).sum(0)
