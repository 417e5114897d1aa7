"""The stand of a real device on a CPU: candidates of a bundle, with the reference as their libraries."""

from __future__ import annotations

import msgspec
import pytest
import torch

from prism_gen.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from prism_gen.model import SelectionSpec
from prism_gen.specialize import specialize
from prism_gen.tune import device
from prism_gen.tune.device import OWN_DENSE, DeviceStand
from prism_gen.verify.reference_kernels import reference_kernel

SIZES = ((64, 64),)


@pytest.fixture
def stand_of(make_bundle, make_model, monkeypatch):
    """The stand of a bundle of one small model with this selection, and its kernels by family."""

    def make(selection):
        model = make_model(selection=selection, num_q_heads=4, num_kv_heads=2)
        specs = specialize(model, ["sm90"])
        path = make_bundle(specs=specs)
        manifest = msgspec.structs.replace(read_manifest(path), models=(model,))
        (path / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
        monkeypatch.setattr(device, "bundle_kernel", lambda _bundle, entry: reference_kernel(entry.spec))
        return DeviceStand(path, torch.device("cpu")), {spec.family: spec for spec in specs}

    return make


@pytest.mark.parametrize(
    "selection",
    [
        SelectionSpec(block_sizes=SIZES),
        SelectionSpec(block_sizes=SIZES, share="group"),
        SelectionSpec(block_sizes=SIZES, estimator="subblock"),
    ],
    ids=["paper", "group", "subblock"],
)
def test_the_crossover_counts_what_chooses_the_blocks(stand_of, selection):
    stand, specs = stand_of(selection)
    found = stand.crossover(specs["attend"], [300], (4, 2))
    (crossing,) = found.crossings
    assert crossing.selection_ms > 0
    assert [density for density, _ in crossing.attend_ms][-1] == 1.0
    assert crossing.dense == OWN_DENSE  # no peer runs on a CPU
    assert crossing.dense_ms == crossing.attend_ms[-1][1]


def test_a_family_that_does_not_attend_crosses_nothing(stand_of):
    stand, specs = stand_of(SelectionSpec(block_sizes=SIZES))
    assert stand.crossover(specs["pool"], [300], (4, 2)) is None
