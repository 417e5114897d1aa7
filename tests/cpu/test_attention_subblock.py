"""PrismAttention with estimator subblock on the reference backend, end to end."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from prism_gen.errors import TensorError, UnsupportedError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.runtime import PrismAttention, reference_subblock
from prism_gen.runtime.reference_pool import pool
from prism_gen.runtime.rules import SelectRules
from prism_gen.sub_blocks import SubBlocks

FINE = SelectionSpec(block_sizes=((64, 64), (128, 64)), estimator="subblock", sub_block_q=4, threshold=0.6)


@pytest.fixture(scope="module")
def fine(model: ModelSpec) -> ModelSpec:
    """The small model with sub-blocks of 4 x 8."""
    return msgspec.structs.replace(model, selection=FINE)


def sequences(sample: dict[str, Tensor], tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real q [1, tokens, 9, 64], k, v [1, tokens, 3, 64]: the sample's group three times, shifted."""

    def shifted(x: Tensor) -> Tensor:
        return torch.cat([x[:, 100 * g :][:, :tokens] for g in range(3)]).movedim(0, 1)[None]

    return shifted(sample["q"]), shifted(sample["k"]), shifted(sample["v"])


@pytest.mark.parametrize("share", ["head", "group"])
@pytest.mark.parametrize("block_size", [(64, 64), (128, 64)], ids=str)
def test_a_call_selects_what_the_reference_defines(
    fine: ModelSpec, sample: dict[str, Tensor], block_size: tuple[int, int], share: str
) -> None:
    selection = msgspec.structs.replace(FINE, share=share)
    model = msgspec.structs.replace(fine, selection=selection)
    attention = PrismAttention(None, model, backend="reference", block_size=block_size)
    q, k, v = sequences(sample, 1000)
    result = attention(q, k, v, return_stats=True)
    grid, scoring = attention.grid(q, k), SubBlocks(4, 8)
    lists = 9 if share == "head" else 3
    expected = reference_subblock.select(
        pool(q, 4, None)[0],
        pool(k, 8, None)[0],
        torch.full((lists, 1), 0.6),
        sub_blocks=scoring,
        grid=grid,
        softmax_scale=0.125,
        rules=SelectRules(share="group" if share == "group" else "head"),
    )
    assert result.stats.counts.equal(expected.block_counts)
    out, _ = attention.attend(q, k, v, expected)
    assert result.out.equal(out)
    assert 0.02 < float(result.stats.density.mean()) < 0.8


def test_chunks_with_pooled_keys_give_what_one_call_gives(fine: ModelSpec, sample: dict[str, Tensor]) -> None:
    attention = PrismAttention(None, fine, backend="reference")
    q, k = (x.float() for x in sequences(sample, 450)[:2])
    whole = attention.select(attention.pool(q, k)).block_mask()
    cache = attention.pooled_keys(batch=1, max_tokens=450, like=k)
    for start, end in ((0, 128), (128, 192), (192, 450)):
        pooled = attention.pool(q[:, start:end], k[:, :end], pooled_keys=cache)
        mask = attention.select(pooled).block_mask()
        first = start // 64
        assert mask.equal(whole[:, :, first : first + mask.shape[2], : mask.shape[3]])
    assert cache.mean.shape == (1, 3, 57, 64)
    assert cache.energy.shape == (1, 3, 57, 0)


def test_softmax_scale_sharpens_the_selection(fine: ModelSpec, sample: dict[str, Tensor]) -> None:
    attention = PrismAttention(None, fine, backend="reference")
    q, k, v = sequences(sample, 1000)
    usual, sharp = (
        float(attention(q, k, v, return_stats=True, softmax_scale=scale).stats.density.mean()) for scale in (None, 0.5)
    )
    assert sharp < usual


def test_one_threshold_per_head(fine: ModelSpec, sample: dict[str, Tensor]) -> None:
    attention = PrismAttention(None, fine, backend="reference", threshold=[0.2] * 8 + [1.0])
    q, k, v = sequences(sample, 1000)
    density = attention(q, k, v, return_stats=True).stats.density[0]
    assert float(density[8]) == 1
    assert float(density[:8].max()) < 0.8


def test_each_estimator_takes_its_own_thresholds(model: ModelSpec, fine: ModelSpec) -> None:
    with pytest.raises(TensorError, match="high_threshold is given for estimator 'subblock'"):
        PrismAttention(None, fine, backend="reference", high_threshold=0.9)
    with pytest.raises(TensorError, match="threshold is given for estimator 'paper'"):
        PrismAttention(None, model, backend="reference", threshold=0.9)


def test_a_block_that_sub_blocks_do_not_divide_is_refused(fine: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match="sub-blocks of 8 tokens in k blocks of 36"):
        PrismAttention(None, fine, backend="reference", block_size=(64, 36))
