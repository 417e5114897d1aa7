"""Each kernel through PrismAttention's stages, against the reference in float64, on small ragged shapes.

The wide sweep over shapes, dtypes and layouts is tools/gpu_check.py's; these say quickly whether a build is sane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")

from prism_gen.runtime import Bundle, PrismAttention, Selection, reference  # noqa: E402
from prism_gen.runtime.selection import diagonal_blocks  # noqa: E402

pytestmark = pytest.mark.gpu

MODELS = ("smollm2", "llama3")  # in the order of the bundle
BLOCK_SIZES = ((64, 64), (128, 64), (128, 128))
LENGTHS = ((1, 1), (1, 129), (300, 300), (257, 1000), (128, 640))


@dataclass(frozen=True)
class Case:
    """seqlen_q, seqlen_k in tokens."""

    model_index: int
    block_size: tuple[int, int]
    lengths: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"{MODELS[self.model_index]}-{self.block_size[0]}x{self.block_size[1]}-{self.lengths[0]}of{self.lengths[1]}"
        )

    def attention(self, bundle: Bundle) -> PrismAttention:
        """The layer under test, with thresholds that leave out blocks."""
        model = bundle.manifest.models[self.model_index]
        return PrismAttention(bundle, model, block_size=self.block_size, high_threshold=0.6, low_threshold=0.7)

    def qkv(self, attention: PrismAttention) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch of two, random, in the model's dtype."""
        model = attention.model
        generator = torch.Generator("cuda").manual_seed(7)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[model.dtype]
        q, k, v = (
            torch.randn(2, tokens, heads, model.head_dim, device="cuda", generator=generator).to(dtype)
            for tokens, heads in zip(
                (self.lengths[0], self.lengths[1], self.lengths[1]),
                (model.num_q_heads, model.num_kv_heads, model.num_kv_heads),
                strict=True,
            )
        )
        return q, k, v


CASES = [Case(m, b, n) for m in range(len(MODELS)) for b in BLOCK_SIZES for n in LENGTHS]


def token_mask(selection: Selection) -> torch.Tensor:
    """Bool [batch, heads, seqlen_q, seqlen_k]: selected and causal."""
    grid = selection.grid
    mask = selection.block_mask().repeat_interleave(grid.block_size_q, 2).repeat_interleave(grid.block_size_k, 3)
    causal = torch.ones(grid.seqlen_q, grid.seqlen_k, dtype=torch.bool, device=mask.device).tril(grid.prefix)
    return mask[:, :, : grid.seqlen_q, : grid.seqlen_k] & causal


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pool_is_the_mean(bundle: Bundle, case: Case) -> None:
    attention = case.attention(bundle)
    q, k, _ = case.qkv(attention)
    ours = attention.pool(q, k)
    exact = PrismAttention(None, attention.model, block_size=case.block_size, backend="reference").pool(
        q.double(), k.double()
    )
    for name in ("q_mean", "k_mean", "q_energy", "k_energy"):
        # fp32 sums of at most 128 values of size 1: a few units in the last place
        torch.testing.assert_close(getattr(ours, name).double(), getattr(exact, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_size", BLOCK_SIZES, ids=str)
def test_chunked_prefill_with_pooled_keys_has_the_bits_of_that_without(
    bundle: Bundle, block_size: tuple[int, int]
) -> None:
    case = Case(1, block_size, (700, 700))
    attention = case.attention(bundle)
    q, k, v = case.qkv(attention)
    cache = attention.pooled_keys(batch=2, max_tokens=1000, like=k)
    for start, end in ((0, 130), (130, 131), (131, 470), (470, 700)):
        chunk = (q[:, start:end], k[:, :end], v[:, :end])
        assert attention(*chunk, pooled_keys=cache).equal(attention(*chunk))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_selection_of_identical_scores_is_identical(bundle: Bundle, case: Case) -> None:
    attention = case.attention(bundle)
    q, k, _ = case.qkv(attention)
    pooled = attention.pool(q, k)
    ours = attention.select(pooled, with_probs=True)
    thresholds = attention.thresholds.rows(q.shape[2], q.device)
    expected = reference.select_from_fixed(ours.probs, thresholds, ours.grid)
    assert ours.block_counts.equal(expected.block_counts)
    for index in range(ours.block_indices.shape[-1]):
        used = index < ours.block_counts
        assert ours.block_indices[..., index][used].equal(expected.block_indices[..., index][used])
    reference_layer = PrismAttention(None, attention.model, block_size=case.block_size, backend="reference")
    probs = reference_layer.select(pooled, with_probs=True).probs
    off = reference.shares(ours.probs) - reference.shares(probs)
    assert float(off.abs().max()) <= 1e-5  # fp32 dot products of 96 dims, then exp


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attend_error_is_near_torch(bundle: Bundle, case: Case) -> None:
    attention = case.attention(bundle)
    q, k, v = case.qkv(attention)
    grid = attention.grid(q, k)
    random = torch.rand(2, q.shape[2], grid.num_q_blocks, grid.num_k_blocks, device="cuda") < 0.4
    selection = Selection.from_mask(random | diagonal_blocks(grid, q.device), grid)
    out, lse = attention.attend(q, k, v, selection, return_lse=True)
    exact, exact_lse = reference.attend(
        q.double(), k.double(), v.double(), selection, softmax_scale=attention.softmax_scale
    )
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    by_torch = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=token_mask(selection), scale=attention.softmax_scale, enable_gqa=True
    ).transpose(1, 2)
    floor = float((by_torch.double() - exact).abs().max())
    assert float((out.double() - exact).abs().max()) <= 2 * floor + 1e-5
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-3)


@pytest.mark.parametrize("block_size", BLOCK_SIZES, ids=str)
def test_empty_rows_are_zero(bundle: Bundle, block_size: tuple[int, int]) -> None:
    case = Case(0, block_size, (300, 300))
    attention = case.attention(bundle)
    q, k, v = case.qkv(attention)
    grid = attention.grid(q, k)
    mask = torch.zeros(2, q.shape[2], grid.num_q_blocks, grid.num_k_blocks, dtype=torch.bool, device="cuda")
    mask[:, ::2, -1, -1] = True
    out, lse = attention.attend(q, k, v, Selection.from_mask(mask, grid), return_lse=True)
    first_key = (grid.num_k_blocks - 1) * block_size[1]
    seen = torch.zeros(2, q.shape[2], 300, dtype=torch.bool, device="cuda")
    seen[:, ::2, max(first_key, (grid.num_q_blocks - 1) * block_size[0]) :] = True
    assert lse.isfinite().equal(seen)
    assert bool((lse[~seen] == -math.inf).all())
    assert bool((out.transpose(1, 2)[~seen] == 0).all())
