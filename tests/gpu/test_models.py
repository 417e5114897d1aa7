"""Operators and a transformers model with real kernels: opcheck, compiled, captured, cached, padded, generated."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import prism_gen  # noqa: E402
from prism_gen.integrations.transformers import Enabled  # noqa: E402
from prism_gen.model import SelectionSpec  # noqa: E402
from prism_gen.runtime import Bundle, PrismAttention, ops  # noqa: E402

pytestmark = pytest.mark.gpu

NAME = "gpu-ops"
BLOCKS = (128, 128)
TOKENS = 1500


@pytest.fixture(scope="module")
def attention(bundle: Bundle) -> PrismAttention:
    """The 128-dim model in blocks of 128x128, registered under NAME."""
    made = PrismAttention(bundle, bundle.manifest.models[1], block_size=BLOCKS, high_threshold=0.7, low_threshold=0.7)
    ops.register(made, NAME)
    return made


def qkv(seed: int, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = [(1, tokens, heads, 128) for heads in (32, 8, 8)]
    q, k, v = (torch.randn(shape, device="cuda", generator=generator).bfloat16() for shape in shapes)
    return q, k, v


def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return ops.attention(q, k, v, kernels=NAME)


def test_opcheck(attention: PrismAttention) -> None:
    """select leaves what follows a row's count unwritten, so its outputs are not compared between two runs."""
    q, k, v = qkv(0)
    pooled = torch.ops.prism_gen.pool(q, k, NAME)
    lists = torch.ops.prism_gen.select(*pooled, q.shape[1], k.shape[1], NAME)
    torch.library.opcheck(ops.pool, (q, k, NAME))
    without_values = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(ops.select, (*pooled, q.shape[1], k.shape[1], NAME), test_utils=without_values)
    torch.library.opcheck(ops.attend, (q, k, v, *lists, NAME, None, True))


def test_compiles_into_one_graph(attention: PrismAttention) -> None:
    compiled = torch.compile(lambda q, k, v: run(q, k, v) * 2, fullgraph=True)
    tensors = qkv(1)
    assert torch.equal(compiled(*tensors), attention(*tensors) * 2)


def test_operators_are_captured_and_replayed(attention: PrismAttention) -> None:
    tensors, others = qkv(2), qkv(3)
    run(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*tensors)
    for mine, other in zip(tensors, others, strict=True):
        mine.copy_(other)
    graph.replay()
    assert torch.equal(out, attention(*others))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Two layers of 8 q and 2 kv heads of 128, bf16, random."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        vocab_size=512,
        max_position_embeddings=4096,
        initializer_range=0.05,
    )
    with torch.device("cuda"):
        made = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return made.eval()


def enable(model: Any, bundle: Bundle, threshold: float = 1.0, **options: Any) -> Enabled:
    selection = SelectionSpec(block_sizes=(BLOCKS,), high_freq_threshold=threshold, low_freq_threshold=threshold)
    enabled = prism_gen.enable(model, bundle, selection=selection, min_keys=0, **options)
    model.set_attn_implementation("prism")
    return enabled


def token_ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 512, (batch, length), device="cuda", generator=torch.Generator("cuda").manual_seed(7))


def assert_near(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """As near as bf16 through two layers allows."""
    error = (ours.float() - exact.float()).norm() / exact.float().norm()
    assert float(error) < 0.02


@torch.no_grad()
def test_with_everything_selected_it_is_dense(model: Any, bundle: Bundle) -> None:
    ids = token_ids(2, 700)
    padding = torch.ones_like(ids)
    padding[1, :150] = 0
    model.set_attn_implementation("sdpa")
    exact = [model(ids).logits, model(ids, attention_mask=padding).logits]
    enabled = enable(model, bundle)
    assert all(statement.kernels[-1].startswith("attend-sm90") for statement in enabled.statements)
    assert_near(model(ids).logits, exact[0])
    real = padding.bool()
    assert_near(model(ids, attention_mask=padding).logits[real], exact[1][real])
    assert enabled.sparse_runs() == [3, 3]


@torch.no_grad()
def test_kernels_give_what_plain_torch_gives(model: Any, bundle: Bundle) -> None:
    ids = token_ids(1, 1000)
    enable(model, bundle, 0.8)
    ours = model(ids).logits
    enable(model, bundle, 0.8, backend="reference")
    assert_near(ours, model(ids).logits)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generate_after_chunks(model: Any, bundle: Bundle, kind: str) -> None:
    ids = token_ids(2, 900)
    enabled = enable(model, bundle, 0.8)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "cache_implementation": kind}
    for chunk in (None, 512):
        out = model.generate(ids, disable_compile=True, pad_token_id=0, prefill_chunk_size=chunk, **options)
        assert out.shape == (2, 904)
    assert enabled.sparse_runs() == [3, 3]


@torch.no_grad()
def test_the_model_compiles_into_one_graph(model: Any, bundle: Bundle) -> None:
    ids = token_ids(1, 1024)
    enabled = enable(model, bundle, 0.8)
    eager = model(ids, use_cache=True).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, use_cache=True).logits, eager)
    assert enabled.sparse_runs() == [2, 2]
