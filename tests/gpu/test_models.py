"""A transformers model with real kernels: padded, cached, generated, compiled; and from which length on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.4")

from transformers import LlamaForCausalLM  # noqa: E402

import prism_gen  # noqa: E402
from prism_gen.integrations.transformers import Enabled  # noqa: E402
from prism_gen.model import SelectionSpec  # noqa: E402
from prism_gen.runtime import Bundle  # noqa: E402
from tests.crossovers import write_crossover  # noqa: E402
from tests.gpu.tiny_llama import make_model  # noqa: E402

pytestmark = pytest.mark.gpu

BLOCKS = (128, 128)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """Two layers of 8 q and 2 kv heads of 128, bf16, random."""
    return make_model("cuda")


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


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_generate_compiles_chunks_of_a_static_cache(model: Any, bundle: Bundle, padded: bool) -> None:
    """transformers does so on its own, with CUDA graphs; a prompt at once it leaves alone.

    Everything is selected, so that only rounding differs: the compiler's between the layers is not eager bf16's.
    """
    ids = token_ids(2, 900)
    padding = torch.ones_like(ids)
    padding[0, :90] = 0 if padded else 1
    enabled = enable(model, bundle)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    options |= {"cache_implementation": "static", "prefill_chunk_size": 512, "attention_mask": padding}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    exact = model.generate(ids, disable_compile=True, **options).logits[0]
    before = min(enabled.sparse_runs())
    torch.compiler.reset()
    for _ in range(3):  # warmed up, recorded, replayed
        assert_near(model.generate(ids, **options).logits[0], exact)
    assert min(enabled.sparse_runs()) > before > 0


@torch.no_grad()
def test_the_model_compiles_into_one_graph(model: Any, bundle: Bundle) -> None:
    ids = token_ids(1, 1024)
    enabled = enable(model, bundle, 0.8)
    eager = model(ids, use_cache=True).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, use_cache=True).logits, eager)
    assert enabled.sparse_runs() == [2, 2]


@torch.no_grad()
def test_a_tuned_bundle_says_from_where_on(model: Any, bundle: Bundle, tmp_path: Path) -> None:
    """A copy of the bundle whose manifest holds what `build --tuning` writes: sparse wins at 700 tokens, not at 300."""
    path = tmp_path / "tuned"
    shutil.copytree(bundle.path, path)
    write_crossover(path, torch.cuda.get_device_name(), "bf16-d128-b128x128", {300: 0.1, 700: 0.5})
    selection = SelectionSpec(block_sizes=(BLOCKS,))
    enabled = prism_gen.enable(model, path, selection=selection)
    model.set_attn_implementation("prism")
    assert "prompts under 700 tokens are dense" in str(enabled)
    for tokens in (699, 700):
        model(token_ids(1, tokens))
    assert enabled.calls() == [{"dense: fewer than 700 tokens": 1, "sparse": 1}] * 2
