"""The torch operators on real kernels of both estimators: opcheck, compiled, exported, captured, captured first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from prism_gen.runtime import Bundle, PrismAttention, ops  # noqa: E402

pytestmark = pytest.mark.gpu

NAME = "gpu-ops"
TOKENS = 1500
HEADS = (32, 8, 8)  # of the 128-dim model
BLOCKS = {"paper": (128, 128), "subblock": (64, 64)}
FIRST_CALL_TIMEOUT_S = 120  # of a process that imports torch and opens a bundle

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module", params=["paper", "subblock"])
def attention(request: pytest.FixtureRequest) -> PrismAttention:
    """The 128-dim model, with thresholds that leave out blocks."""
    estimator = request.param
    bundle = request.getfixturevalue("bundle" if estimator == "paper" else "fine_bundle")
    thresholds = {"high_threshold": 0.7, "low_threshold": 0.7} if estimator == "paper" else {"threshold": 0.7}
    return PrismAttention(bundle, bundle.manifest.models[1], block_size=BLOCKS[estimator], **thresholds)


@pytest.fixture
def run(attention: PrismAttention) -> Call:
    """The attention in operators; both estimators under one name, as where a process follows another."""
    kernels = ops.register(attention, NAME)
    return lambda q, k, v: ops.attention(q, k, v, kernels=kernels)


def qkv(seed: int, tokens: int = TOKENS) -> Tensors:
    generator = torch.Generator("cuda").manual_seed(seed)
    q, k, v = (torch.randn(1, tokens, heads, 128, device="cuda", generator=generator).bfloat16() for heads in HEADS)
    return q, k, v


def test_opcheck(attention: PrismAttention) -> None:
    """What nobody reads stays unwritten and is not compared between two runs: of select, behind a row's count; of
    sub-blocks, the end of the last tile of means.
    """
    (q, k, v), name = qkv(0), ops.register(attention, NAME)
    without_values = ("test_schema", "test_autograd_registration", "test_faketensor")
    every = (*without_values, "test_aot_dispatch_dynamic")
    pooled = torch.ops.prism_gen.pool(q, k, name)
    lists = torch.ops.prism_gen.select(*pooled, q.shape[1], k.shape[1], name)
    fine = attention.model.selection.estimator == "subblock"
    torch.library.opcheck(ops.pool, (q, k, name), test_utils=without_values if fine else every)
    torch.library.opcheck(ops.select, (*pooled, q.shape[1], k.shape[1], name), test_utils=without_values)
    torch.library.opcheck(ops.attend, (q, k, v, *lists, name, None, True), test_utils=every)


def test_less_than_everything_is_selected(attention: PrismAttention) -> None:
    """Or the other tests would compare dense attention with itself."""
    stats = attention(*qkv(0), return_stats=True).stats
    assert 0.05 < float(stats.density.mean()) < 0.95


def test_compiles_into_one_graph(attention: PrismAttention, run: Call) -> None:
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v: run(q, k, v) * 2, fullgraph=True)
    for seed, tokens in ((1, TOKENS), (2, 1100), (3, 900)):  # the second length makes the graph dynamic
        tensors = qkv(seed, tokens)
        assert torch.equal(compiled(*tensors), attention(*tensors) * 2)


def test_compiles_into_torchs_own_cuda_graphs(attention: PrismAttention, run: Call) -> None:
    """mode="reduce-overhead": warmed up and recorded in a memory pool that nothing may outlive."""
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v: run(q, k, v) * 2, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # eager, recorded, replayed twice
        tensors = qkv(seed)
        torch.compiler.cudagraph_mark_step_begin()
        assert torch.equal(compiled(*tensors), attention(*tensors) * 2)


def test_exports_and_runs_again(attention: PrismAttention, run: Call, tmp_path: Path) -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return run(q, k, v)

    tensors, path = qkv(4), tmp_path / "layer.pt2"
    torch.export.save(torch.export.export(Layer(), tensors, strict=True), path)
    assert torch.equal(torch.export.load(path).module()(*tensors), attention(*tensors))


def test_operators_are_captured_and_replayed(attention: PrismAttention, run: Call) -> None:
    tensors, others = qkv(5), qkv(6)
    run(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*tensors)
    for mine, other in zip(tensors, others, strict=True):
        mine.copy_(other)
    graph.replay()
    assert torch.equal(out, attention(*others))


FIRST_CALL = """
import sys
import torch
from prism_gen.runtime import PrismAttention, load_bundle, ops

bundle, size = load_bundle(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
attention = PrismAttention(bundle, bundle.manifest.models[1], block_size=size)
kernels = ops.register(attention, "first")
draw = torch.Generator("cuda").manual_seed(0)
q, k, v = (torch.randn(1, 1500, heads, 128, device="cuda", generator=draw).bfloat16() for heads in (32, 8, 8))
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = ops.attention(q, k, v, kernels=kernels)
graph.replay()
torch.cuda.synchronize()
replayed = out.clone()
assert torch.equal(replayed, attention(q, k, v))
q.neg_()
graph.replay()
assert torch.equal(out, attention(q, k, v))
assert not torch.equal(out, replayed)
"""


@pytest.mark.parametrize("estimator", ["paper", "subblock"])
def test_a_capture_may_be_a_process_first_call(request: pytest.FixtureRequest, estimator: str) -> None:
    """No warm-up: libraries load, attributes are set and workspaces are allocated while torch records."""
    bundle: Bundle = request.getfixturevalue("bundle" if estimator == "paper" else "fine_bundle")
    words = [str(bundle.path.resolve()), *map(str, BLOCKS[estimator])]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=FIRST_CALL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
