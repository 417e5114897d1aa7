"""(ModelSpec, archs) -> KernelSpecs: which kernels a model needs.

Owns that mapping, and which bands a pair of block sizes uses. Must not render or compile.
"""

from __future__ import annotations

from collections.abc import Sequence

from prism_gen.arch import arch as arch_row
from prism_gen.dtypes import dtype as dtype_row
from prism_gen.errors import UnsupportedError
from prism_gen.families import (
    FAMILIES,
    AttendProblem,
    PoolProblem,
    RotateProblem,
    ScoreProblem,
    SelectProblem,
    SubpoolProblem,
)
from prism_gen.model import ModelSpec
from prism_gen.rope import Bands, bands, governing_block_size
from prism_gen.schedules import kernel_spec
from prism_gen.spec import KernelSpec, Problem
from prism_gen.sub_blocks import SubBlocks, sub_blocks


def block_pair_bands(model: ModelSpec, block_size: tuple[int, int]) -> Bands:
    """Bands that pool and select use for one (q, k) block size. Raises: UnsupportedError as rope.bands does."""
    return bands(model.rope, model.head_dim, model.selection, governing_block_size(block_size))


def block_pair_scoring(model: ModelSpec, block_size: tuple[int, int]) -> Bands | SubBlocks:
    """What scores blocks at one (q, k) block size: the paper's bands, or sub-blocks.

    Raises: UnsupportedError as rope.bands and sub_blocks do.
    """
    fine = sub_blocks(model.selection, model.rope, model.head_dim, block_size)
    return block_pair_bands(model, block_size) if fine is None else fine


def rotate_problem(model: ModelSpec, split: Bands) -> RotateProblem:
    """What rotate computes for `model` with these bands."""
    return RotateProblem(
        dtype=model.dtype,
        head_dim=model.head_dim,
        rotary_dim=model.rope.rotary_dim,
        interleaved=model.rope.interleaved,
        high_dims=tuple(split.high_dims),
        low_dims=tuple(split.low_dims),
    )


def attend_problem(model: ModelSpec, block_size: tuple[int, int]) -> AttendProblem:
    """What attend computes for a model at one (q, k) block size."""
    return AttendProblem(
        dtype=model.dtype,
        head_dim=model.head_dim,
        block_size_q=block_size[0],
        block_size_k=block_size[1],
        heads_per_list=model.heads_per_list,
    )


def score_problem(model: ModelSpec, block_size: tuple[int, int], fine: SubBlocks) -> ScoreProblem:
    """What score computes for `model` with these sub-blocks at one (q, k) block size."""
    return ScoreProblem(
        head_dim=model.head_dim,
        rows_per_block=block_size[0] // fine.q,
        columns_per_block=block_size[1] // fine.k,
    )


def layer_problems(model: ModelSpec, block_size: tuple[int, int]) -> dict[str, Problem]:
    """Family -> what it computes for a full-attention layer of `model` at one (q, k) block size.

    Raises: UnsupportedError as block_pair_scoring does.
    """
    scoring = block_pair_scoring(model, block_size)
    attend = attend_problem(model, block_size)
    if isinstance(scoring, SubBlocks):
        problems: dict[str, Problem] = {
            "subpool": SubpoolProblem(dtype=model.dtype, head_dim=model.head_dim),
            "score": score_problem(model, block_size, scoring),
            "attend": attend,
        }
    else:
        high, low = tuple(scoring.high_dims), tuple(scoring.low_dims)
        problems = {
            "pool": PoolProblem(dtype=model.dtype, head_dim=model.head_dim, high_dims=high, low_dims=low),
            "select": SelectProblem(head_dim=model.head_dim, high_dims=high, low_dims=low),
            "attend": attend,
        }
    if not model.selection.fused_rope:
        return problems
    # Sub-blocks are pooled without bands: those of one block size, so that one rotate serves all.
    split = block_pair_bands(model, model.selection.block_sizes[0]) if isinstance(scoring, SubBlocks) else scoring
    return problems | {"rotate": rotate_problem(model, split)}


def specialize(model: ModelSpec, archs: Sequence[str]) -> tuple[KernelSpec, ...]:
    """Every kernel that `model` needs on `archs`, each once: pools, rotates, selects, attends.

    Raises: UnsupportedError listing what exists, where a shape, block size, dtype or arch has no schedule, or no
    layer of the model runs full attention.
    """
    if "full" not in model.layer_kinds:
        raise UnsupportedError(
            f"{model.name} has no full-attention layer; sliding-window layers have nothing to select",
            fix="use a model with full attention in at least one layer",
        )
    dtype_row(model.dtype)
    specs: list[KernelSpec] = []
    for arch in archs:
        arch_row(arch)
        layers = [layer_problems(model, pair) for pair in model.selection.block_sizes]
        for name in FAMILIES:
            specs += [kernel_spec(name, arch, problems[name]) for problems in layers if name in problems]
    return tuple(dict.fromkeys(specs))
