"""(ModelSpec, archs) -> KernelSpecs: which kernels a model needs.

Owns that mapping, and which bands a pair of block sizes uses. Must not render or compile.
"""

from __future__ import annotations

from collections.abc import Sequence

from prism_gen.arch import arch as arch_row
from prism_gen.dtypes import dtype as dtype_row
from prism_gen.errors import UnsupportedError
from prism_gen.families import AttendProblem, PoolProblem, RotateProblem, SelectProblem
from prism_gen.model import ModelSpec
from prism_gen.rope import Bands, bands, governing_block_size
from prism_gen.schedules import kernel_spec
from prism_gen.spec import KernelSpec
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
        pools, rotates, selects, attends = [], [], [], []
        for pair in model.selection.block_sizes:
            attends.append(kernel_spec("attend", arch, attend_problem(model, pair)))
            split = block_pair_scoring(model, pair)
            if isinstance(split, SubBlocks):  # no kernel scores these yet
                continue
            high, low = tuple(split.high_dims), tuple(split.low_dims)
            pool = PoolProblem(dtype=model.dtype, head_dim=model.head_dim, high_dims=high, low_dims=low)
            pools.append(kernel_spec("pool", arch, pool))
            if model.selection.fused_rope:
                rotates.append(kernel_spec("rotate", arch, rotate_problem(model, split)))
            select = SelectProblem(head_dim=model.head_dim, high_dims=high, low_dims=low)
            selects.append(kernel_spec("select", arch, select))
        specs += [*pools, *rotates, *selects, *attends]
    return tuple(dict.fromkeys(specs))
