"""Which kernels a model needs, and what is said where a schedule is missing."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from prism_gen.arch import ARCHS
from prism_gen.errors import UnsupportedError
from prism_gen.families import context
from prism_gen.model import RopeSpec
from prism_gen.schedules import ROWS
from prism_gen.specialize import specialize

BLOCK_SIZES = ((128, 128), (128, 64), (64, 64))


def _labels(specs) -> list[str]:
    return [f"{spec.family} {spec.problem.label()}" for spec in specs]


def test_pools_follow_block_sizes_and_one_select_serves_them(make_model):
    assert _labels(specialize(make_model(block_sizes=BLOCK_SIZES), ["sm90"])) == [
        "pool bf16-d128-b128-h64-l96",
        "pool bf16-d128-b64-h64-l96",
        "select d128-h64-l96",
        "attend bf16-d128-b128x128",
        "attend bf16-d128-b128x64",
        "attend bf16-d128-b64x64",
    ]


def test_a_row_is_used_by_some_supported_model(make_model):
    used = set()
    for dtype, head_dim in itertools.product(("bf16", "fp16"), (64, 128)):
        model = make_model(dtype=dtype, head_dim=head_dim, rope=RopeSpec(rotary_dim=head_dim), block_sizes=BLOCK_SIZES)
        used |= {(spec.family, spec.schedule) for spec in specialize(model, list(ARCHS))}
    assert used == {(row.family, row.schedule) for row in ROWS}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_row_fits_its_arch(make_model, dtype, head_dim):
    model = make_model(dtype=dtype, head_dim=head_dim, rope=RopeSpec(rotary_dim=head_dim), block_sizes=BLOCK_SIZES)
    for spec in specialize(model, ["sm90"]):
        assert context(spec).get("smem_bytes", 0) <= ARCHS["sm90"].smem_limit_bytes


def test_too_many_stages_are_refused_with_the_limit(make_model):
    attend = specialize(make_model(), ["sm90"])[-1]
    greedy = msgspec.structs.replace(attend.schedule, kv_stages=64)
    with pytest.raises(UnsupportedError, match="232448 bytes on sm90"):
        context(msgspec.structs.replace(attend, schedule=greedy))


@pytest.mark.parametrize(
    ("fields", "archs", "words"),
    [
        ({"head_dim": 80, "rope": RopeSpec(rotary_dim=80)}, ["sm90"], r"(?s)d80.*head_dim 64.*schedules\.py"),
        ({"block_sizes": ((128, 256),)}, ["sm90"], r"(?s)b256.*block_size 128"),
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
