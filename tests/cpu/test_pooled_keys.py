"""Pooling in chunks: any boundaries give the bits of pooling everything at once; and what a cache refuses."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from prism_gen.errors import TensorError
from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec
from prism_gen.rope import Bands, bands
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.reference_pool import GRANULE_TOKENS, granules_per_block, pool, pool_chunk
from prism_gen.runtime.reference_rotate import rotate

HEAD_DIM = 32
BANDS: Bands = bands(RopeSpec(rotary_dim=HEAD_DIM), HEAD_DIM, SelectionSpec(), block_size=64)


def keys(seqlen: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    draw = torch.Generator().manual_seed(seqlen)
    return torch.randn(2, seqlen, 3, HEAD_DIM, generator=draw).to(dtype)


def random_chunks(seqlen: int, seed: int) -> list[int]:
    """Ends of chunks, rising, the last is seqlen: single tokens, parts of granules and blocks, several blocks."""
    draw, ends = random.Random(seed), [0]
    while ends[-1] < seqlen:
        ends.append(min(seqlen, ends[-1] + draw.choice((1, 2, 31, 32, 33, 64, 100, 128, 300))))
    return ends


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_any_chunks_give_the_bits_of_one_call(block_size: int, dtype: torch.dtype) -> None:
    for seqlen in (1, 31, 127, 128, 129, 700):
        x = keys(seqlen, dtype)
        whole_mean, whole_energy = pool(x, block_size, BANDS)
        for seed in range(4):
            mean, energy, tail = torch.zeros_like(whole_mean), torch.zeros_like(whole_energy), None
            ends = random_chunks(seqlen, seed)
            for start, end in pairwise(ends):
                chunk = pool_chunk(x[:, start:end], block_size, BANDS, start=start, tail=tail)
                touched = slice(start // block_size, -(-end // block_size))
                mean[:, :, touched], energy[:, :, touched], tail = chunk
            assert mean.equal(whole_mean), (seqlen, ends)
            assert energy.equal(whole_energy), (seqlen, ends)


def test_tokens_are_added_in_granules_in_order() -> None:
    x = keys(128).float()
    total = torch.zeros(2, 3, HEAD_DIM)
    for granule in x.split(GRANULE_TOKENS, dim=1):
        inner = torch.zeros(2, 3, HEAD_DIM)
        for token in range(GRANULE_TOKENS):
            inner += granule[:, token]
        total += inner
    mean, _ = pool(x, 128, BANDS)
    assert mean[:, :, 0].equal(total / 128)


def test_a_chunk_inside_a_block_needs_the_tail() -> None:
    with pytest.raises(ValueError, match="tail is needed"):
        pool_chunk(keys(8), 64, BANDS, start=5)


@pytest.mark.parametrize(("block_size", "granules"), [(8, 1), (32, 1), (48, 3), (64, 2), (128, 4)])
def test_granules_divide_any_block(block_size: int, granules: int) -> None:
    assert granules_per_block(block_size) == granules


@pytest.fixture(scope="module")
def attention(model: ModelSpec) -> PrismAttention:
    return PrismAttention(None, model, backend="reference", block_size=(128, 64), high_threshold=0.5, low_threshold=0.5)


def qkv(seqlen: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, seqlen, heads, 64, generator=draw).bfloat16() for heads in (9, 3, 3))
    return q, k, v


def test_chunked_prefill_with_pooled_keys_is_chunked_prefill_without(attention: PrismAttention) -> None:
    q, k, v = qkv(500)
    cache = attention.pooled_keys(batch=2, max_tokens=512, like=k)
    for start, end in ((0, 130), (130, 131), (131, 320), (320, 500)):
        chunk = (q[:, start:end], k[:, :end], v[:, :end])
        ours = attention(*chunk, return_lse=True, return_stats=True, pooled_keys=cache)
        plain = attention(*chunk, return_lse=True, return_stats=True)
        assert cache.num_tokens == end
        assert ours.out.equal(plain.out)
        assert ours.lse.equal(plain.lse)
        assert ours.stats.counts.equal(plain.stats.counts)


def test_the_same_keys_again_change_nothing_and_reset_starts_over(attention: PrismAttention) -> None:
    q, k, _ = qkv(200)
    cache = attention.pooled_keys(batch=2, max_tokens=300, like=k)
    plain = attention.pool(q, k)
    for _ in range(2):
        assert attention.pool(q[:, 150:], k, pooled_keys=cache).k_mean.equal(plain.k_mean)
    cache.reset()
    short = attention.pool(q[:, :70], k[:, :70], pooled_keys=cache)
    assert short.k_energy.equal(attention.pool(q[:, :70], k[:, :70]).k_energy)


def test_a_double_cache_is_exact(attention: PrismAttention) -> None:
    _, k, _ = qkv(64)
    assert attention.pooled_keys(batch=2, max_tokens=64, like=k.double()).mean.dtype == torch.float64


def make_cache(**changes: int) -> PooledKeys:
    sizes = {"batch": 2, "num_kv_heads": 3, "head_dim": 64, "max_tokens": 256, "block_size": 64, **changes}
    return PooledKeys(**sizes, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 1}, r"\[2, 200, 3, 64\][\s\S]*batch 1"),
        ({"num_kv_heads": 1}, "1 kv heads"),
        ({"block_size": 128}, r"blocks are of 64 tokens[\s\S]*blocks of 128"),
        ({"max_tokens": 199}, "0 of at most 199"),
    ],
    ids=str,
)
def test_a_cache_of_something_else_is_refused(attention: PrismAttention, changes: dict[str, int], words: str) -> None:
    q, k, v = qkv(200)
    with pytest.raises(TensorError, match=words):
        attention(q, k, v, pooled_keys=make_cache(**changes))


def test_keys_that_were_taken_back_are_refused(attention: PrismAttention) -> None:
    q, k, _ = qkv(200)
    cache = make_cache()
    attention.pool(q, k, pooled_keys=cache)
    with pytest.raises(TensorError, match=r"k has 100 tokens[\s\S]*200 of at most 256"):
        attention.pool(q[:, :100], k[:, :100], pooled_keys=cache)


def rope_tables(start: int, end: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, end - start, 32] of tokens start .. end - 1."""
    inv_freq = 100000.0 ** (-torch.arange(32, dtype=torch.float32) / 32)
    angle = torch.arange(start, end, dtype=torch.float32)[None, :, None] * inv_freq
    return angle.cos().bfloat16(), angle.sin().bfloat16()


def test_rotating_and_pooling_chunks_is_rotating_all_and_pooling(attention: PrismAttention) -> None:
    q, k, v = qkv(300)
    q_all, k_all = (rotate(x, *rope_tables(0, 300), interleaved=False) for x in (q, k))
    kv_cache = torch.zeros(2, 320, 3, 64, dtype=torch.bfloat16)
    cache = attention.pooled_keys(batch=2, max_tokens=320, like=k)
    for start, end in ((0, 130), (130, 300)):
        tables = rope_tables(start, end)
        done = attention.rotate_and_pool(
            q[:, start:end], k[:, start:end], *tables, k_out=kv_cache[:, start:end], pooled_keys=cache
        )
        assert done.q.equal(q_all[:, start:end])
        assert kv_cache[:, :end].equal(k_all[:, :end])
        plain = attention.pool(q_all[:, start:end], k_all[:, :end])
        assert all(a.equal(b) for a, b in zip(done.pooled[:4], plain[:4], strict=True))
        out, _ = attention.attend(done.q, kv_cache[:, :end], v[:, :end], attention.select(done.pooled))
        assert out.equal(attention(q_all[:, start:end], k_all[:, :end], v[:, :end]))


def test_a_first_chunk_needs_neither_cache_nor_room(attention: PrismAttention) -> None:
    q, k, _ = qkv(130)
    done = attention.rotate_and_pool(q, k, *rope_tables(0, 130))
    assert done.k.equal(rotate(k, *rope_tables(0, 130), interleaved=False))
    assert done.pooled.grid.seqlen_k == 130


ROTATION_MISTAKES = {
    "fewer-q": ({"q": lambda x: x[:, 1:]}, r"q has 99 tokens, k has 100"),
    "doubled-tables": ({"cos": lambda x: torch.cat([x, x], -1)}, r"cos has shape \[1, 100, 64\][\s\S]*32 pairs"),
    "fp32-tables": ({"sin": lambda x: x.float()}, r"sin is torch\.float32"),
    "odd-stride": ({"cos": lambda x: torch.nn.functional.pad(x, (0, 1))[..., :-1]}, r"cos has strides"),
    "other-layout": ({"sin": lambda x: torch.nn.functional.pad(x, (0, 8))[..., :-8]}, r"sin has shape[\s\S]*same way"),
    "small-k-out": ({"k_out": lambda x: x[:, 1:]}, r"k_out is torch\.bfloat16 \[2, 99, 3, 64\]"),
}


@pytest.mark.parametrize("name", ROTATION_MISTAKES)
def test_wrong_tables_are_refused(attention: PrismAttention, name: str) -> None:
    changes, words = ROTATION_MISTAKES[name]
    q, k, _ = qkv(100)
    cos, sin = rope_tables(0, 100)
    given = {"q": q, "k": k, "cos": cos, "sin": sin, "k_out": torch.empty_like(k)}
    given.update({key: change(given[key]) for key, change in changes.items()})
    with pytest.raises(TensorError, match=words):
        attention.rotate_and_pool(**given)
