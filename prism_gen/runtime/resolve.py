"""Which compiled kernel serves a request, and why every other one does not.

Owns the comparison of explicit facts. Pure: no tensors, no device, no disk. Must not load libraries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from prism_gen.errors import ResolveError
from prism_gen.families import PoolProblem, SelectProblem
from prism_gen.manifest import KernelEntry
from prism_gen.model import ModelSpec
from prism_gen.rope import Bands
from prism_gen.specialize import attend_problem, block_pair_bands, rotate_problem


class Request(NamedTuple):
    """What must be computed, where: the facts that an entry has to match, all of them. problem: a family's Problem."""

    family: str
    arch: str
    problem: Any

    def facts(self) -> dict[str, Any]:
        """Fact name -> value, in the order they are compared."""
        return {"family": self.family, "arch": self.arch, **msgspec.structs.asdict(self.problem)}


class Verdict(NamedTuple):
    """One entry and why it was rejected; no reasons means accepted."""

    entry: KernelEntry
    reasons: tuple[str, ...]


class Resolution(NamedTuple):
    """The chosen entry and the verdict on every entry of the bundle, in its order."""

    entry: KernelEntry
    trace: tuple[Verdict, ...]


class LayerRequests(NamedTuple):
    """The kernels of one layer; rotate only where the model's selection asks for it."""

    pool: Request
    select: Request
    attend: Request
    rotate: Request | None


def layer_requests(model: ModelSpec, arch: str, block_size: tuple[int, int]) -> LayerRequests:
    """The requests of a full-attention layer of `model` at block_size (q tokens, k tokens).

    Raises: UnsupportedError as rope.bands does.
    """
    bands: Bands = block_pair_bands(model, block_size)
    dims: dict[str, Any] = {"head_dim": model.head_dim, "high_dims": bands.high_dims, "low_dims": bands.low_dims}
    return LayerRequests(
        Request("pool", arch, PoolProblem(dtype=model.dtype, **dims)),
        Request("select", arch, SelectProblem(**dims)),
        Request("attend", arch, attend_problem(model, block_size)),
        Request("rotate", arch, rotate_problem(model, bands)) if model.selection.fused_rope else None,
    )


def resolve(entries: Iterable[KernelEntry], request: Request, *, build_command: str) -> Resolution:
    """The first entry whose every fact equals the request's.

    build_command: what would supply the kernel; the last line of the error.
    Raises: ResolveError with the verdict on every entry.
    """
    trace = tuple(Verdict(entry, _reasons(entry, request)) for entry in entries)
    for verdict in trace:
        if not verdict.reasons:
            return Resolution(verdict.entry, trace)
    raise ResolveError(
        f"no kernel serves {request.family} {request.problem.label()} on {request.arch}",
        exists=f"{len(trace)} kernels, none of which fits" + format_trace(trace),
        fix=build_command,
    )


def build_command(model: ModelSpec, arch: str, block_size: tuple[int, int], *, config: str, out: str) -> str:
    """The exact command that builds the kernels of `model` at block_size. config, out: paths."""
    size = f"{block_size[0]}x{block_size[1]}"
    return (
        f"python -m prism_gen build --model-config {config} --arch {arch} --block-size {size} --dtype {model.dtype}"
        f" --out {out}"
    )


def format_trace(trace: Iterable[Verdict]) -> str:
    """One line per entry: its name and what was wrong with it."""
    lines = [f"{verdict.entry.name}: {'; '.join(verdict.reasons) or 'accepted'}" for verdict in trace]
    return "".join(f"\n    {line}" for line in lines)


def _reasons(entry: KernelEntry, request: Request) -> tuple[str, ...]:
    """Every fact that differs; of another family only that, because its other facts mean other things."""
    asked = request.facts()
    found = Request(entry.spec.family, entry.spec.arch, entry.spec.problem).facts()
    if found["family"] != asked["family"]:
        return (f"family is {found['family']}",)
    return tuple(
        f"{name} is {_show(found.get(name))}, asked {_show(value)}"
        for name, value in asked.items()
        if found.get(name) != value
    )


def _show(value: Any) -> str:
    """Rising dims as ranges; anything else as it prints."""
    return ranges(value) if isinstance(value, tuple) else str(value)


def ranges(numbers: Iterable[int]) -> str:
    """Rising numbers, neighbours together: 0-31,64-95."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
