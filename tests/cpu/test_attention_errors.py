"""Each mistake a caller can make: its class, and the words that say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_gen.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    PrismError,
    ResolveError,
    TensorError,
    UnsupportedError,
)
from prism_gen.model import ModelSpec
from prism_gen.runtime import PrismAttention, Selection
from prism_gen.runtime.checks import TensorRules, check_qkv
from prism_gen.runtime.grid import BlockGrid


def zeros(
    seqlen: int = 8, heads: int = 9, *, batch: int = 1, dim: int = 64, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    return torch.zeros(batch, seqlen, heads, dim, dtype=dtype)


@pytest.fixture(scope="module")
def attention(model: ModelSpec) -> PrismAttention:
    return PrismAttention(None, model, backend="reference")


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"q": zeros(dtype=torch.int8)}, r"q is torch\.int8[\s\S]*torch\.bfloat16"),
    "mixed dtypes": ({"v": zeros(heads=3, dtype=torch.float16)}, "q is torch.bfloat16 .* v is torch.float16"),
    "not a tensor": ({"k": [1.0]}, "k is a list"),
    "3 dims": ({"q": zeros()[0]}, r"q has shape \[8, 9, 64\][\s\S]*\[batch, seqlen, num_heads, head_dim=64\]"),
    "head_dim": ({"k": zeros(heads=3, dim=128)}, r"k has shape .*128\][\s\S]*head_dim=64[\s\S]*choose the model"),
    "k and v differ": ({"v": zeros(9, heads=3)}, r"v has shape \[1, 9, 3, 64\], k has \[1, 8, 3, 64\]"),
    "batch differs": ({"q": zeros(batch=2)}, "q has batch 2, k has batch 1"),
    "empty batch": ({"q": zeros(batch=0)}, r"q has shape \[0, 8, 9, 64\]: an empty batch"),
    "zero length": ({"k": zeros(0, heads=3)}, r"k has shape \[1, 0, 3, 64\]: .*no tokens"),
    "q longer than k": ({"q": zeros(9)}, r"seqlen_q 9 is greater than seqlen_k 8[\s\S]*pass all keys"),
    "repeated kv": ({"k": zeros(), "v": zeros()}, r"9 q heads with 9 kv heads[\s\S]*never repeated"),
    "not whole groups": ({"q": zeros(heads=8)}, "8 q heads with 3 kv heads"),
    "not an equal shard": (
        {"q": zeros(heads=6), "k": zeros(heads=2), "v": zeros(heads=2)},
        "6 q heads with 2 kv heads",
    ),
    "last dim strided": ({"q": zeros(dim=128)[..., ::2]}, r"q has stride 2 in its last dim[\s\S]*contiguous\(\)"),
    "odd stride": ({"q": zeros(dim=65)[..., :64]}, r"q has strides .*not a multiple of 16 bytes"),
    "expanded": (
        {"q": zeros(heads=1).expand(-1, -1, 9, -1)},
        r"q is expanded: dim 2 has stride 0[\s\S]*contiguous\(\)",
    ),
    "misaligned": ({"q": zeros(dim=72)[..., 1:65]}, r"q starts at an address[\s\S]*clone\(\)"),
    "requires grad": ({"q": zeros().requires_grad_()}, r"q requires grad[\s\S]*no_grad"),
    "sparse": ({"q": zeros().to_sparse()}, r"q is torch\.sparse_coo[\s\S]*to_dense\(\)"),
    "scale": ({"softmax_scale": float("nan")}, r"softmax_scale is nan"),
    "scale text": ({"softmax_scale": "large"}, r"softmax_scale is 'large'"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call(attention: PrismAttention, case: str) -> None:
    change, words = BAD_CALLS[case]
    arguments = {"q": zeros(), "k": zeros(heads=3), "v": zeros(heads=3), **change}
    with pytest.raises(TensorError, match=words):
        attention(**arguments)


def test_grad_leaves_pass_under_no_grad(attention: PrismAttention) -> None:
    with torch.no_grad():
        assert attention(zeros().requires_grad_(), zeros(heads=3), zeros(heads=3)).shape == (1, 8, 9, 64)


def test_wrong_device() -> None:
    """Tensors that are not where the kernels were resolved; "meta" stands for any other device."""
    rules = TensorRules(9, 3, 64, 1, (torch.bfloat16,), torch.device("meta"))
    with pytest.raises(DeviceError, match=r"q is on cpu, this PrismAttention was resolved for meta[\s\S]*move q"):
        check_qkv(zeros(), zeros(heads=3), zeros(heads=3), rules, (64, 64))


def test_the_cuda_dtype_is_the_models_alone() -> None:
    rules = TensorRules(9, 3, 64, 1, (torch.bfloat16,), None)
    half = [zeros(heads=h, dtype=torch.float16) for h in (9, 3, 3)]
    with pytest.raises(TensorError, match=r"q is torch\.float16[\s\S]*available: torch\.bfloat16\n"):
        check_qkv(*half, rules, (64, 64))


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -0.1, 1.0001, float("inf")])
@pytest.mark.parametrize("band", ["high_threshold", "low_threshold"])
def test_bad_threshold(model: ModelSpec, band: str, bad: float) -> None:
    per_head = torch.full((9,), 0.9)
    per_head[4] = bad
    with pytest.raises(TensorError, match=rf"{band} is .*\n.*\(0, 1\]"):
        PrismAttention(None, model, backend="reference", **{band: bad})
    with pytest.raises(TensorError, match=rf"{band} is .* for head 4"):
        PrismAttention(None, model, backend="reference", **{band: per_head})


@pytest.mark.parametrize("bad", ["most", [None], [[0.9]]], ids=repr)
def test_threshold_that_is_no_number(attention: PrismAttention, bad: Any) -> None:
    with pytest.raises(TensorError, match=r"high_threshold is [\s\S]*give a number"):
        attention.make_thresholds(bad, 0.9)


def test_threshold_lengths(attention: PrismAttention) -> None:
    with pytest.raises(TensorError, match=r"high_threshold has 4 values[\s\S]*one per q head \(9\)"):
        attention.make_thresholds([0.9] * 4, 0.9)
    with pytest.raises(TensorError, match="high_threshold has 9 values, low_threshold 3"):
        attention.make_thresholds([0.9] * 9, [0.9] * 3)
    with pytest.raises(TensorError, match=r"thresholds for 3 heads, q has 9"):
        attention(zeros(), zeros(heads=3), zeros(heads=3), thresholds=attention.make_thresholds([0.9] * 3, 0.9))


@pytest.mark.parametrize("layer", [-1, 30, 1.5, True, "3"], ids=repr)
def test_no_such_layer(model: ModelSpec, layer: Any) -> None:
    with pytest.raises(ConfigError, match=r"layer .* of smollm2[\s\S]*layers 0 to 29"):
        PrismAttention(None, model, layer, backend="reference")


def test_sliding_layer_belongs_to_the_dense_path(model: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match=r"layer 29 of smollm2 is a sliding-window layer[\s\S]*dense path"):
        PrismAttention(None, model, 29, backend="reference")


@pytest.mark.parametrize("block_size", [(64,), (64, 0), 64, (64, 64.0), "64x64"], ids=repr)
def test_bad_block_size(model: ModelSpec, block_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"block_size is [\s\S]*\(128, 64\)"):
        PrismAttention(None, model, backend="reference", block_size=block_size)


def test_unknown_backend(model: ModelSpec) -> None:
    with pytest.raises(UnsupportedError, match=r"no backend 'triton'[\s\S]*cuda, reference"):
        PrismAttention(None, model, backend="triton")


def test_neither_bundle_nor_model() -> None:
    with pytest.raises(ConfigError, match="neither a bundle nor a model"):
        PrismAttention(None, backend="reference")


def test_cuda_without_a_gpu_is_an_error(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"torch sees no CUDA device[\s\S]*backend=\"reference\""):
        PrismAttention(make_bundle(), backend="cuda")


class OneH100:
    """Stands in for torch.cuda's queries on a machine with one device of capability 9.0."""

    @staticmethod
    def apply(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "some GPU")


@pytest.mark.parametrize("device", ["cuda:1", "cpu", "gpu"])
def test_no_such_device(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    OneH100.apply(monkeypatch)
    with pytest.raises(DeviceError, match=rf"device '{device}'[\s\S]*cuda:0"):
        PrismAttention(make_bundle(), device=device)


def test_device_of_another_architecture(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    OneH100.apply(monkeypatch, (8, 0))
    with pytest.raises(DeviceError, match=r"some GPU \(compute capability 8\.0\)"):
        PrismAttention(make_bundle())


def test_block_size_that_was_not_built(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    OneH100.apply(monkeypatch)
    with pytest.raises(ResolveError, match=r"block_size_k is 64, asked 128[\s\S]*--block-size 128x128 --dtype bf16"):
        PrismAttention(make_bundle(), block_size=(128, 128))


def test_library_that_does_not_open(make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    OneH100.apply(monkeypatch)
    with pytest.raises(BundleError, match="does not open as a kernel library"):
        PrismAttention(make_bundle())


def test_selection_for_other_tensors(attention: PrismAttention) -> None:
    q, k, v = zeros(), zeros(heads=3), zeros(heads=3)
    good = Selection.all_visible(attention.grid(q, k), 1, 9, q.device)
    bad = {
        "the selection is for": Selection(good.block_indices, good.block_counts, BlockGrid(9, 9, 64, 64)),
        "block_indices has shape": Selection(good.block_indices[:, :3], good.block_counts[:, :3], good.grid),
        "block_counts is torch.int64": Selection(good.block_indices, good.block_counts.long(), good.grid),
    }
    attention.attend(q, k, v, good)
    for words, selection in bad.items():
        with pytest.raises(TensorError, match=words):
            attention.attend(q, k, v, selection)


def test_mask_of_another_shape() -> None:
    with pytest.raises(TensorError, match=r"block_mask is torch\.bool \[1, 9, 2, 2\][\s\S]*1, 1\]"):
        Selection.from_mask(torch.ones(1, 9, 2, 2, dtype=torch.bool), BlockGrid(8, 8, 64, 64))


def test_every_message_says_what_to_do(attention: PrismAttention) -> None:
    for case, (change, _) in BAD_CALLS.items():
        with pytest.raises(PrismError) as caught:
            attention(**{"q": zeros(), "k": zeros(heads=3), "v": zeros(heads=3), **change})
        assert caught.value.fix, case
