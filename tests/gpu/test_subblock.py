"""The subblock estimator end to end on a device: the reference's lists, chunk by chunk the same, in a graph too."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from prism_gen.runtime import Bundle, PrismAttention  # noqa: E402
from prism_gen.runtime.reference_cut import shares  # noqa: E402
from prism_gen.runtime.reference_rotate import rotate  # noqa: E402

pytestmark = pytest.mark.gpu

BLOCK_SIZES = ((64, 64), (128, 64))
MOST_DIFFERING = 0.02  # of the rows: those whose cut lies within the rounding of means to fp16


@pytest.fixture(params=[0, 1], ids=["d64", "d128"])
def model_index(request: pytest.FixtureRequest) -> int:
    """Which model of the bundle."""
    return int(request.param)


def inputs(attention: PrismAttention, tokens: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seeded q, k, v whose heads have common directions, so that few keys matter."""
    model, draw = attention.model, torch.Generator("cuda").manual_seed(3)

    def tensor(heads: int) -> torch.Tensor:
        shape = (batch, tokens, heads, model.head_dim)
        common = torch.randn(1, 1, heads, model.head_dim, device="cuda", generator=draw)
        slow = torch.randn(batch, -(-tokens // 64), heads, model.head_dim, device="cuda", generator=draw)
        noise = torch.randn(shape, device="cuda", generator=draw)
        return (noise + common + slow.repeat_interleave(64, 1)[:, :tokens]).bfloat16()

    return tensor(model.num_q_heads), tensor(model.num_kv_heads), tensor(model.num_kv_heads)


@pytest.mark.parametrize("block_size", BLOCK_SIZES, ids=str)
def test_the_lists_are_the_references(fine_bundle: Bundle, model_index: int, block_size: tuple[int, int]) -> None:
    model = fine_bundle.manifest.models[model_index]
    ours = PrismAttention(fine_bundle, model, block_size=block_size)
    by_reference = PrismAttention(None, model, block_size=block_size, backend="reference")
    q, k, v = inputs(ours, 3001, batch=2)
    chosen = ours.select(ours.pool(q, k), with_probs=True)
    exact = by_reference.select(by_reference.pool(q, k), with_probs=True)
    differing = (chosen.block_mask() != exact.block_mask()).any(-1).float().mean()
    assert float(differing) <= MOST_DIFFERING
    assert chosen.probs is not None
    assert exact.probs is not None
    assert float((shares(chosen.probs) - shares(exact.probs)).abs().max()) < 0.01
    out, _ = ours.attend(q, k, v, chosen)
    expected, _ = by_reference.attend(q, k, v, chosen)
    largest = float(expected.abs().max())
    assert float((out.float() - expected.float()).abs().max()) < 0.02 * largest  # some units of bf16


def test_chunks_with_pooled_keys_choose_what_one_call_chooses(fine_bundle: Bundle, model_index: int) -> None:
    attention = PrismAttention(fine_bundle, fine_bundle.manifest.models[model_index], block_size=(64, 64))
    q, k, _ = inputs(attention, 2500)
    whole = attention.select(attention.pool(q, k), with_probs=True)
    cache = attention.pooled_keys(batch=1, max_tokens=2500, like=k)
    for start, end in ((0, 640), (640, 704), (704, 2048), (2048, 2500)):
        chunk = attention.select(attention.pool(q[:, start:end], k[:, :end], pooled_keys=cache), with_probs=True)
        rows, columns = slice(start // 64, -(-end // 64)), -(-end // 64)
        assert chunk.probs is not None
        assert whole.probs is not None
        assert chunk.probs.equal(whole.probs[:, :, :, rows, :columns])
        assert chunk.block_counts.equal(whole.block_counts[:, :, rows])


def test_rotating_in_the_same_pass_chooses_what_rotating_first_does(fine_bundle: Bundle, model_index: int) -> None:
    model = fine_bundle.manifest.models[model_index]
    attention = PrismAttention(fine_bundle, model, block_size=(64, 64))
    q, k, _ = inputs(attention, 2500)
    angle = torch.arange(2500, device="cuda")[None, :, None] * 0.7 ** torch.arange(model.rope.rotary_dim // 2).cuda()
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    rotated_q, rotated_k = (rotate(x, cos, sin, interleaved=model.rope.interleaved) for x in (q, k))
    cache, k_cache = attention.pooled_keys(batch=1, max_tokens=2500, like=k), torch.zeros_like(k)
    for start, end in ((0, 641), (641, 643), (643, 2048), (2048, 2500)):  # the first two end inside sub-blocks
        new = slice(start, end)
        tokens, places = (x[:, new] for x in (q, k, cos, sin)), k_cache[:, new]
        turned = attention.rotate_and_pool(*tokens, k_out=places, pooled_keys=cache)
        chosen = attention.select(turned.pooled, with_probs=True)
        wanted = attention.select(attention.pool(rotated_q[:, new], rotated_k[:, :end]), with_probs=True)
        assert turned.q.equal(rotated_q[:, new])
        assert chosen.probs is not None
        assert wanted.probs is not None
        assert chosen.probs.equal(wanted.probs)
        assert chosen.block_counts.equal(wanted.block_counts)
    assert k_cache.equal(rotated_k)


def test_a_graph_replays_the_eager_bits(fine_bundle: Bundle, model_index: int) -> None:
    attention = PrismAttention(fine_bundle, fine_bundle.manifest.models[model_index], block_size=(64, 64))
    q, k, v = inputs(attention, 1500)
    attention(q, k, v)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(q, k, v)
    q.neg_()
    expected = attention(q, k, v)
    graph.replay()
    torch.cuda.synchronize()
    assert out.equal(expected)
