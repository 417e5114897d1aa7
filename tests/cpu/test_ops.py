"""The torch operators: opcheck, torch.compile, torch.export, names, and gradients refused in words."""

from __future__ import annotations

import msgspec
import pytest
import torch

from prism_gen.errors import ConfigError, TensorError
from prism_gen.model import SelectionSpec
from prism_gen.runtime import PrismAttention, ops
from tests.cpu.small_cases import tensors

NAME = "test-ops"
SHAPE = (40, 61, 16, 8)
HEADS = (2, 4, 2)


@pytest.fixture(params=["paper", "subblock"])
def attention(model, request):
    """A small reference attention."""
    fields = {"high_freq_dim": 16, "low_freq_dim": 16} if request.param == "paper" else {"sub_block_q": 4}
    selection = SelectionSpec(
        estimator=request.param,
        block_sizes=((16, 8),),
        high_freq_threshold=0.6,
        low_freq_threshold=0.6,
        threshold=0.6,
        **fields,
    )
    rope = msgspec.structs.replace(model.rope, rotary_dim=32)
    small = msgspec.structs.replace(model, num_q_heads=4, num_kv_heads=2, head_dim=32, rope=rope, selection=selection)
    return PrismAttention(None, small, backend="reference")


@pytest.fixture
def qkv():
    """fp32, chunked: 40 queries on 61 keys."""
    return tensors(SHAPE, HEADS, dtype=torch.float32)


@pytest.fixture
def kernels(attention):
    """What operators know the attention by."""
    return ops.register(attention, NAME)


@pytest.fixture
def run(kernels):
    """The attention in operators."""
    return lambda q, k, v: ops.attention(q, k, v, kernels=kernels)


def stage_inputs(attention, qkv):
    """Arguments of each operator, by name."""
    (q, k, v), name = qkv, ops.register(attention, NAME)
    pooled = torch.ops.prism_gen.pool(q, k, name)
    lists = torch.ops.prism_gen.select(*pooled, q.shape[1], k.shape[1], name)
    rows = attention.thresholds.rows(4, q.device)
    return {
        "pool": [(q, k, name)],
        "select": [(*pooled, q.shape[1], k.shape[1], name), (*pooled, q.shape[1], k.shape[1], name, 0.2, rows)],
        "attend": [(q, k, v, *lists, name), (q, k, v, *lists, name, 0.2, True)],
    }


@pytest.mark.parametrize("stage", ["pool", "select", "attend"])
def test_opcheck(attention, qkv, stage):
    for arguments in stage_inputs(attention, qkv)[stage]:
        torch.library.opcheck(getattr(ops, stage), arguments)


def test_operators_compute_what_the_attention_does(attention, run, qkv):
    assert torch.equal(run(*qkv), attention(*qkv))


def test_lse_is_given_on_request(attention, kernels, qkv):
    q, k, v = qkv
    lists = torch.ops.prism_gen.select(*torch.ops.prism_gen.pool(q, k, kernels), q.shape[1], k.shape[1], kernels)
    _, lse = torch.ops.prism_gen.attend(q, k, v, *lists, kernels, None, True)
    assert torch.equal(lse, attention(q, k, v, return_lse=True).lse)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_into_one_graph(attention, run, qkv, dynamic):
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert torch.equal(compiled(*qkv), attention(*qkv))
    longer = tensors((50, 90, 16, 8), HEADS, dtype=torch.float32)
    assert torch.equal(compiled(*longer), attention(*longer))


def test_exports_and_runs_again(attention, run, qkv, tmp_path):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return run(q, k, v)

    path = tmp_path / "layer.pt2"
    torch.export.save(torch.export.export(Layer(), qkv, strict=True), path)
    assert torch.equal(torch.export.load(path).module()(*qkv), attention(*qkv))


def test_runs_are_counted_per_name(run, kernels, qkv):
    for _ in range(3):
        run(*qkv)
    assert ops.runs(kernels) == 3


def test_unknown_name_says_what_is_registered(kernels, qkv):
    with pytest.raises(ConfigError, match=r"no kernels named 'other'.*\n  available: .*test-ops.*\n  fix: .*register"):
        ops.attention(*qkv, kernels="other")


def test_a_name_in_use_is_refused(attention, kernels):
    other = PrismAttention(None, attention.model, backend="reference")
    with pytest.raises(ConfigError, match="registered already"):
        ops.register(other, NAME)


def test_a_name_is_free_again_with_its_attention(model):
    ops.register(PrismAttention(None, model, backend="reference"), "short-lived")
    name = ops.register(again := PrismAttention(None, model, backend="reference"), "short-lived")
    assert ops.registered(name) is again


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "64x64"),
        ({"block_sizes": ((128, 64),)}, "128x64"),
        ({"estimator": "subblock", "sub_block_q": 4}, "64x64-sub4x8"),
        ({"share": "group"}, "64x64-group"),
        ({"max_blocks": 7}, "64x64-max7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_shapes_depend_on_stands_in_the_graph(model, fields, words):
    """torch.compile keeps graphs on disk by their text: one of other shapes must have another."""
    selection = SelectionSpec(**{"block_sizes": ((64, 64),), **fields})
    made = PrismAttention(None, msgspec.structs.replace(model, selection=selection), backend="reference")
    assert ops.register(made, "same") == f"same:{words}-reference"


@pytest.mark.parametrize("stage", ["pool", "select", "attend"])
def test_gradients_are_refused_in_words(attention, qkv, stage):
    arguments = stage_inputs(attention, qkv)[stage][0]
    first = arguments[0].clone().requires_grad_()
    with pytest.raises(TensorError, match=r"requires grad[\s\S]*no_grad"):
        getattr(ops, stage)(first, *arguments[1:])
    with torch.no_grad():
        getattr(ops, stage)(first, *arguments[1:])
