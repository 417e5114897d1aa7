"""Which kernels a model needs, and what is said where a schedule is missing."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import msgspec
import pytest

from prism_gen.arch import ARCHS
from prism_gen.errors import UnsupportedError
from prism_gen.families import context
from prism_gen.model import RopeSpec, SelectionSpec
from prism_gen.schedules import ROWS, kernel_spec
from prism_gen.specialize import specialize

BLOCK_SIZES = ((128, 128), (128, 64), (64, 64))


def _labels(specs) -> list[str]:
    return [f"{spec.family} {spec.problem.label()}" for spec in specs]


def test_one_pool_and_one_select_serve_every_block_size(make_model):
    assert _labels(specialize(make_model(block_sizes=BLOCK_SIZES), ["sm90"])) == [
        "pool bf16-d128-h64-l96",
        "select d128-h64-l96",
        "attend bf16-d128-b128x128",
        "attend bf16-d128-b128x64",
        "attend bf16-d128-b64x64",
    ]


def test_shared_lists_change_attend_alone(make_model):
    """select takes the sharing at run time; attend packs the heads of a group. 8 q heads on 2 KV heads."""
    selection = SelectionSpec(block_sizes=((128, 64), (32, 64)), share="group")
    assert _labels(specialize(make_model(selection=selection), ["sm90"])) == [
        "pool bf16-d128-h64-l96",
        "select d128-h64-l96",
        "attend bf16-d128-b128x64-g4",
        "attend bf16-d128-b32x64-g4",
    ]


def test_sub_blocks_need_two_kernels_of_their_own(make_model):
    """8x8 in blocks of 64x64 and 16x16 in blocks of 128x128 are one score kernel."""
    selection = SelectionSpec(block_sizes=((128, 64), (64, 64)), estimator="subblock", sub_block_q=4)
    assert _labels(specialize(make_model(selection=selection), ["sm90"])) == [
        "subpool bf16-d128",
        "score d128-r32-c8",
        "score d128-r16-c8",
        "attend bf16-d128-b128x64",
        "attend bf16-d128-b64x64",
    ]
    wide, narrow = (
        specialize(make_model(selection=SelectionSpec(block_sizes=((b, b),), estimator="subblock", **sizes)), ["sm90"])
        for b, sizes in ((64, {}), (128, {"sub_block_q": 16, "sub_block_k": 16}))
    )
    assert wide[:2] == narrow[:2]


@pytest.mark.parametrize(
    ("rope", "label"),
    [
        (RopeSpec(rotary_dim=128), "rotate bf16-d128-r128-half-h64-l96"),
        (RopeSpec(rotary_dim=64, interleaved=True), "rotate bf16-d128-r64-pairs-h64-l96"),
    ],
    ids=["half-split", "partial interleaved"],
)
def test_a_fused_rotation_is_built_where_it_is_asked_for(make_model, rope, label):
    labels = _labels(specialize(make_model(block_sizes=BLOCK_SIZES, rope=rope, fused_rope=True), ["sm90"]))
    assert labels.count(label) == 1
    assert not any("rotate" in label for label in _labels(specialize(make_model(rope=rope), ["sm90"])))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.family}-{row.schedule}")
def test_a_row_is_not_hidden_by_one_before_it(row):
    for values in itertools.product(*row.facts.values()):
        problem = SimpleNamespace(**dict(zip(row.facts, values, strict=True)))
        assert kernel_spec(row.family, row.arch, problem).schedule == row.schedule


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_every_row_fits_its_arch(make_model, dtype, head_dim):
    model = make_model(dtype=dtype, head_dim=head_dim, rope=RopeSpec(rotary_dim=head_dim), block_sizes=BLOCK_SIZES)
    fine = msgspec.structs.replace(
        model, selection=msgspec.structs.replace(model.selection, estimator="subblock", sub_block_k=16)
    )
    for spec in (*specialize(model, ["sm90"]), *specialize(fine, ["sm90"])):
        assert context(spec).get("smem_bytes", 0) <= ARCHS["sm90"].smem_limit_bytes


@pytest.mark.parametrize(("family", "stages"), [("attend", "kv_stages"), ("score", "k_stages")])
def test_too_many_stages_are_refused_with_the_limit(make_model, family, stages):
    selection = SelectionSpec(block_sizes=((64, 64),), estimator="subblock")
    (spec,) = (spec for spec in specialize(make_model(selection=selection), ["sm90"]) if spec.family == family)
    greedy = msgspec.structs.replace(spec.schedule, **{stages: 64})
    with pytest.raises(UnsupportedError, match="232448 bytes on sm90"):
        context(msgspec.structs.replace(spec, schedule=greedy))


@pytest.mark.parametrize(
    ("fields", "archs", "words"),
    [
        ({"head_dim": 80, "rope": RopeSpec(rotary_dim=80)}, ["sm90"], r"(?s)d80.*head_dim 64.*schedules\.py"),
        ({"block_sizes": ((128, 256),)}, ["sm90"], r"(?s)b128x256.*block_size_k 128"),
        ({"block_sizes": ((64, 128),)}, ["sm90"], r"(?s)b64x128.*block_size_q 64, block_size_k 64"),
        ({"dtype": "fp8"}, ["sm90"], r"(?s)'fp8'.*bf16, fp16"),
        ({}, ["sm80"], r"(?s)'sm80'.*sm90"),
        ({"layer_kinds": ("sliding", "sliding")}, ["sm90"], "no full-attention layer"),
    ],
    ids=["head_dim", "block_size", "block pair", "dtype", "arch", "all sliding"],
)
def test_unsupported_lists_what_exists(make_model, fields, archs, words):
    with pytest.raises(UnsupportedError, match=words):
        specialize(make_model(**fields), archs)
