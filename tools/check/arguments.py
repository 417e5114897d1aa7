"""Wrong arguments to every raw export: refused with the right error that names the argument, and harmless afterwards.

Owns which mistakes are tried. Runs only on compiled kernels, which validate; the reference does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from prism_gen.verify.kernels import Kernel
from prism_gen.verify.report import Findings, Group, Report
from tools.check.right_arguments import ARGUMENTS


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
        Mistake("q_mean", "heads-beyond-a-grid", lambda mean: mean[:, :1].expand(-1, 1 << 16, -1, -1), says="q heads"),
        Mistake("block_indices", "no-room-for-forced-blocks", lambda indices: indices[..., :1].contiguous()),
        Mistake("cut_kind", "unknown", lambda _: 3),
        Mistake("seqlen_q", "longer-than-k", lambda _: 301),
        Mistake("block_size_k", "zero", lambda _: 0),
        Mistake("force_sink", "two", lambda _: 2),
    ),
    "subpool": (
        *(mistake for name in ("q", "k") for mistake in _token_mistakes(name)),
        *(m for name in ("q_sub", "k_sub") for m in _tensor_mistakes(name) if m.label != "too-long"),
        *_tensor_mistakes("tail_in"),
        Mistake("tail_in", "none", lambda _: None),
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
