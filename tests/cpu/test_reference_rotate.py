"""The reference's rotation against transformers', bit for bit in bf16 and fp16: half-split, interleaved, partial."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prism_gen.runtime.reference_rotate import rotate


def tables(num_tokens: int, rotary_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [1, num_tokens, rotary_dim / 2] as a model computes them: in fp32, then in its dtype."""
    inv_freq = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    angle = torch.arange(num_tokens, dtype=torch.float32)[:, None] * inv_freq
    return angle.cos().to(dtype)[None], angle.sin().to(dtype)[None]


def tokens(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 50, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("model", "interleaved", "rotary_dim"), [("llama", False, 64), ("glm", True, 64), ("glm", True, 32)], ids=str
)
def test_rotation_is_transformers(dtype: torch.dtype, model: str, interleaved: bool, rotary_dim: int) -> None:
    modeling = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    cos, sin = tables(50, rotary_dim, dtype)
    q, k = tokens(dtype), tokens(dtype).flip(1)
    wide = (torch.cat([table, table], dim=-1) for table in (cos, sin))
    expected = modeling.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *wide)
    for x, by_transformers in zip((q, k), expected, strict=True):
        assert rotate(x, cos, sin, interleaved=interleaved).equal(by_transformers.transpose(1, 2))


def test_partial_half_split_rotates_within_its_dims_alone() -> None:
    x = tokens(torch.bfloat16)
    cos, sin = tables(50, 32, torch.bfloat16)
    out = rotate(x, cos, sin, interleaved=False)
    assert out[..., :32].equal(rotate(x[..., :32], cos, sin, interleaved=False))
    assert out[..., 32:].equal(x[..., 32:])


def test_a_table_per_sequence_is_used() -> None:
    x = tokens(torch.float64)
    cos, sin = (table.expand(2, -1, -1).clone() for table in tables(50, 64, torch.float64))
    cos[1], sin[1] = 1.0, 0.0
    out = rotate(x, cos, sin, interleaved=True)
    assert out[1].equal(x[1])
    assert not out[0, 1:].equal(x[0, 1:])


def test_it_is_a_rotation() -> None:
    x = tokens(torch.float64)
    out = rotate(x, *tables(50, 64, torch.float64), interleaved=False)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    assert out[:, 0].equal(x[:, 0])
