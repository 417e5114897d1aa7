"""The attention mask of one forward pass: lengths and padding for Prism, a dense mask only for who asks.

Owns what transformers' AttentionMaskInterface calls. A dense mask of 128K tokens takes 17 GB, so none is made before a
dense layer needs it. Must not attend.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask

from prism_gen.errors import UnsupportedError

OLDEST = "5.4"  # of transformers: mask functions before it were told positions in place of lengths


def check_transformers() -> None:
    """Raises: UnsupportedError where the installed transformers does not call mask functions as prism_mask expects."""
    if "q_length" not in inspect.signature(sdpa_mask).parameters:
        raise UnsupportedError(
            f"transformers {transformers.__version__} is installed",
            exists=f"{OLDEST} and newer",
            fix="pip install -U transformers",
        )


class Segment(NamedTuple):
    """Sequences of a batch whose real tokens lie at the same places, and what this pass brings of them.

    rows: of the batch. queries: of the pass, the real ones. keys: of the KV cache, the real ones up to the last query.
    """

    rows: slice
    queries: slice
    keys: slice


class LazyMask:
    """Which keys the queries of one forward pass see. ndim and shape are those of the dense mask.

    segments: where every real query sees the real keys up to itself: what Prism runs, one call a segment. None: by
    other rules (windows, packed sequences, padding between tokens, lengths that a graph does not know).
    """

    ndim = 4

    def __init__(self, arguments: dict[str, Any], segments: tuple[Segment, ...] | None) -> None:
        """arguments: those of transformers' mask functions."""
        self._arguments = arguments
        self.segments = segments
        self._made: dict[Callable[..., Tensor | None], Tensor | None] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[batch, 1, queries, keys]."""
        return self._arguments["batch_size"], 1, self._arguments["q_length"], self._arguments["kv_length"]

    @property
    def num_keys(self) -> int:
        """Tokens of the longest sequence so far, padding left out; 0 without segments."""
        lengths: list[int] = [keys.stop - keys.start for _, _, keys in self.segments or ()]
        return max([0, *lengths])  # a list, because torch.compile cannot trace max with a default

    def sdpa(self) -> Tensor | None:
        """Boolean, or None where torch's is_causal says the same."""
        return self._make(sdpa_mask)

    def eager(self) -> Tensor:
        """Added to the logits; never None."""
        made = self._make(eager_mask)
        assert made is not None  # eager_mask leaves out masks of bidirectional models alone
        return made

    def _make(self, function: Callable[..., Tensor | None]) -> Tensor | None:
        if function not in self._made:
            self._made[function] = function(**self._arguments)
        return self._made[function]


def prism_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | LazyMask | None = None,
    **options: Any,
) -> Tensor | LazyMask | None:
    """The mask function of attention implementation "prism", called once a forward pass for each kind of layer.

    attention_mask: bool [batch, tokens so far], False where padded. A decode step gets its dense mask at once.
    Waits for the device where there is padding to look at or a static cache to ask for its length, as sdpa's does.
    """
    if isinstance(attention_mask, LazyMask):
        return attention_mask  # generate() makes the mask of a static cache itself, and passes it on
    arguments: dict[str, Any] = dict(
        options,
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
    )
    if q_length == 1:
        return sdpa_mask(**arguments)
    if mask_function is not causal_mask_function or kv_offset != 0:
        return LazyMask(arguments, None)
    if torch.compiler.is_compiling() and (attention_mask is not None or isinstance(q_offset, Tensor)):
        return LazyMask(arguments, None)
    first_query = int(q_offset)
    return LazyMask(arguments, _segments(attention_mask, batch_size, first_query, first_query + q_length))


def _segments(padding: Tensor | None, batch_size: int, first: int, end: int) -> tuple[Segment, ...] | None:
    """The segments of queries first .. end - 1; None where padding lies between real tokens."""
    if padding is None:
        return (Segment(slice(0, batch_size), slice(0, end - first), slice(0, end)),)
    ranges = real_ranges(padding, end)
    if ranges is None:
        return None
    if set(ranges) == {(0, end)}:
        return (Segment(slice(0, batch_size), slice(0, end - first), slice(0, end)),)
    return tuple(
        Segment(slice(row, row + 1), slice(max(start, first) - first, stop - first), slice(start, stop))
        for row, (start, stop) in enumerate(ranges)
        if stop > max(start, first)
    )


def real_ranges(padding: Tensor, num_tokens: int) -> list[tuple[int, int]] | None:
    """First real token and the one after the last, of each sequence, among the first num_tokens.

    padding: bool [batch, any length], False where padded; what it does not reach is padded. (0, 0) for a sequence of
    padding alone. None where a sequence has padding between real tokens. Waits for the device.
    """
    seen = padding[:, :num_tokens].to(torch.int32)
    count, first = seen.sum(1), seen.argmax(1)
    last = seen.shape[1] - seen.flip(1).argmax(1)
    ranges = []
    for tokens, start, stop in torch.stack([count, first, last], 1).tolist():
        if tokens and stop - start != tokens:
            return None
        ranges.append((start, stop) if tokens else (0, 0))
    return ranges
