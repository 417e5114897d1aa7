"""top_k, density and list capacity of a model's selection, from its config to PrismAttention's lists."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.model import ModelSpec
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_cut import cut, forced_blocks
from prism_gen.runtime.rules import SelectRules


def qk() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 700, heads, 64, generator=generator).bfloat16() for heads in (9, 3))
    return q, k


def attention_of(model: ModelSpec, **selection: object) -> PrismAttention:
    changed = msgspec.structs.replace(model, selection=msgspec.structs.replace(model.selection, **selection))
    return PrismAttention(None, changed, backend="reference", block_size=(64, 64))


@pytest.mark.parametrize(("field", "value"), [("top_k", 2), ("density", 0.3)])
def test_a_row_keeps_the_counted_blocks_of_each_band_and_the_forced_ones(
    model: ModelSpec, field: str, value: float
) -> None:
    attention = attention_of(model, **{field: value})
    grid = BlockGrid(700, 700, 64, 64)
    selection = attention.select(attention.pool(*qk()), with_probs=True)
    assert selection.probs is not None
    kept = cut(selection.probs, torch.full((9, 2), value), grid, attention.model.selection.cut)
    for i in range(grid.num_q_blocks):
        seen = grid.num_visible(i)
        wanted = min(seen, value) if field == "top_k" else -(-value * seen // 1)
        assert bool((kept[:, :, :, i].sum(-1) == wanted).all())
    forced = forced_blocks(grid, SelectRules(), torch.device("cpu"))
    assert selection.block_mask().equal(kept.any(2) | forced)


def test_each_list_may_have_its_own_count(model: ModelSpec) -> None:
    attention = attention_of(model, top_k=1, force_sink=False, force_recent=False)
    one, several = [1] * 8 + [5], [5] * 9
    pooled = attention.pool(*qk())
    counts = attention.select(pooled, thresholds=attention.make_thresholds(one, one)).block_counts
    more = attention.select(pooled, thresholds=attention.make_thresholds(several, several)).block_counts
    assert int(counts[:, :8].max()) <= 2
    assert counts[:, 8].equal(more[:, 8])


def test_a_list_holds_at_most_max_blocks_and_tells_what_was_wanted(model: ModelSpec) -> None:
    free, bound = (attention_of(model, max_blocks=most) for most in (None, 4))
    wanted = free.select(free.pool(*qk())).block_counts
    lists = bound.select(bound.pool(*qk()))
    assert lists.block_indices.shape[-1] == 4
    assert int(wanted.max()) > 4
    assert lists.wanted_counts is not None
    assert lists.wanted_counts.equal(wanted)
    fits = wanted <= 4
    assert int(lists.block_counts.max()) <= 4
    assert lists.block_counts[fits].equal(wanted[fits])
    tight = attention_of(model, max_blocks=1)
    pooled = tight.pool(*qk())
    with pytest.raises(TensorError, match=r"max_blocks is 1[\s\S]*at least 2"):
        tight.select(pooled)


@pytest.mark.parametrize(
    ("field", "value", "bad", "words"),
    [("top_k", 4, 0.0, "a number of key blocks"), ("density", 0.5, 1.5, "a share of the visible blocks")],
)
def test_what_a_rule_does_not_take_is_refused(
    model: ModelSpec, field: str, value: float, bad: float, words: str
) -> None:
    with pytest.raises(TensorError, match=rf"high_threshold is {bad}[\s\S]*{words}"):
        attention_of(model, **{field: value}).make_thresholds(bad)
