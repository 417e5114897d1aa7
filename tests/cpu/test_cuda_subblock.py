"""CudaSubBlockBackend without a GPU: the calling convention of templates/README.md, by the reference as libraries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from prism_gen.errors import UnsupportedError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.runtime import reference, reference_subblock
from prism_gen.runtime.backend import BeforeRope
from prism_gen.runtime.cuda_subblock import CudaSubBlockBackend
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.reference_pool import pool
from prism_gen.runtime.reference_rotate import rotate
from prism_gen.runtime.rules import SelectRules
from prism_gen.specialize import layer_problems, score_problem
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.reference_subblock_kernels import ReferenceScore, reference_subpool

BLOCK_SIZE = (128, 64)
GRID = BlockGrid(200, 300, *BLOCK_SIZE)


@pytest.fixture(autouse=True)
def no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda's questions about streams, answered on a machine without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: SimpleNamespace(cuda_stream=0))


def make_backend(
    model: ModelSpec, fine: SubBlocks, rules: SelectRules, *, rotates: bool = False
) -> CudaSubBlockBackend:
    """The backend on the reference's stand-ins for compiled libraries."""
    score = ReferenceScore(score_problem(model, BLOCK_SIZE, fine))

    def checked_score(*arguments: object) -> None:
        assert isinstance(arguments[-1], Tensor)
        assert arguments[-1].shape == (7,)
        score(*arguments)  # type: ignore[arg-type]

    def scratch_floats(*sizes: int | None) -> int:
        assert sizes == (2, 9, 3, fine.q, fine.k, GRID.seqlen_q, GRID.seqlen_k, None)
        return 7

    def library(**functions: object) -> SimpleNamespace:
        return SimpleNamespace(get_function=functions.__getitem__)

    def rotate_sub_blocks(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor, *to: Any
    ) -> None:
        for x, out in ((q, q_out), (k, k_out)):
            out.copy_(rotate(x, cos, sin, interleaved=False))
        reference_subpool(q_out, k_out, *to)

    return CudaSubBlockBackend(
        subpool=library(subpool=reference_subpool),
        score=library(score=checked_score, scratch_floats=scratch_floats),
        attend=library(attend=reference.attend),
        sub_blocks=fine,
        rotate=library(rotate_sub_blocks=rotate_sub_blocks) if rotates else None,
        rules=rules,
    )


def make_cache(backend: CudaSubBlockBackend, fine: SubBlocks) -> PooledKeys:
    """For two sequences of three heads of up to 3000 tokens, on the CPU."""
    return PooledKeys(
        batch=2,
        num_kv_heads=3,
        head_dim=64,
        max_tokens=3000,
        block_size=BLOCK_SIZE[1],
        sub_block_size=fine.k,
        k_multiple=backend.means.k_multiple,
        device=torch.device("cpu"),
        dtype=backend.means.dtype_of(torch.empty(0, dtype=torch.bfloat16)),
    )


@pytest.mark.parametrize("rules", [SelectRules(), SelectRules(share="group", max_blocks=4)], ids=["head", "group"])
@pytest.mark.parametrize(
    "fine", [SubBlocks(8, 8), SubBlocks(4, 16, "mean", exclude_forced=True)], ids=["8x8", "4x16-mean-exclude"]
)
def test_stages_launch_what_the_reference_means(model: ModelSpec, fine: SubBlocks, rules: SelectRules) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, n, h, 64).bfloat16() for n, h in ((200, 9), (300, 3)))
    backend = make_backend(model, fine, rules)
    pooled = backend.pool(q, k, GRID)
    assert pooled.q_mean.dtype == torch.float16
    assert pooled.k_mean.shape[2] % 128 == 0
    means = [pool(x, size, None)[0].half().float() for x, size in ((q, fine.q), (k, fine.k))]
    thresholds = torch.full((rules.num_lists(9, 3), 1), 0.5)
    selection = backend.select(pooled, thresholds, softmax_scale=0.2, with_probs=True)
    exact = reference_subblock.select(
        means[0], means[1], thresholds, sub_blocks=fine, grid=GRID, softmax_scale=0.2, rules=rules
    )
    assert selection.block_mask().equal(exact.block_mask())
    assert selection.probs is not None
    assert exact.probs is not None
    assert selection.probs.equal(exact.probs)
    assert (selection.wanted_counts is None) == (rules.max_blocks is None)
    assert backend.select(pooled, thresholds, softmax_scale=0.2, with_probs=False).probs is None


def test_chunks_fill_a_cache_with_the_same_means(model: ModelSpec) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, n, h, 64).bfloat16() for n, h in ((200, 9), (2300, 3)))
    backend = make_backend(model, fine := SubBlocks(4, 8), SelectRules())
    cache = make_cache(backend, fine)
    for end in (230, 1029, 1031, 2300, 2300):
        chunked = backend.pool(q, k[:, :end], BlockGrid(200, end, *BLOCK_SIZE), cache)
    whole = backend.pool(q, k, BlockGrid(200, 2300, *BLOCK_SIZE))
    written = torch.zeros(whole.k_mean.shape[2], dtype=torch.bool)
    written[cuda_places(288)] = True
    assert chunked.k_mean[:, :, :384][:, :, written].equal(whole.k_mean[:, :, written])


def cuda_places(count: int) -> list[int]:
    """Where templates/README.md puts the means of sub-columns 0 .. count - 1, one by one."""
    places = []
    for column in range(count):
        tile, owner, index = column // 128, column % 128 // 32, column % 32
        places.append(128 * tile + 8 * (index // 2) + 2 * owner + index % 2)
    return places


def test_chunks_before_rope_fill_a_cache_with_the_means_of_rotated_keys(model: ModelSpec) -> None:
    torch.manual_seed(0)
    fine, total = SubBlocks(4, 8), 700
    q, k = (torch.randn(2, total, h, 64).bfloat16() for h in (9, 3))
    cos, sin = (torch.randn(1, total, 32).bfloat16() for _ in range(2))
    rotated_q, rotated_k = (rotate(x, cos, sin, interleaved=False) for x in (q, k))
    backend = make_backend(model, fine, SelectRules(), rotates=True)
    cache, k_cache = make_cache(backend, fine), torch.zeros_like(k)
    start = 0
    for end in (230, 233, 700):  # inside sub-blocks
        new = slice(start, end)
        x = BeforeRope(q[:, new], k[:, new], cos[:, new], sin[:, new])
        turned, pooled = backend.rotate_and_pool(x, k_cache[:, new], BlockGrid(end - start, end, *BLOCK_SIZE), cache)
        assert turned.equal(rotated_q[:, new])
        start = end
    assert k_cache.equal(rotated_k)
    whole = backend.pool(rotated_q[:, 233:], rotated_k, BlockGrid(467, total, *BLOCK_SIZE))
    places = cuda_places(88)
    assert pooled.k_mean[:, :, places].equal(whole.k_mean[:, :, places])
    assert pooled.q_mean.equal(whole.q_mean)


def test_without_rotate_the_error_says_how_to_get_it(model: ModelSpec) -> None:
    backend = make_backend(model, SubBlocks(8, 8), SelectRules())
    x = torch.zeros(1, 4, 1, 64)
    with pytest.raises(UnsupportedError, match="resolved without rotate"):
        backend.rotate_and_pool(BeforeRope(x, x, x, x), x, GRID)


def test_one_rotate_serves_every_block_size(model: ModelSpec) -> None:
    selection = SelectionSpec(block_sizes=((128, 64), (64, 64)), estimator="subblock", fused_rope=True)
    fused = msgspec.structs.replace(model, selection=selection)
    first, second = (layer_problems(fused, pair) for pair in selection.block_sizes)
    assert set(first) == {"subpool", "score", "attend", "rotate"}
    assert first["rotate"] == second["rotate"]
