"""Thresholds of each band: numbers from a caller to one checked fp32 tensor on the device.

Owns their range and layout, and which of them an estimator has. Must not know kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.model import CutKind, ModelSpec
from prism_gen.sub_blocks import estimator_label, sub_blocks

ThresholdLike = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Thresholds:
    """Checked thresholds; made by PrismAttention.make_thresholds.

    values: fp32 [num_lists, bands]: (high, low) of the paper's estimator, or the one of subblock. num_lists: q heads,
    or KV heads where a group shares its list. uniform: all lists have the same, so any shard of the heads may use it.
    """

    values: Tensor
    uniform: bool

    def rows(self, num_lists: int, device: torch.device) -> Tensor:
        """fp32 [num_lists, bands] on `device`, without a copy where they are there already.

        Raises: TensorError where thresholds per list were made for another number of lists.
        """
        if not self.uniform and len(self.values) != num_lists:
            raise TensorError(
                f"thresholds for {len(self.values)} lists of blocks, this call has {num_lists}",
                exists="one pair for all lists, or one per list of this call",
                fix="make_thresholds with the values of this shard's heads",
            )
        return self.values[:num_lists].to(device)


def choose_thresholds(
    model: ModelSpec,
    layer: int,
    block_size: tuple[int, int],
    *,
    high: ThresholdLike | None = None,
    low: ThresholdLike | None = None,
    threshold: ThresholdLike | None = None,
) -> dict[str, ThresholdLike]:
    """The thresholds that the model's estimator has, by name: those given, else those of its profile or of all layers.

    Raises: TensorError for one that the estimator does not have; ConfigError where the profile is for something else.
    """
    selection = model.selection
    asked = {"high_threshold": high, "low_threshold": low, "threshold": threshold}
    models: dict[str, ThresholdLike] = {"threshold": selection.threshold}
    if selection.estimator == "paper":
        models = {"high_threshold": selection.high_freq_threshold, "low_threshold": selection.low_freq_threshold}
    if (count := selection.density if selection.top_k is None else selection.top_k) is not None:
        models = dict.fromkeys(models, float(count))
    if selection.profile is not None and all(value is None for value in asked.values()):
        label = estimator_label(sub_blocks(selection, model.rope, model.head_dim, block_size))
        of_layer = selection.profile.of_layer(layer, estimator=label, block_size=block_size)
        models = dict.fromkeys(models, of_layer)
    for name, value in asked.items():
        if value is not None and name not in models:
            raise TensorError(
                f"{name} is given for estimator {selection.estimator!r}",
                exists=f"its thresholds: {', '.join(models)}",
                fix="give one of these, or choose another estimator in the model's selection",
            )
    chosen = {name: asked[name] for name in models}
    return {name: models[name] if value is None else value for name, value in chosen.items()}


def make_thresholds(
    named: Mapping[str, ThresholdLike], num_lists: int, device: torch.device | None, cut: CutKind = "top_p"
) -> Thresholds:
    """Checks and places them. named: one entry a band; see threshold_column. device: None leaves them on the CPU.

    Raises: TensorError for NaN, a value out of range, or lengths that do not fit.
    """
    columns = [threshold_column(name, value, num_lists, cut) for name, value in named.items()]
    rows = max(map(len, columns))
    if any(len(column) not in (1, rows) for column in columns):
        (first, *others), lengths = named, list(map(len, columns))
        raise TensorError(
            f"{first} has {lengths[0]} values, "
            + ", ".join(f"{n} {x}" for n, x in zip(others, lengths[1:], strict=True)),
            exists="one value, or one per list of blocks, as many in both",
            fix="give both the same length",
        )
    uniform = rows == 1
    repeats = num_lists if uniform else rows
    values = torch.tensor([c * repeats if len(c) == 1 else c for c in columns], dtype=torch.float32).T.contiguous()
    return Thresholds(values if device is None else values.to(device), uniform)


class _Range(NamedTuple):
    """What a threshold may be: in (0, most], in words, and what to do about another."""

    most: float
    words: str
    fix: str


_RANGES: dict[CutKind, _Range] = {
    "top_p": _Range(
        1.0,
        "a cumulative probability in (0, 1]; 1 selects every visible block",
        "the paper uses 0.95 for Llama and 0.93 for Qwen; sub-blocks of 8 use 0.94",
    ),
    "top_k": _Range(float(1 << 24), "a number of key blocks above 0, rounded up", "give how many a row keeps"),
    "density": _Range(1.0, "a share of the visible blocks in (0, 1]", "give for example 0.1"),
}


def threshold_column(name: str, value: ThresholdLike, num_lists: int, cut: CutKind = "top_p") -> list[float]:
    """One band's thresholds as host numbers: one for all lists, or one per list.

    value: what `cut` takes; a number, a sequence or a tensor whose length divides num_lists (a tensor-parallel shard).
    Raises: TensorError for NaN, values out of range, or another length.
    """
    allowed = _RANGES[cut]
    given = value.detach().flatten().tolist() if isinstance(value, Tensor) else value
    try:
        numbers = [float(x) for x in given] if isinstance(given, Sequence) else [float(given)]
    except (TypeError, ValueError):
        raise TensorError(
            f"{name} is {value!r}",
            exists=f"{allowed.words}, or one per list of blocks",
            fix="give a number, a sequence or a tensor",
        ) from None
    if not numbers or num_lists % len(numbers):
        raise TensorError(
            f"{name} has {len(numbers)} values",
            exists=f"one value, or one per list of blocks ({num_lists})",
            fix="give either",
        )
    for row, number in enumerate(numbers):
        if not 0.0 < number <= allowed.most:  # also refuses NaN
            where = f" for list {row}" if len(numbers) > 1 else ""
            raise TensorError(f"{name} is {number}{where}", exists=allowed.words, fix=allowed.fix)
    return numbers
