"""Identity of kernels: every field is in the key; specs survive JSON."""

from __future__ import annotations

import json

import msgspec
import pytest

from prism_gen.errors import BundleError, UnsupportedError
from prism_gen.families import FAMILIES, context, decode_spec
from prism_gen.model import SelectionSpec
from prism_gen.spec import KernelSpec, Struct
from prism_gen.specialize import specialize


def _changed(value: object) -> object:
    """Another value of the same type."""
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, int):
        return value + 1
    if isinstance(value, Struct):
        return msgspec.structs.replace(value, words=value.words + 1)
    return (*value, value[0])


def _variants(spec: KernelSpec) -> list[KernelSpec]:
    """One spec per field, with that field changed."""
    variants = [msgspec.structs.replace(spec, family=spec.family + "x"), msgspec.structs.replace(spec, arch="sm100")]
    for part in ("problem", "schedule"):
        struct: Struct = getattr(spec, part)
        for field in struct.__struct_fields__:
            other = msgspec.structs.replace(struct, **{field: _changed(getattr(struct, field))})
            variants.append(msgspec.structs.replace(spec, **{part: other}))
    return variants


@pytest.mark.parametrize("family", FAMILIES)
def test_key_changes_with_every_field(make_model, family):
    fine = make_model(selection=SelectionSpec(block_sizes=((128, 128),), estimator="subblock"))
    specs = (*specialize(make_model(fused_rope=True), ["sm90"]), *specialize(fine, ["sm90"]))
    spec = next(spec for spec in specs if spec.family == family)
    variants = _variants(spec)
    assert len({spec.key, *(variant.key for variant in variants)}) == len(variants) + 1


def test_canonical_json_is_sorted_and_dense(make_model):
    for spec in specialize(make_model(), ["sm90"]):
        text = spec.to_json()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_spec_survives_json(make_model):
    for spec in specialize(make_model(block_sizes=((128, 64), (64, 64)), fused_rope=True), ["sm90"]):
        assert decode_spec(json.loads(spec.to_json())) == spec


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda spec: spec.pop("arch"), "arch"),
        (lambda spec: spec["problem"].pop("head_dim"), "head_dim"),
        (lambda spec: spec["problem"].update(head_dim="128"), "head_dim"),
        (lambda spec: spec["schedule"].update(warp_tiles=3), "warp_tiles"),
    ],
    ids=["no arch", "no head_dim", "head_dim is text", "unknown field"],
)
def test_damaged_spec_names_the_field(make_model, damage, words):
    obj = json.loads(specialize(make_model(), ["sm90"])[0].to_json())
    damage(obj)
    with pytest.raises(BundleError, match=words):
        decode_spec(obj)


def test_unknown_family_lists_the_known(make_model):
    obj = json.loads(specialize(make_model(), ["sm90"])[0].to_json())
    with pytest.raises(UnsupportedError, match="pool, rotate, select, subpool, score, attend"):
        decode_spec({**obj, "family": "fine"})


def test_bands_reach_templates_as_chunks(make_model):
    pool = next(spec for spec in specialize(make_model(), ["sm90"]) if spec.family == "pool")
    # The paper's split of 128 half-split dims: pairs 0..31 and 16..63.
    assert context(pool)["high_chunks"] == [0, 1, 2, 3, 8, 9, 10, 11]
    assert context(pool)["low_chunks"] == [2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15]
