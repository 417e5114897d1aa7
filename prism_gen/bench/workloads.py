"""Launches to time, one a kernel, on seeded random inputs of a shape that is served.

Owns each family's inputs and the order of its arguments. Must not time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from prism_gen.bench.fine_workload import score_calls, subpool_calls
from prism_gen.errors import UnsupportedError
from prism_gen.verify.kernels import Kernel, bands_of
from prism_gen.verify.pooling import Pooled
from prism_gen.verify.problem import make_problem, prepare_launch
from prism_gen.verify.rotation import rope_tables
from prism_gen.verify.select_cases import SelectCase
from prism_gen.verify.selection import band_energy

Call = Callable[[], object]
Heads = tuple[int, int]  # (q, kv)
BLOCKS = (128, 128)  # q and k tokens, of kernels that take any
THRESHOLD = 0.95  # the paper's for Llama


def calls_for(
    kernels: Sequence[Kernel], seqlen: int, density: float, batch: int, heads: Heads, device: torch.device
) -> list[Call]:
    """One launch of each kernel, all of one problem, on the same inputs. density: of attend alone.

    Raises: UnsupportedError for a family without a workload.
    """
    family = kernels[0].spec.family
    if family == "attend":
        problem = make_problem(kernels[0], seqlen, density, shared_heads(kernels[0], heads), device, batch=batch)
        return [prepare_launch(kernel, problem)[0] for kernel in kernels]
    if family not in CALLS:
        raise UnsupportedError(
            f"no workload for kernels of the family {family!r}",
            exists=", ".join(["attend", *CALLS]),
            fix="add one to prism_gen/bench/workloads.py",
        )
    return CALLS[family](kernels, seqlen, batch, heads, device)


def shared_heads(kernel: Kernel, heads: Heads) -> Heads:
    """These heads, or as many q heads as fill the lists that a group shares."""
    shared = kernel.problem.heads_per_list
    return heads if shared == 1 else (heads[1] * shared, heads[1])


def _tokens(kernel: Kernel, seqlen: int, batch: int, heads: Heads, device: torch.device) -> list[Tensor]:
    draw = torch.Generator(device=device).manual_seed(seqlen)
    shapes = ((batch, seqlen, count, kernel.problem.head_dim) for count in heads)
    return [torch.randn(shape, generator=draw, device=device).to(kernel.dtype) for shape in shapes]


def _pool(kernels: Sequence[Kernel], seqlen: int, batch: int, heads: Heads, device: torch.device) -> list[Call]:
    q, k = _tokens(kernels[0], seqlen, batch, heads, device)
    outputs = Pooled.of(q, k, BLOCKS).views
    return [partial(kernel.launch, q, k, *outputs, *BLOCKS, 0, None, None) for kernel in kernels]


def _rotate(kernels: Sequence[Kernel], seqlen: int, batch: int, heads: Heads, device: torch.device) -> list[Call]:
    q, k = _tokens(kernels[0], seqlen, batch, heads, device)
    cos, sin = rope_tables(kernels[0], seqlen, 0, device)
    inputs = (q, k, cos, sin, torch.empty_like(q), torch.empty_like(k))
    outputs = Pooled.of(q, k, BLOCKS).views
    return [partial(kernel.launch, *inputs, *outputs, *BLOCKS, 0, None, None) for kernel in kernels]


def _select(kernels: Sequence[Kernel], seqlen: int, batch: int, heads: Heads, device: torch.device) -> list[Call]:
    case = SelectCase(seqlen, seqlen, *BLOCKS, num_q_heads=heads[0], num_kv_heads=heads[1], batch=batch)
    means = case.means(kernels[0].problem.head_dim, device)
    energies = [band_energy(mean, bands_of(kernels[0].problem)) for mean in means]
    return [select_call(kernel, case, (*means, *energies)) for kernel in kernels]


def select_call(kernel: Kernel, case: SelectCase, scored: Sequence[Tensor]) -> Call:
    """One launch of select on means and energies (q, k, q, k) into lists that hold every block."""
    grid, device = case.grid, scored[0].device
    rows = (case.batch, case.num_lists, grid.num_q_blocks)
    floats = kernel.scratch_floats(*rows, grid.num_k_blocks) if kernel.scratch_floats else 0
    lists = (
        torch.empty(*rows, grid.num_k_blocks, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
    )
    thresholds = torch.full((case.num_lists, 2), THRESHOLD, device=device)
    lengths = (grid.block_size_q, grid.block_size_k, grid.seqlen_q, grid.seqlen_k)
    scratch = torch.empty(floats, device=device) if floats else None
    outputs = (*lists, None, None, scratch)
    return partial(kernel.launch, *scored, thresholds, *lengths, *case.rules.kernel_arguments(), *outputs)


def selection_call(pool: Kernel, select: Kernel, case: SelectCase, device: torch.device) -> Call:
    """pool of q and k, then select, as a layer launches them."""
    q, k = case.tokens(select.problem.head_dim, pool.dtype, device)
    sizes = (case.block_size_q, case.block_size_k)
    q_mean, q_energy, k_mean, k_energy = views = Pooled.of(q, k, sizes).views
    run_pool = partial(pool.launch, q, k, *views, *sizes, 0, None, None)
    run_select = select_call(select, case, (q_mean, k_mean, q_energy, k_energy))

    def both() -> None:
        run_pool()
        run_select()

    return both


CALLS: dict[str, Callable[[Sequence[Kernel], int, int, Heads, torch.device], list[Call]]] = {
    "pool": _pool,
    "rotate": _rotate,
    "select": _select,
    "subpool": subpool_calls,
    "score": score_calls,
}
