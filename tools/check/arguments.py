"""Wrong arguments to every raw export: refused with the right error that names the argument, and harmless afterwards.

Owns which mistakes are tried. Runs only on compiled kernels, which validate; the reference does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from prism_gen.families.score import TILE_COLUMNS
from prism_gen.runtime.reference_pool import granules_per_block
from prism_gen.verify.cases import Case
from prism_gen.verify.kernels import Kernel, bands_of
from prism_gen.verify.masks import compact
from prism_gen.verify.report import Findings, Group, Report
from prism_gen.verify.rotation import rope_tables
from prism_gen.verify.select_cases import SelectCase
from prism_gen.verify.selection import band_energy
from prism_gen.verify.subblock_cases import SubBlockCase, in_tile_order

TOKENS = Case(200, 300, num_q_heads=4, num_kv_heads=2)
BLOCKS = SelectCase(200, 300, num_q_heads=4, num_kv_heads=2)
SUB_BLOCKS = SubBlockCase(2000, 3000)


class Mistake(NamedTuple):
    """`change` of one argument, and the words that the error must hold."""

    argument: str
    label: str
    change: Callable[[Any], Any]
    error: type[Exception] = ValueError
    says: str = ""


def _misaligned(x: torch.Tensor) -> torch.Tensor:
    """The same shape and strides, one element off a 16-byte boundary."""
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    return flat[1:].view(x.shape)


def _transposed_last(x: torch.Tensor) -> torch.Tensor:
    """The same shape with a last dim that is not contiguous."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _tensor_mistakes(name: str) -> tuple[Mistake, ...]:
    """What is wrong for every tensor."""
    return (
        Mistake(name, "on-cpu", lambda x: x.cpu()),
        Mistake(name, "dtype", lambda x: x.double() if x.is_floating_point() else x.long(), TypeError),
        Mistake(name, "dims", lambda x: x[None]),
        Mistake(name, "too-long", lambda x: torch.cat([x, x[..., :1]], -1)),
    )


def _token_mistakes(name: str) -> tuple[Mistake, ...]:
    """What is wrong for q, k, v, x and out beside that."""
    return (
        *_tensor_mistakes(name),
        Mistake(name, "misaligned", _misaligned),
        Mistake(name, "last-dim-strided", _transposed_last),
        Mistake(name, "expanded", lambda x: x[:, :1].expand(x.shape), says=name),
        Mistake(name, "odd-stride", lambda x: torch.nn.functional.pad(x, (0, 1))[..., :-1]),
    )


def _attend_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    problem = kernel.problem
    case = TOKENS.shared_by(problem.heads_per_list)
    q, k, v = case.qkv(problem.head_dim, kernel.dtype, device)
    grid = case.grid(problem.block_size_q, problem.block_size_k)
    indices, counts = compact(case.block_mask(grid, device, problem.heads_per_list))
    return {
        "q": q,
        "k": k,
        "v": v,
        "out": torch.empty(q.shape, dtype=q.dtype, device=device),
        "lse": torch.empty(q.shape[0], q.shape[2], q.shape[1], device=device),
        "block_indices": indices,
        "block_counts": counts,
        "softmax_scale": 0.1,
        "tile_counter": torch.zeros(1, dtype=torch.int32, device=device),
    }


def _pool_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    head_dim, sizes, start = kernel.problem.head_dim, (128, 64), 100
    q, k, _ = TOKENS.qkv(head_dim, kernel.dtype, device)
    q_rows = (1, q.shape[2], -(-q.shape[1] // sizes[0]))
    k_rows = (1, k.shape[2], -(-(start + k.shape[1]) // sizes[1]))
    tail = (*k_rows[:2], granules_per_block(sizes[1]), head_dim)
    return {
        "q": q,
        "k": k,
        "q_mean": torch.empty(*q_rows, head_dim, device=device),
        "q_energy": torch.empty(*q_rows, 3, device=device),
        "k_mean": torch.empty(*k_rows, head_dim, device=device),
        "k_energy": torch.empty(*k_rows, 3, device=device),
        "block_size_q": sizes[0],
        "block_size_k": sizes[1],
        "k_start": start,
        "tail_in": torch.zeros(tail, device=device),
        "tail_out": torch.empty(tail, device=device),
    }


def _rotate_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    pooled = _pool_arguments(kernel, device)
    q, k = pooled.pop("q"), pooled.pop("k")
    q = torch.cat([q, q], 1)[:, : k.shape[1]].contiguous()
    blocks = -(-q.shape[1] // pooled["block_size_q"])
    pooled["q_mean"], pooled["q_energy"] = (
        torch.empty(1, q.shape[2], blocks, width, device=device) for width in (q.shape[3], 3)
    )
    cos, sin = (table.contiguous() for table in rope_tables(kernel, k.shape[1], pooled["k_start"], device))
    outs = {"q_out": torch.empty_like(q), "k_out": torch.empty_like(k)}
    return {"q": q, "k": k, "cos": cos, "sin": sin, **outs, **pooled}


def _select_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    grid, bands = BLOCKS.grid, bands_of(kernel.problem)
    q_mean, k_mean = BLOCKS.means(kernel.problem.head_dim, device)
    rows = (1, BLOCKS.num_q_heads, grid.num_q_blocks)
    floats = kernel.scratch_floats(*BLOCKS.scratch_sizes) if kernel.scratch_floats else 0
    return {
        "q_mean": q_mean,
        "k_mean": k_mean,
        "q_energy": band_energy(q_mean, bands),
        "k_energy": band_energy(k_mean, bands),
        "thresholds": BLOCKS.thresholds(device),
        "block_size_q": grid.block_size_q,
        "block_size_k": grid.block_size_k,
        "seqlen_q": grid.seqlen_q,
        "seqlen_k": grid.seqlen_k,
        "force_sink": 1,
        "force_recent": 1,
        "share_group": 0,
        "prefix_calibration": 0,
        "cut_kind": 0,
        "block_indices": torch.empty(*rows, grid.num_k_blocks, dtype=torch.int32, device=device),
        "block_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "wanted_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "probs": None,
        "scratch": torch.empty(floats, device=device) if floats else None,
    }


def _subpool_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    head_dim, sizes = kernel.problem.head_dim, (4, 16)
    q, k, _ = TOKENS.qkv(head_dim, kernel.dtype, device)
    k_rows = -(-k.shape[1] // (sizes[1] * TILE_COLUMNS)) * TILE_COLUMNS
    return {
        "q": q,
        "k": k,
        "q_sub": torch.empty(1, q.shape[2], -(-q.shape[1] // sizes[0]), head_dim, dtype=torch.float16, device=device),
        "k_sub": torch.empty(1, k.shape[2], k_rows, head_dim, dtype=torch.float16, device=device),
        "sub_block_q": sizes[0],
        "sub_block_k": sizes[1],
        "k_start": 20,
    }


def _score_arguments(kernel: Kernel, device: torch.device) -> dict[str, Any]:
    case = SUB_BLOCKS
    q, k = case.sub_means(kernel.problem.head_dim, device)
    grid, lengths = case.grid(kernel.problem), (case.seqlen_q, case.seqlen_k)
    rows, sizes = (1, case.num_q_heads, grid.num_q_blocks), (case.sub_block_q, case.sub_block_k)
    heads = (case.num_q_heads, case.num_kv_heads)
    floats = kernel.scratch_floats(1, *heads, *sizes, *lengths, device.index or 0) if kernel.scratch_floats else 0
    return {
        "q_sub": q,
        "k_sub": in_tile_order(k),
        "thresholds": case.thresholds(device),
        "softmax_scale": 0.1,
        "sub_block_q": sizes[0],
        "sub_block_k": sizes[1],
        "seqlen_q": lengths[0],
        "seqlen_k": lengths[1],
        "force_sink": 1,
        "force_recent": 1,
        "share_group": 0,
        "reduce_mean": 0,
        "exclude_forced": 0,
        "cut_kind": 0,
        "block_indices": torch.empty(*rows, grid.num_k_blocks, dtype=torch.int32, device=device),
        "block_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "wanted_counts": torch.empty(rows, dtype=torch.int32, device=device),
        "probs": None,
        "scratch": torch.empty(floats, device=device),
    }


ARGUMENTS = {
    "attend": _attend_arguments,
    "pool": _pool_arguments,
    "rotate": _rotate_arguments,
    "select": _select_arguments,
    "subpool": _subpool_arguments,
    "score": _score_arguments,
}
MISTAKES: dict[str, tuple[Mistake, ...]] = {
    "attend": (
        *(mistake for name in ("q", "k", "v", "out") for mistake in _token_mistakes(name)),
        *(mistake for name in ("lse", "block_counts", "tile_counter") for mistake in _tensor_mistakes(name)),
        Mistake("lse", "strided", lambda lse: lse.transpose(1, 2).contiguous().transpose(1, 2)),
        *(m for m in _tensor_mistakes("block_indices") if m.label != "too-long"),  # any capacity of the lists is right
        Mistake("q", "longer-than-k", lambda q: torch.cat([q, q], 1), says="seqlen_q"),
        Mistake("q", "heads", lambda q: q[:, :, :-1].contiguous(), says="num_q_heads"),
        Mistake("v", "shorter-than-k", lambda v: v[:, 1:]),
        Mistake("out", "other-heads", lambda out: out[:, :, 1:]),
        Mistake("block_counts", "other-rows", lambda counts: counts[..., :-1].contiguous()),
        Mistake("softmax_scale", "nan", lambda _: float("nan")),
    ),
    "pool": (
        *(mistake for name in ("q", "k") for mistake in _token_mistakes(name)),
        *(m for name in ("q_mean", "q_energy", "k_mean", "k_energy", "tail_in") for m in _tensor_mistakes(name)),
        Mistake("q_mean", "too-few-blocks", lambda mean: mean[:, :, 1:].contiguous()),
        Mistake("k_mean", "too-few-blocks", lambda mean: mean[:, :, 1:].contiguous()),
        Mistake("k", "other-batch", lambda k: torch.cat([k, k]), says="k"),
        Mistake("tail_in", "none", lambda _: None),
        Mistake("tail_in", "other-heads", lambda tail: tail[:, 1:].contiguous()),
        Mistake("block_size_q", "odd", lambda _: 48),
        Mistake("k_start", "negative", lambda _: -1, says="from -1"),
    ),
    "rotate": (
        *(mistake for name in ("q", "k", "q_out", "k_out") for mistake in _token_mistakes(name)),
        *(mistake for name in ("cos", "sin", "k_mean") for mistake in _tensor_mistakes(name)),
        Mistake("q", "fewer-tokens", lambda q: q[:, 1:], says="k.shape[1]"),
        Mistake("cos", "odd-stride", lambda cos: torch.nn.functional.pad(cos, (0, 1))[..., :-1]),
        Mistake("sin", "other-layout", lambda sin: torch.nn.functional.pad(sin, (0, 8))[..., :-8]),
        Mistake("tail_in", "none", lambda _: None),
    ),
    "select": (
        *(
            mistake
            for name in ("q_mean", "k_energy", "thresholds", "block_counts", "wanted_counts")
            for mistake in _tensor_mistakes(name)
        ),
        Mistake("block_indices", "no-room-for-forced-blocks", lambda indices: indices[..., :1].contiguous()),
        Mistake("cut_kind", "unknown", lambda _: 3),
        Mistake("seqlen_q", "longer-than-k", lambda _: 301),
        Mistake("block_size_k", "zero", lambda _: 0),
        Mistake("force_sink", "two", lambda _: 2),
    ),
    "subpool": (
        *(mistake for name in ("q", "k") for mistake in _token_mistakes(name)),
        *(m for name in ("q_sub", "k_sub") for m in _tensor_mistakes(name) if m.label != "too-long"),
        Mistake("q_sub", "too-few", lambda means: means[:, :, 1:].contiguous()),
        Mistake("k_sub", "too-few", lambda means: means[:, :, 1:].contiguous()),
        Mistake("k", "other-batch", lambda k: torch.cat([k, k]), says="k"),
        Mistake("sub_block_q", "odd", lambda _: 12),
        Mistake("k_start", "negative", lambda _: -1, says="from -1"),
    ),
    "score": (
        *(m for name in ("thresholds", "block_counts", "wanted_counts") for m in _tensor_mistakes(name)),
        *(m for name in ("q_sub", "k_sub") for m in _tensor_mistakes(name) if m.label != "too-long"),
        Mistake("k_sub", "no-whole-tiles", lambda means: means[:, :, 1:].contiguous()),
        Mistake("block_indices", "no-room-for-forced-blocks", lambda indices: indices[..., :1].contiguous()),
        Mistake("scratch", "none-to-speak-of", lambda scratch: scratch[:1]),
        Mistake("softmax_scale", "nan", lambda _: float("nan")),
        Mistake("sub_block_k", "two", lambda _: 2),
        Mistake("seqlen_q", "longer-than-k", lambda _: 5000),
        Mistake("reduce_mean", "two", lambda _: 2),
    ),
}  # fmt: skip


def check_mistake(kernel: Kernel, arguments: dict[str, Any], mistake: Mistake) -> Findings:
    """Launches with one argument wrong; the error must be of the right class and name the argument."""
    found = Findings()
    wrong = {**arguments, mistake.argument: mistake.change(arguments[mistake.argument])}
    try:
        kernel.launch(*wrong.values())
    except (ValueError, TypeError) as error:
        says = mistake.says or mistake.argument
        found.require(isinstance(error, mistake.error), f"{type(error).__name__}, expected {mistake.error.__name__}")
        found.require(says in str(error), f"the error does not name {says}: {error}")
    else:
        found.require(False, "was accepted")
    return found


def check_valid(kernel: Kernel, arguments: dict[str, Any]) -> Findings:
    """The same arguments without a mistake are accepted."""
    kernel.launch(*arguments.values())
    return Findings()


def run(kernels: list[Kernel], report: Report) -> None:
    """Every kernel: each mistake alone, then the right arguments."""
    for kernel in kernels:
        group = Group(report, f"{kernel.name}-arguments")
        arguments = ARGUMENTS[kernel.spec.family](kernel, report.device)
        for mistake in MISTAKES[kernel.spec.family]:
            name = f"{mistake.argument}-{mistake.label}"
            group.case(name, partial(check_mistake, kernel, arguments, mistake))
        group.case("valid", partial(check_valid, kernel, arguments))
        group.close()
