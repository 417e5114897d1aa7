"""The three stages as torch operators, prism_gen::pool, ::select and ::attend: what torch.compile and export can hold.

Owns their schemas, their shapes without data (fake implementations) and the names under which they find kernels. Must
not compute: a PrismAttention does. Calling one directly costs the host less; operators are for graphs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from prism_gen.errors import ConfigError, TensorError
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.backend import Pooled
from prism_gen.runtime.connect import model_rules
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.reference_pool import compute_dtype
from prism_gen.runtime.selection import Selection
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.sub_blocks import SubBlocks

# A graph holds a name, not kernels: it can be saved, and finds the kernels of the process that runs it.
_REGISTERED: WeakValueDictionary[str, PrismAttention] = WeakValueDictionary()
_RUNS: Counter[str] = Counter()
NUM_ENERGIES = 3  # of the high band, the low band, all dims


def register(attention: PrismAttention, name: str) -> str:
    """Makes `attention` known to operators for as long as the caller keeps it; what to give them as `kernels`.

    That is `name` with what the shapes of the operators' outputs depend on beside their inputs: torch.compile keeps
    graphs from process to process by what stands in them, and must not take one that was made for other shapes. A
    program saved by torch.export names its kernels so: register under the same name before running it.
    Raises: ConfigError where another attention of such shapes has the name.
    """
    full = f"{name}:{_signature(attention)}"
    known = _REGISTERED.get(full)
    if known is attention:
        return full
    if known is not None:
        raise ConfigError(
            f"kernels named {full!r} are registered already",
            exists=", ".join(sorted(_REGISTERED)),
            fix="choose another name, or drop the PrismAttention that has this one",
        )
    _REGISTERED[full] = attention
    _RUNS[full] = 0
    return full


def _signature(attention: PrismAttention) -> str:
    """What the fake implementations below read of an attention, in words: `128x128-cuda`, `64x64-sub4x8-cuda`."""
    scoring, rules = attention.scoring, model_rules(attention.model.selection)
    words = ["{}x{}".format(*attention.block_size)]
    words += [f"sub{scoring.q}x{scoring.k}"] if isinstance(scoring, SubBlocks) else []
    words += ["group"] if rules.share == "group" else []
    words += [] if rules.max_blocks is None else [f"max{rules.max_blocks}"]
    return "-".join([*words, attention.backend.name])


def registered(name: str) -> PrismAttention:
    """The attention of that name. Raises: ConfigError where there is none."""
    found = _REGISTERED.get(name)
    if found is None:
        raise ConfigError(
            f"no kernels named {name!r} in this process",
            exists=", ".join(sorted(_REGISTERED)) or "none registered",
            fix="give what prism_gen.runtime.ops.register(attention, name) returned, and keep the attention",
        )
    return found


def free_name(name: str) -> str:
    """`name`, or with a number where names that begin with it are in use."""
    taken, number, free = list(_REGISTERED), 1, name
    while any(other.startswith((f"{free}:", f"{free}.")) for other in taken):
        number += 1
        free = f"{name}#{number}"
    return free


def runs(name: str) -> int:
    """How often attend ran under what register returned. Replays of a CUDA graph are not seen."""
    return _RUNS[name]


def attention(q: Tensor, k: Tensor, v: Tensor, *, kernels: str, softmax_scale: float | None = None) -> Tensor:
    """PrismAttention's call in operators alone: traceable, exportable, capturable.

    q: [batch, seqlen_q, num_q_heads, head_dim]; k, v: [batch, seqlen_k, num_kv_heads, head_dim]; out like q.
    kernels: what register returned. softmax_scale: None takes the model's.
    """
    pooled = torch.ops.prism_gen.pool(q, k, kernels)
    lists = torch.ops.prism_gen.select(*pooled, q.shape[1], k.shape[1], kernels, softmax_scale)
    out: Tensor = torch.ops.prism_gen.attend(q, k, v, *lists, kernels, softmax_scale)[0]
    return out


@torch.library.custom_op(
    "prism_gen::pool",
    mutates_args=(),
    schema="(Tensor q, Tensor k, str kernels) -> (Tensor q_mean, Tensor k_mean, Tensor q_energy, Tensor k_energy)",
)
def pool(q: Tensor, k: Tensor, kernels: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """PrismAttention.pool: means [batch, heads, blocks, head_dim] and energies; of sub-blocks if those are scored."""
    q_mean, k_mean, q_energy, k_energy, _ = registered(kernels).pool(q, k)
    return q_mean, k_mean, q_energy, k_energy


@pool.register_fake
def _(q: Tensor, k: Tensor, kernels: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    attention = registered(kernels)
    scoring, means_format = attention.scoring, attention.backend.means
    sizes, num_energies, dtype = attention.block_size, NUM_ENERGIES, means_format.dtype_of(q)
    if isinstance(scoring, SubBlocks):
        sizes, num_energies = (scoring.q, scoring.k), 0
    counts = (-(-q.shape[1] // sizes[0]), means_format.num_means(k.shape[1], sizes[1]))
    rows = [(x.shape[0], x.shape[2], count) for x, count in zip((q, k), counts, strict=True)]
    means = [q.new_empty(*row, q.shape[3], dtype=dtype) for row in rows]
    energies = [q.new_empty(*row, num_energies, dtype=dtype) for row in rows]
    return means[0], means[1], energies[0], energies[1]


@torch.library.custom_op(
    "prism_gen::select",
    mutates_args=(),
    schema="(Tensor q_mean, Tensor k_mean, Tensor q_energy, Tensor k_energy, SymInt seqlen_q, SymInt seqlen_k,"
    " str kernels, float? softmax_scale=None, Tensor? thresholds=None) -> (Tensor block_indices, Tensor block_counts)",
)
def select(
    q_mean: Tensor,
    k_mean: Tensor,
    q_energy: Tensor,
    k_energy: Tensor,
    seqlen_q: int,
    seqlen_k: int,
    kernels: str,
    softmax_scale: float | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PrismAttention.select: lists of blocks; int32, see Selection.

    softmax_scale: None takes the model's. thresholds: the values of a Thresholds; None takes the registered
    attention's.
    """
    pooled = Pooled(q_mean, k_mean, q_energy, k_energy, _grid(kernels, seqlen_q, seqlen_k))
    chosen = None if thresholds is None else Thresholds(thresholds, uniform=False)
    selection = registered(kernels).select(pooled, thresholds=chosen, softmax_scale=softmax_scale)
    return selection.block_indices, selection.block_counts


@select.register_fake
def _(
    q_mean: Tensor,
    k_mean: Tensor,
    q_energy: Tensor,
    k_energy: Tensor,
    seqlen_q: int,
    seqlen_k: int,
    kernels: str,
    softmax_scale: float | None = None,
    thresholds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    rules, grid = model_rules(registered(kernels).model.selection), _grid(kernels, seqlen_q, seqlen_k)
    rows = (q_mean.shape[0], rules.num_lists(q_mean.shape[1], k_mean.shape[1]), grid.num_q_blocks)
    num_k_blocks = grid.num_k_blocks
    max_blocks = num_k_blocks if rules.max_blocks is None else min(rules.max_blocks, num_k_blocks)
    return q_mean.new_empty(*rows, max_blocks, dtype=torch.int32), q_mean.new_empty(rows, dtype=torch.int32)


@torch.library.custom_op(
    "prism_gen::attend",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor block_indices, Tensor block_counts, str kernels,"
    " float? softmax_scale=None, bool return_lse=False) -> (Tensor out, Tensor lse)",
)
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    block_counts: Tensor,
    kernels: str,
    softmax_scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    """PrismAttention.attend: out like q, lse [batch, num_q_heads, seqlen_q], or [0] where it is not asked for."""
    attention = registered(kernels)
    selection = Selection(block_indices, block_counts, attention.grid(q, k))
    out, lse = attention.attend(q, k, v, selection, softmax_scale=softmax_scale, return_lse=return_lse)
    _RUNS[kernels] += 1
    return out, out.new_empty(0, dtype=compute_dtype(q)) if lse is None else lse


@attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    block_counts: Tensor,
    kernels: str,
    softmax_scale: float | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    shape = (q.shape[0], q.shape[2], q.shape[1]) if return_lse else (0,)
    return q.new_empty(q.shape), q.new_empty(shape, dtype=compute_dtype(q))


def _grid(kernels: str, seqlen_q: int, seqlen_k: int) -> BlockGrid:
    return BlockGrid(seqlen_q, seqlen_k, *registered(kernels).block_size)


def _refuse_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> NoReturn:
    """torch calls it where an input requires grad and gradients are on."""
    raise TensorError(
        "a prism_gen operator was given a tensor that requires grad",
        exists="forward only (prefill)",
        fix="call under torch.no_grad(), or detach() the tensor",
    )


def _no_backward(ctx: Any, *gradients: Any) -> NoReturn:
    """Never reached: _refuse_gradient raises first. torch asks for it beside setup_context."""
    raise NotImplementedError


for _operator in (pool, select, attend):
    _operator.register_autograd(_no_backward, setup_context=_refuse_gradient)
