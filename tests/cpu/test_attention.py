"""PrismAttention on the reference backend: stages, shards, thresholds, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prism_gen.model import ModelSpec
from prism_gen.runtime import Output, PrismAttention, Selection
from prism_gen.runtime.results import mass_kept, relative_error


def qkv(seqlen_q: int = 300, seqlen_k: int = 400, *, heads: tuple[int, int] = (9, 3)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(tokens: int, num_heads: int) -> Tensor:
        return torch.randn(2, tokens, num_heads, 64, generator=generator).bfloat16()

    return normal(seqlen_q, heads[0]), normal(seqlen_k, heads[1]), normal(seqlen_k, heads[1])


@pytest.fixture(scope="module")
def attention(model: ModelSpec) -> PrismAttention:
    return PrismAttention(None, model, 3, backend="reference", high_threshold=0.5, low_threshold=0.5)


@pytest.mark.parametrize("block_size", [(64, 64), (128, 64)], ids=str)
def test_a_call_is_its_stages_chained(model: ModelSpec, block_size: tuple[int, int]) -> None:
    attention = PrismAttention(None, model, backend="reference", block_size=block_size, high_threshold=0.5)
    q, k, v = qkv()
    whole = attention(q, k, v, return_lse=True, return_stats=True)
    assert isinstance(whole, Output)
    selection = attention.select(attention.pool(q, k))
    out, lse = attention.attend(q, k, v, selection, return_lse=True)
    assert whole.out.equal(out)
    assert whole.lse is not None
    assert whole.lse.equal(lse)
    assert attention(q, k, v).equal(out)


def test_statistics_count_the_selected_blocks(attention: PrismAttention) -> None:
    q, k, v = qkv()
    selection = attention.select(attention.pool(q, k))
    stats = attention(q, k, v, return_stats=True).stats
    mask = selection.block_mask()
    assert stats.counts.equal(mask.sum(-1).int())
    assert stats.visible_blocks == attention.grid(q, k).total_visible == 3 + 4 + 5 + 6 + 7
    torch.testing.assert_close(stats.density, mask.sum((-1, -2)) / stats.visible_blocks)
    assert float(stats.density.min()) < 1


def test_threshold_one_is_dense_attention_and_keeps_all_mass(attention: PrismAttention) -> None:
    q, k, v = (x.float() for x in qkv(130, 130))
    everything = attention.make_thresholds(1.0, 1.0)
    result = attention(q, k, v, thresholds=everything, return_lse=True, return_stats=True)
    dense, dense_lse = attention.attend(
        q, k, v, Selection.all_visible(attention.grid(q, k), 2, 9, q.device), return_lse=True
    )
    assert result.out.equal(dense)
    assert bool((result.stats.density == 1).all())
    assert bool((mass_kept(result.lse, dense_lse) == 1).all())
    causal = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(dense, causal.transpose(1, 2))


def test_a_shard_of_the_heads_computes_what_the_whole_model_does(attention: PrismAttention) -> None:
    q, k, v = qkv()
    whole = attention(q, k, v)
    for rank in range(3):
        mine = slice(3 * rank, 3 * rank + 3)
        assert attention(q[:, :, mine], k[:, :, rank : rank + 1], v[:, :, rank : rank + 1]).equal(whole[:, :, mine])


def test_thresholds_per_head(attention: PrismAttention) -> None:
    """Head h alone at threshold t equals head h of a call where every head has its own."""
    q, k, v = qkv()
    per_head = torch.linspace(0.1, 1.0, 9)
    mixed = attention(q, k, v, thresholds=attention.make_thresholds(per_head, per_head), return_stats=True)
    for head in (0, 4, 8):
        value = float(per_head[head])
        alone = attention(q, k, v, thresholds=attention.make_thresholds(value, value), return_stats=True)
        assert mixed.stats.counts[:, head].equal(alone.stats.counts[:, head])
    counts = mixed.stats.counts.sum((0, 2))
    assert counts[0] < counts[4] < counts[8]


def test_softmax_scale_defaults_to_the_models(attention: PrismAttention) -> None:
    q, k, v = qkv()
    assert attention(q, k, v).equal(attention(q, k, v, softmax_scale=1 / math.sqrt(64)))
    assert not attention(q, k, v).equal(attention(q, k, v, softmax_scale=0.3))


def test_strided_views_give_the_same_answer(attention: PrismAttention) -> None:
    """[batch, heads, seqlen, dim] storage seen as [batch, seqlen, heads, dim], and a slice of a longer cache."""
    q, k, v = qkv()
    heads_first = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    cache = [torch.cat([x, x], dim=1)[:, : x.shape[1]] for x in (k, v)]
    assert attention(*heads_first).equal(attention(q, k, v))
    assert attention(q, *cache).equal(attention(q, k, v))


def test_probabilities_come_only_when_asked_for(attention: PrismAttention) -> None:
    q, k, _ = qkv()
    pooled = attention.pool(q, k)
    assert attention.select(pooled).probs is None
    assert attention.select(pooled, with_probs=True).probs.shape == (2, 9, 2, 5, 7)


def test_model_by_name_and_by_config(make_bundle: Callable[..., Path], model: ModelSpec) -> None:
    config = Path(__file__).parents[1] / "models/smollm2-135m-instruct.json"
    bundle = make_bundle()
    by_name = PrismAttention(bundle, "smollm2", backend="reference")
    by_config = PrismAttention(None, config, backend="reference", block_size=(64, 64))
    assert by_name.model == PrismAttention(bundle, backend="reference").model == model
    assert (by_config.model.num_q_heads, by_config.model.num_kv_heads, by_config.model.head_dim) == (9, 3, 64)
    q, k, v = qkv()
    assert by_name(q, k, v).equal(by_config(q, k, v))


def test_relative_error_of_a_head_of_zeros() -> None:
    exact = torch.zeros(1, 5, 2, 4)
    exact[:, :, 1] = 2.0
    assert relative_error(exact.clone(), exact).tolist() == [0.0, 0.0]
    assert relative_error(1.5 * exact, exact).tolist() == [0.0, 0.5]
