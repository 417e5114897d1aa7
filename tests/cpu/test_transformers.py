"""prism_gen.enable: caches, chunks, padding, generate, counters, compiled graphs, and every mistake in words."""

from __future__ import annotations

import copy
import warnings

import msgspec
import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from transformers import DynamicCache, StaticCache

import prism_gen
from prism_gen.errors import TensorError, UnsupportedError
from prism_gen.integrations.lazy_mask import Segment, _segments, real_ranges
from prism_gen.runtime import load_bundle
from tests.cpu.tiny_transformers import enable, tiny, token_ids
from tests.crossovers import write_crossover

SPARSE, DECODE = "sparse", "dense: decode, or a chunk shorter than a block"


def caches(model):
    """Both kinds of KV cache, and the name of the argument that takes one in this version of transformers."""
    return {"dynamic": DynamicCache(config=model.config), "static": StaticCache(config=model.config, max_cache_len=160)}


def cached(model, ids, cache, **options):
    """Logits of a pass that goes on in `cache`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # past_key_values was renamed on the way to transformers 5.24
        return model(ids, past_key_values=cache, use_cache=True, **options).logits


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(
    ("threshold", "selection"),
    [(1.0, {}), (0.4, {"calibration": "prefix"}), (0.4, {"estimator": "subblock"})],
    ids=["all", "paper", "subblock"],  # those two select the same in chunks and at once
)
@torch.no_grad()
def test_chunks_give_what_one_pass_gives(kind, threshold, selection):
    model, ids = tiny(), token_ids(2, 112)
    enabled = enable(model, threshold, **selection)
    exact = model(ids).logits
    cache = caches(model)[kind]
    ours = torch.cat([cached(model, chunk, cache) for chunk in ids.split([48, 32, 32], dim=1)], 1)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
    assert enabled.sparse_runs() == [4, 4]


@torch.no_grad()
def test_a_chunk_pools_only_its_own_keys(monkeypatch):
    model, ids = tiny(), token_ids(1, 96)
    enable(model, 0.5)
    pooled = record_pooled_tokens(monkeypatch)
    cache = DynamicCache(config=model.config)
    for chunk in ids.split(32, dim=1):
        cached(model, chunk, cache)
    assert pooled == [32] * 6  # three chunks of two layers


@pytest.mark.parametrize("change", ["crop", "reorder", "other"])
@torch.no_grad()
def test_a_cache_that_changed_is_pooled_anew(monkeypatch, change):
    model, ids = tiny(), token_ids(2, 64)
    enable(model, 0.5)
    cache = DynamicCache(config=model.config)
    cached(model, ids[:, :32], cache)
    if change == "crop":
        cache.crop(-8)
    elif change == "reorder":
        cache.reorder_cache(torch.tensor([1, 0]))
    else:  # another cache of the same length
        cache = DynamicCache(config=model.config)
        model.set_attn_implementation("sdpa")
        cached(model, ids[:, 32:], cache)
        model.set_attn_implementation("prism")
    fresh = copy.deepcopy(cache)
    pooled = record_pooled_tokens(monkeypatch)
    ours = cached(model, ids[:, 32:], cache)
    assert pooled == [56 if change == "crop" else 64] * 2
    assert torch.equal(ours, cached(model, ids[:, 32:], fresh))


def record_pooled_tokens(monkeypatch):
    """Tokens of k in every pooling of the reference from now on."""
    from prism_gen.runtime import backend

    real, tokens = backend.pool_chunk, []

    def recorded(x, *args, **options):
        tokens.append(x.shape[1])
        return real(x, *args, **options)

    monkeypatch.setattr(backend, "pool_chunk", recorded)
    return tokens


@torch.no_grad()
def test_static_caches_are_watched_for_changes_in_place():
    model, ids = tiny(), token_ids(1, 96)
    enable(model, 0.5)
    cache = StaticCache(config=model.config, max_cache_len=128)
    cached(model, ids[:, :64], cache)
    cache.reset()
    again = cached(model, ids[:, 32:], cache)
    assert torch.equal(again, cached(model, ids[:, 32:], StaticCache(config=model.config, max_cache_len=128)))


@torch.no_grad()
def test_a_static_cache_that_was_cropped_and_filled_again_is_pooled_anew():
    model, ids = tiny(), token_ids(1, 96)
    cache = StaticCache(config=model.config, max_cache_len=128)
    if not hasattr(cache.layers[0], "crop"):
        pytest.skip("this transformers has no crop of static caches")
    enable(model, 0.5)
    cached(model, ids[:, :48], cache)
    cache.crop(-20)
    for token in ids[:, 48:70].split(1, dim=1):  # decode steps, which are dense and pool nothing
        cached(model, token, cache)
    ours = cached(model, ids[:, 64:], cache)
    fresh = StaticCache(config=model.config, max_cache_len=128)
    cached(model, ids[:, :28], fresh)
    for token in ids[:, 48:70].split(1, dim=1):
        cached(model, token, fresh)
    torch.testing.assert_close(ours, cached(model, ids[:, 64:], fresh), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_sequences_are_each_what_they_are_alone(side):
    model, ids = tiny(), token_ids(3, 80)
    lengths = [80, 41, 17]
    padding = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        padding[row, slice(-length, None) if side == "left" else slice(length)] = 1
    positions = (padding.cumsum(1) - 1).clamp_min(0)
    enabled = enable(model, 0.5, min_queries=2)
    ours = model(ids, attention_mask=padding, position_ids=positions).logits
    assert enabled.sparse_runs() == [3, 3]
    for row in range(len(lengths)):
        real = padding[row].bool()
        alone = model(ids[row, real][None]).logits[0]
        torch.testing.assert_close(ours[row, real], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padded_chunks_go_on_where_their_sequences_are():
    model, ids = tiny(), token_ids(2, 96)
    padding = torch.ones_like(ids)
    padding[0, :40] = 0  # the first chunk of this sequence is padding alone
    exact = model(ids, attention_mask=padding).logits
    enabled = enable(model)
    cache = DynamicCache(config=model.config)
    ours = [cached(model, ids[:, end - 32 : end], cache, attention_mask=padding[:, :end]) for end in (32, 64, 96)]
    real = padding[..., None].bool()
    torch.testing.assert_close(torch.cat(ours, 1).where(real, 0), exact.where(real, 0), rtol=1e-4, atol=1e-4)
    assert enabled.sparse_runs() == [5, 5]


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 40}], ids=["whole", "chunks"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generate_decodes_after_a_sparse_prefill(kind, options):
    model, ids = tiny(), token_ids(2, 96)
    padding = torch.ones_like(ids)
    padding[0, :9] = 0
    arguments = {
        "attention_mask": padding,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "cache_implementation": kind,
        **options,
    }
    exact = model.generate(ids, **arguments)
    enabled = enable(model)
    assert torch.equal(model.generate(ids, **arguments), exact)
    for calls in enabled.calls():
        assert calls[SPARSE] == (6 if options else 2)  # for each sequence, in chunks of 40, 40 and 16
        assert calls[DECODE] == 5


@torch.no_grad()
def test_compiles_into_one_graph_and_is_counted():
    model, ids = tiny(), token_ids(1, 64)
    enabled = enable(model, 0.5)
    eager = model(ids, use_cache=True).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ids, use_cache=True).logits, eager)
    assert enabled.sparse_runs() == [2, 2]


@torch.no_grad()
def test_a_graph_that_cannot_look_at_padding_is_dense():
    model, ids = tiny(), token_ids(2, 64)
    padding = torch.ones_like(ids)
    padding[0, :9] = 0
    exact = model(ids, attention_mask=padding).logits
    enabled = enable(model, 0.5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours = compiled(ids, attention_mask=padding).logits
    torch.testing.assert_close(ours[padding.bool()], exact[padding.bool()], rtol=1e-4, atol=1e-4)
    assert enabled.sparse_runs() == [0, 0]


@torch.no_grad()
def test_masks_that_are_not_causal_go_dense():
    model, ids = tiny(), token_ids(1, 64)
    packed = torch.cat([torch.arange(40), torch.arange(24)])[None]
    exact = model(ids, position_ids=packed, use_cache=False).logits
    enabled = enable(model)
    torch.testing.assert_close(model(ids, position_ids=packed, use_cache=False).logits, exact, rtol=1e-4, atol=1e-4)
    holes = torch.ones_like(ids)
    holes[0, 30:33] = 0
    model(ids, attention_mask=holes)
    model(ids, attention_mask=torch.ones(1, 1, 64, 64, dtype=torch.bool).tril())
    not_causal = "dense: a mask that is not causal, or not known while compiling"
    assert enabled.calls() == [{not_causal: 2, "dense: a mask from the caller": 1, SPARSE: 0}] * 2


def test_training_is_refused_in_words():
    model = tiny()
    enable(model)
    with pytest.raises(TensorError, match=r"requires grad[\s\S]*no_grad"):
        model(token_ids(1, 64))


def test_without_enable_it_says_so():
    model = tiny()
    enable(tiny())  # registers the implementation
    model.set_attn_implementation("prism")
    with pytest.raises(UnsupportedError, match=r"without kernels[\s\S]*prism_gen.enable"):
        model(token_ids(1, 64))


def test_statement_names_layers_and_reasons():
    enabled = enable(tiny("gemma3_text"))
    assert str(enabled).splitlines() == [
        f"{enabled.name}: 1 of 2 layers run sparse prefill on reference; decode is dense everywhere",
        "  layer 0: dense, a sliding-window layer",
        "  layer 1: sparse prefill, plain torch",
    ]


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(UnsupportedError, match="no causal attention layer"):
        prism_gen.enable(torch.nn.Linear(2, 2), backend="reference")


def test_kernels_need_a_16_bit_model():
    with pytest.raises(UnsupportedError, match=r"torch.float32[\s\S]*bfloat16"):
        prism_gen.enable(tiny(), backend="cuda")


def test_a_bundle_is_read_once(model, make_bundle, monkeypatch):
    from prism_gen.runtime import connect

    reads = []
    real = connect.load_bundle
    monkeypatch.setattr(connect, "load_bundle", lambda path: reads.append(path) or real(path))
    prism_gen.enable(tiny(num_hidden_layers=4), make_bundle(), backend="reference")
    assert len(reads) == 1


def test_the_bundle_says_how_a_model_of_its_shape_selects(model, make_bundle):
    same = tiny(
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    enabled = prism_gen.enable(same, make_bundle(), backend="reference")
    assert enabled.layers[0].attention.block_size == (64, 64)


@torch.no_grad()
def test_short_sequences_are_dense():
    model = tiny()
    enabled = enable(model, min_keys=60)
    padding = torch.ones(1, 70, dtype=torch.int64)
    padding[0, :11] = 0
    model(token_ids(1, 70), attention_mask=padding)
    model(token_ids(1, 60))
    assert enabled.calls() == [{"dense: fewer than 60 tokens": 1, SPARSE: 1}] * 2
    assert "decode and prompts under 60 tokens are dense everywhere" in str(enabled)


@pytest.mark.parametrize(("measured", "least"), [(2048, 2048), (None, 4096)], ids=["tuned", "not tuned"])
def test_a_tuned_bundle_says_how_short_is_short(model, monkeypatch, measured, least):
    from prism_gen.integrations import transformers as integration
    from prism_gen.runtime.load import Bundle

    asked = []
    monkeypatch.setattr(Bundle, "sparse_from", lambda self, gpu, label, density: asked.append(label) or measured)
    bundle = Bundle.__new__(Bundle)
    assert integration._crossover(bundle, model, (128, 64)) == least
    assert asked == ["bf16-d64-b128x64"]


@pytest.mark.parametrize(
    ("gpu", "block_size", "density", "least"),
    [
        ("NVIDIA H200", (64, 64), None, 700),
        ("NVIDIA H200", (64, 64), 0.05, 300),
        ("NVIDIA H200", (64, 64), 0.6, 701),
        ("NVIDIA H200", (128, 64), None, 4096),
        ("NVIDIA H100", (64, 64), None, 4096),
    ],
    ids=["measured", "the model's own density", "beyond what was measured", "other blocks", "other gpu"],
)
def test_the_crossover_in_a_manifest_is_found(model, make_bundle, monkeypatch, gpu, block_size, density, least):
    """As `build --tuning` writes it: on an H200, in blocks of 64x64, sparse wins at 700 tokens, not at 300."""
    from prism_gen.integrations import transformers as integration

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    path = make_bundle()
    write_crossover(path, "NVIDIA H200", "bf16-d64-b64x64", {300: 0.1, 700: 0.5})
    selection = msgspec.structs.replace(model.selection, density=density)
    same = msgspec.structs.replace(model, selection=selection)
    assert integration._crossover(load_bundle(path), same, block_size) == least


@torch.no_grad()
def test_densities_are_those_of_the_last_pass():
    model = tiny("gemma3_text")
    enabled = enable(model, 1.0, keep_stats=True)
    assert enabled.densities() == [None, None]
    padding = torch.ones(2, 64, dtype=torch.int64)
    padding[0, :20] = 0
    model(token_ids(2, 64), attention_mask=padding)
    assert enabled.densities() == [None, 1.0]
    enabled = enable(model, 0.2, keep_stats=True)
    model(token_ids(2, 64), attention_mask=padding)
    assert 0.1 < enabled.densities()[1] < 1


def test_enabling_again_starts_anew():
    model = tiny()
    first = enable(model)
    second = enable(model)
    with torch.no_grad():
        model(token_ids(1, 64))
    assert (first.sparse_runs(), second.sparse_runs()) == ([0, 0], [1, 1])


@pytest.mark.parametrize(
    ("padding", "ranges"),
    [
        ([[1, 1, 1, 1]], [(0, 4)]),
        ([[0, 0, 1, 1], [1, 0, 0, 0]], [(2, 4), (0, 1)]),
        ([[0, 0, 0, 0]], [(0, 0)]),
        ([[1, 0, 1, 1]], None),
        ([[1, 1]], [(0, 2)]),
        ([[1, 1, 1, 1, 0, 1]], [(0, 4)]),
    ],
    ids=["full", "both sides", "empty", "hole", "shorter", "longer"],
)
def test_real_ranges(padding, ranges):
    assert real_ranges(torch.tensor(padding).bool(), 4) == ranges


def test_segments_of_a_chunk():
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    assert _segments(padding, 3, 3, 6) == (
        Segment(slice(0, 1), slice(0, 3), slice(2, 6)),
        Segment(slice(1, 2), slice(0, 1), slice(0, 4)),
    )
