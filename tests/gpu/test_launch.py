"""How calls behave on a device: repeatable, asynchronous, on any stream, in a graph; and what they refuse."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from prism_gen.errors import DeviceError, TensorError  # noqa: E402
from prism_gen.runtime import Bundle, Output, PrismAttention  # noqa: E402

pytestmark = pytest.mark.gpu

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def attention(bundle: Bundle) -> PrismAttention:
    """The 128-dim model in blocks of 128x128."""
    return PrismAttention(
        bundle, bundle.manifest.models[1], block_size=(128, 128), high_threshold=0.7, low_threshold=0.7
    )


def qkv(attention: PrismAttention, seed: int, tokens: int = 1500) -> Tensors:
    model = attention.model
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(heads: int) -> torch.Tensor:
        return torch.randn(1, tokens, heads, model.head_dim, device="cuda", generator=generator).bfloat16()

    return normal(model.num_q_heads), normal(model.num_kv_heads), normal(model.num_kv_heads)


def whole(attention: PrismAttention, tensors: Tensors) -> Output:
    result = attention(*tensors, return_lse=True, return_stats=True)
    assert isinstance(result, Output)
    return result


def assert_same_bits(a: Output, b: Output) -> None:
    assert a.out.equal(b.out)
    assert a.lse.equal(b.lse)
    assert a.stats.counts.equal(b.stats.counts)


def test_calls_repeat_to_the_bit(attention: PrismAttention) -> None:
    tensors = qkv(attention, 0)
    first = whole(attention, tensors)
    for _ in range(20):
        assert_same_bits(whole(attention, tensors), first)


def test_the_answer_is_the_references(attention: PrismAttention) -> None:
    """End to end; a block whose mass lies on the threshold may fall either way, so densities agree to a few blocks."""
    tensors = qkv(attention, 1)
    ours = whole(attention, tensors)
    by_reference = PrismAttention(
        None, attention.model, block_size=(128, 128), backend="reference", high_threshold=0.7, low_threshold=0.7
    )
    selection = by_reference.select(by_reference.pool(*tensors[:2]))
    off = (ours.stats.counts - selection.block_counts).abs().sum()
    assert int(off) <= 0.001 * int(selection.block_counts.sum())
    same = (ours.stats.counts == selection.block_counts).repeat_interleave(128, 2)[:, :, :1500]
    out, lse = by_reference.attend(*tensors, selection, return_lse=True)
    difference = (ours.out.float() - out.float()).abs().amax(-1).transpose(1, 2)
    assert (
        float(difference[same].max()) < 0.03
    )  # bf16 output of size up to 4 in early rows: 1 to 2 units in the last place
    torch.testing.assert_close(ours.lse[same], lse[same], rtol=0, atol=1e-3)


def test_a_call_never_synchronises(attention: PrismAttention) -> None:
    tensors = qkv(attention, 2)
    whole(attention, tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole(attention, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_captured_graph_follows_its_inputs(attention: PrismAttention) -> None:
    static = qkv(attention, 3)
    whole(attention, static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = whole(attention, static)
    for seed in (4, 5):
        fresh = qkv(attention, seed)
        expected = whole(attention, fresh)
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(captured, expected)


def test_eager_calls_after_a_capture_on_the_same_stream(attention: PrismAttention) -> None:
    """What a capture allocates is the graph's: it must not be left behind as the stream's workspace, never zeroed."""
    tensors = qkv(attention, 6)
    expected = whole(attention, tensors)
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = whole(attention, tensors)
    with torch.cuda.stream(stream):
        eager = whole(attention, tensors)
    torch.cuda.synchronize()
    assert_same_bits(eager, expected)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(captured, expected)


def test_streams_run_side_by_side(attention: PrismAttention) -> None:
    work = [qkv(attention, seed) for seed in range(10, 14)]
    expected = [whole(attention, tensors) for tensors in work]
    streams = [torch.cuda.Stream() for _ in work]
    torch.cuda.synchronize()
    results = []
    for _ in range(5):
        for stream, tensors in zip(streams, work, strict=True):
            with torch.cuda.stream(stream):
                results.append(whole(attention, tensors))
    torch.cuda.synchronize()
    for index, result in enumerate(results):
        assert_same_bits(result, expected[index % len(work)])


def test_strided_views_are_read_in_place(attention: PrismAttention) -> None:
    tensors = qkv(attention, 7)
    heads_first = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors)
    assert_same_bits(whole(attention, heads_first), whole(attention, tensors))


def test_tensors_elsewhere_are_refused(attention: PrismAttention) -> None:
    q, k, v = qkv(attention, 8)
    with pytest.raises(DeviceError, match="q is on cpu, this PrismAttention was resolved for cuda"):
        attention(q.cpu(), k.cpu(), v.cpu())
    with pytest.raises(TensorError, match=r"q is torch\.float16"):
        attention(q.half(), k.half(), v.half())
