"""Resolution compares facts, and its error says about every kernel why it does not serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from prism_gen.errors import ResolveError
from prism_gen.manifest import KernelEntry
from prism_gen.model import ModelSpec
from prism_gen.runtime.load import load_bundle
from prism_gen.runtime.resolve import Request, build_command, layer_requests, resolve


@pytest.fixture
def entries(make_bundle: Callable[..., Path]) -> tuple[KernelEntry, ...]:
    """The kernels of a bundle for blocks of 64x64 and 128x64."""
    return load_bundle(make_bundle()).manifest.kernels


@pytest.mark.parametrize("block_size", [(64, 64), (128, 64)], ids=str)
def test_every_stage_of_a_layer_resolves_to_its_own_problem(
    entries: tuple[KernelEntry, ...], model: ModelSpec, block_size: tuple[int, int]
) -> None:
    requests = layer_requests(model, "sm90", block_size)
    assert list(requests) == ["pool", "select", "attend"]
    for request in requests.values():
        resolution = resolve(entries, request, build_command="")
        assert resolution.entry.spec.problem == request.problem
        assert [verdict.entry for verdict in resolution.trace] == list(entries)
        accepted = [verdict.entry for verdict in resolution.trace if not verdict.reasons]
        assert accepted == [resolution.entry]


def test_a_miss_names_every_kernel_with_its_reasons_and_the_command(
    entries: tuple[KernelEntry, ...], model: ModelSpec
) -> None:
    fp16 = msgspec.structs.replace(model, dtype="fp16")
    request = layer_requests(fp16, "sm90", (128, 64))["attend"]
    command = build_command(fp16, "sm90", (128, 64), config="cfg.json", out="out")
    with pytest.raises(ResolveError) as caught:
        resolve(entries, request, build_command=command)
    message = str(caught.value)
    assert message.startswith("no kernel serves attend fp16-d64-b128x64 on sm90\n")
    lines = {entry.name: next(line for line in message.splitlines() if entry.name in line) for entry in entries}
    for entry in entries:
        if entry.spec.family != "attend":
            assert lines[entry.name].endswith(f"family is {entry.spec.family}")
        elif entry.spec.problem.block_size_q == 128:
            assert lines[entry.name].endswith(": dtype is bf16, asked fp16")
        else:
            assert lines[entry.name].endswith(": dtype is bf16, asked fp16; block_size_q is 64, asked 128")
    assert message.endswith(
        "fix: python -m prism_gen build --model-config cfg.json --arch sm90 --block-size 128x64 --dtype fp16 --out out"
    )


def test_bands_are_compared_and_shown_as_ranges(entries: tuple[KernelEntry, ...], model: ModelSpec) -> None:
    select = layer_requests(model, "sm90", (64, 64))["select"]
    other = msgspec.structs.replace(select.problem, high_dims=(*range(8), *range(32, 40)))
    with pytest.raises(ResolveError, match=r"high_dims is 0-15,32-47, asked 0-7,32-39"):
        resolve(entries, Request("select", "sm90", other), build_command="")


def test_another_arch_is_a_reason(entries: tuple[KernelEntry, ...], model: ModelSpec) -> None:
    request = layer_requests(model, "sm80", (64, 64))["attend"]
    with pytest.raises(ResolveError, match="arch is sm90, asked sm80"):
        resolve(entries, request, build_command="")


def test_an_empty_bundle(model: ModelSpec) -> None:
    with pytest.raises(ResolveError, match=r"available: 0 kernels[\s\S]*fix: build it"):
        resolve((), layer_requests(model, "sm90", (64, 64))["attend"], build_command="build it")
