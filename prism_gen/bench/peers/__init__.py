"""Peers to measure beside prism-gen: each optional, imported only when asked for, on the same tensors and mask.

Owns the list of them; each file owns how one peer is called. Must not time (timing.py does) and must not import
prism_gen's kernels.
"""

from __future__ import annotations

from functools import partial

from prism_gen.bench.peers import fa4, flash_attn, flashprefill
from prism_gen.bench.peers.prism import prepare_prism, prism_estimate, prism_layer, prism_unavailable
from prism_gen.bench.peers.problem import Peer, differs, distance, split_diagonal, with_prefix, without_cuda
from prism_gen.bench.peers.torch_attention import prepare_flex, prepare_sdpa
from prism_gen.verify.problem import Problem

__all__ = [
    "Peer",
    "Problem",
    "attend_peers",
    "differs",
    "distance",
    "prism_estimate",
    "prism_layer",
    "prism_unavailable",
    "split_diagonal",
]


def _torch_unavailable(problem: Problem) -> str:
    return with_prefix(problem) or without_cuda(problem)


def attend_peers(prism_src: str | None = None, flashprefill_lib: str | None = None) -> dict[str, Peer]:
    """Every peer of attend by name.

    prism_src: a checkout of github.com/xinghaow99/prism. flashprefill_lib: made by tools/build_flashprefill.py.
    """

    def prism_sparse_unavailable(problem: Problem) -> str:
        return with_prefix(problem) or prism_unavailable(prism_src, problem.block_sizes)

    rows = (
        Peer("cudnn-dense", False, _torch_unavailable, prepare_sdpa("CUDNN_ATTENTION")),
        Peer("flash2-dense", False, _torch_unavailable, prepare_sdpa("FLASH_ATTENTION")),
        Peer("fa2-dense", False, flash_attn.v2_unavailable, flash_attn.prepare_v2),
        Peer("fa3-dense", False, flash_attn.v3_unavailable, flash_attn.prepare_v3),
        Peer("flex-sparse", True, _torch_unavailable, prepare_flex),
        Peer("fa4-sparse", True, fa4.sparse_unavailable, fa4.prepare_sparse),
        Peer("fa4-packed", True, fa4.packed_unavailable, fa4.prepare_packed),
        Peer("fa4-dense", False, fa4.unavailable, fa4.prepare_dense),
        Peer("prism-sparse", True, prism_sparse_unavailable, prepare_prism(prism_src)),
        Peer(
            "flashprefill2-sparse",
            True,
            partial(flashprefill.unavailable, flashprefill_lib),
            flashprefill.prepare(flashprefill_lib),
        ),
    )
    return {row.name: row for row in rows}
