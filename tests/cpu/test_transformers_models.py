"""Every architecture against its own eager attention, with everything selected; and what stays dense says why."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.4")
from tests.cpu.tiny_transformers import CONFIGS, DENSE, enable, tiny, token_ids

TOKENS = 77  # several blocks, the last short


@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_with_everything_selected_it_is_eager_attention(model_type):
    model, ids = tiny(model_type), token_ids(2, TOKENS)
    padding = torch.ones_like(ids)
    padding[1, :20] = 0
    exact = model(ids, attention_mask=padding).logits
    enabled = enable(model)
    ours = model(ids, attention_mask=padding).logits
    real = padding[..., None].bool()
    torch.testing.assert_close(ours.where(real, 0), exact.where(real, 0), rtol=1e-4, atol=1e-4)
    dense = DENSE.get(model_type, {})
    assert enabled.sparse_runs() == [0 if layer in dense else 2 for layer in range(2)]  # one for each padding
    for layer, why in dense.items():
        assert why in enabled.statements[layer].why_dense
        assert any(why in reason for reason in enabled.calls()[layer])


@pytest.mark.parametrize("model_type", ["llama", "glm4", "gemma3_text"])
@torch.no_grad()
def test_with_less_selected_it_is_another_result(model_type):
    model, ids = tiny(model_type), token_ids(1, TOKENS)
    exact = model(ids).logits
    enable(model, threshold=0.3)
    ours = model(ids).logits
    assert torch.isfinite(ours).all()
    assert not torch.allclose(ours, exact, atol=1e-3)


@torch.no_grad()
def test_sub_blocks_serve_layers_without_rope():
    model, ids = tiny("cohere2"), token_ids(1, TOKENS)
    exact = model(ids).logits
    enabled = enable(model, estimator="subblock")
    torch.testing.assert_close(model(ids).logits, exact, rtol=1e-4, atol=1e-4)
    assert enabled.sparse_runs() == [0, 1]
