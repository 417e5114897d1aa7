"""A model's layer through PrismAttention: what a user calls, judged as its kernels are.

Owns which calls are tried. Must not know how stages compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prism_gen.errors import ConfigError
from prism_gen.model import ModelSpec
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.checks import TORCH_DTYPES
from prism_gen.runtime.qkv_file import QKV, read_qkv
from prism_gen.runtime.selection import Selection
from prism_gen.verify import oracle
from prism_gen.verify.cases import Case
from prism_gen.verify.numerics import judge_out
from prism_gen.verify.report import Findings, Trial

FILE_QUERIES = 1024  # float64 logits of a KV group's heads on 128K keys are then 4 GiB
LENGTHS = ((1, 1), (300, 300), (129, 1000))  # tokens of q and of k: one, a ragged prompt, a chunk behind a prefix


def check_call(attention: PrismAttention, case: Case, device: torch.device) -> Findings:
    """check_tensors on a case's random inputs."""
    model = attention.model
    return check_tensors(attention, *case.qkv(model.head_dim, TORCH_DTYPES[model.dtype], device))


def check_tensors(attention: PrismAttention, q: Tensor, k: Tensor, v: Tensor) -> Findings:
    """The call against float64 on its own selection, its stages one by one, and every block selected against dense."""
    found, model = Findings(), attention.model
    out = attention(q, k, v)
    selection = attention.select(attention.pool(q, k))
    again, _ = attention.attend(q, k, v, selection)
    found.require(torch.equal(out, again), "the call and its stages one by one differ", "repeat")
    scale, shared = attention.softmax_scale, model.heads_per_list
    chosen = oracle.token_mask(selection.block_mask().repeat_interleave(shared, 1), selection.grid)
    exact, _ = oracle.attend(q, k, v, chosen, scale)
    judge_out(found, out, exact, oracle.torch_attend(q, k, v, chosen, scale), "answer")
    everything = Selection.all_visible(selection.grid, len(q), q.shape[2] // shared, q.device)
    dense, _ = attention.attend(q, k, v, everything)
    causal = oracle.causal_mask(selection.grid, q.device).expand_as(chosen)
    exact, _ = oracle.attend(q, k, v, causal, scale)
    judge_out(found, dense, exact, oracle.torch_attend(q, k, v, causal, scale), "dense")
    return found


def layer_name(model: ModelSpec, block_size: tuple[int, int]) -> str:
    """What records call the layers of a model at one block size."""
    return f"{model.name}-{block_size[0]}x{block_size[1]}"


def layer_trials(attention: PrismAttention, device: torch.device) -> Iterator[Trial]:
    """The calls of one layer, with the heads of one KV group."""
    model = attention.model
    for i, (seqlen_q, seqlen_k) in enumerate(LENGTHS):
        case = Case(seqlen_q, seqlen_k, model.num_q_heads // model.num_kv_heads, 1, batch=1 + i % 2)
        yield Trial(layer_name(model, attention.block_size), str(case), partial(check_call, attention, case, device))


def fits(model: ModelSpec, qkv: QKV) -> bool:
    """Whether the tensors of a file can be those of heads of this model."""
    return qkv.q.shape[3] == model.head_dim and qkv.q.shape[2] == qkv.k.shape[2] * model.group_size


def read_fitting(path: Path, models: Sequence[ModelSpec]) -> QKV:
    """read_qkv. Raises: TensorError as it does; ConfigError for a file that none of the models fits."""
    tensors = read_qkv(path)
    if not any(fits(model, tensors) for model in models):
        raise ConfigError(
            f"{path} holds {tensors.q.shape[2]} q and {tensors.k.shape[2]} kv heads of {tensors.q.shape[3]} dims",
            exists=", ".join(f"{m.name}: {m.num_q_heads} and {m.num_kv_heads} of {m.head_dim}" for m in models),
            fix="give a file of a model of this bundle, whole KV groups of it",
        )
    return tensors


def file_trials(attention: PrismAttention, path: Path, device: torch.device) -> Iterator[Trial]:
    """A user's own tensors: the last queries of a file's first sequence on all its keys, one trial a KV head.

    None for a file of another model's heads.
    """
    qkv, model = read_qkv(path), attention.model
    if not fits(model, qkv):
        return
    q, k, v = (x[:1].to(device, TORCH_DTYPES[model.dtype]) for x in qkv[:3])
    for head in range(k.shape[2]):
        own = slice(head * model.group_size, (head + 1) * model.group_size)
        tensors = (q[:, -FILE_QUERIES:, own], k[:, :, head : head + 1], v[:, :, head : head + 1])
        name = layer_name(model, attention.block_size)
        yield Trial(name, f"{path.name}-kv{head}", partial(check_tensors, attention, *tensors))
