"""The tuning table: which rows a build takes, which it leaves with a warning, and how parts join."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from prism_gen.candidates import candidates
from prism_gen.crossover import Crossing, Crossover, wins_below
from prism_gen.errors import ConfigError
from prism_gen.families import FAMILIES, family
from prism_gen.model_config import load_model_config
from prism_gen.plan import templates_of
from prism_gen.render import template_root
from prism_gen.schedules import ROWS
from prism_gen.specialize import specialize
from prism_gen.tuning_table import (
    TABLE_SCHEMA_VERSION,
    Candidate,
    Measured,
    Shape,
    TunedKernel,
    TuningTable,
    apply_table,
    encode_table,
    merge_tables,
    read_table,
)

CONFIG = Path(__file__).parents[1] / "models" / "qwen3-8b.json"
SHAPE = Shape(seqlen=8192, density=0.1)


@pytest.fixture(scope="module")
def specs():
    return specialize(load_model_config(CONFIG, block_sizes=((128, 128), (128, 64)), dtype=None), ["sm90"])


def row_of(default, best: int = 1) -> TunedKernel:
    tried = candidates(default)[:3]
    return TunedKernel(
        family=default.family,
        arch=default.arch,
        problem=default.problem,
        templates=templates_of(default, root=template_root()),
        default=default.key,
        best=tried[best].key,
        speedup=1.25,
        speedups={SHAPE.label: 1.25},
        complete=True,
        candidates=tuple(
            Candidate(
                schedule=spec.schedule,
                key=spec.key,
                outcome="right",
                measured=(Measured(stage="final 1", shape=SHAPE, ms=(1.0, 1.1)),),
            )
            for spec in tried
        ),
    )


def table_of(*rows: TunedKernel, **fields) -> TuningTable:
    crossing = Crossing(
        seqlen=8192, dense="cudnn", dense_ms=1.0, selection_ms=0.1, attend_ms=((0.1, 0.2),), wins_below=1.0
    )
    crossover = Crossover(arch="sm90", label="bf16-d128-b128x128", key="k", heads=(32, 8), crossings=(crossing,))
    base = {
        "schema_version": TABLE_SCHEMA_VERSION,
        "generator": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "gpu": "NVIDIA H200",
        "driver": "580.1",
        "cuda": "13.0",
        "heads": (32, 8),
        "toolchain": {"nvcc": "13.0.88"},
        "kernels": rows,
        "crossovers": (crossover,),
    }
    return TuningTable(**{**base, **fields})


def apply(table, specs):
    return apply_table(table, specs, lambda spec: templates_of(spec, root=template_root()))


def test_a_fresh_row_replaces_the_schedule_of_its_problem_alone(specs):
    tuned = apply(table_of(row_of(specs[2])), specs)
    assert tuned.specs[2] == candidates(specs[2])[1]
    assert [spec for i, spec in enumerate(tuned.specs) if i != 2] == [spec for i, spec in enumerate(specs) if i != 2]
    assert tuned.speedups == {tuned.specs[2].key: 1.25}
    assert tuned.warnings == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"templates": "0" * 64}, "its templates or flags have changed"),
        ({"arch": "sm80"}, "tuned on sm80"),
        ({"default": None}, "its default schedule has changed"),
    ],
    ids=["templates", "arch", "default"],
)
def test_a_stale_row_is_left_with_a_warning(specs, change, words):
    row = row_of(specs[2])
    change = {name: row.candidates[2].key if value is None else value for name, value in change.items()}
    tuned = apply(table_of(msgspec.structs.replace(row, **change)), specs)
    assert tuned.specs == specs
    assert words in tuned.warnings[0]
    assert "NVIDIA H200" in tuned.warnings[0]


def test_a_row_whose_default_is_best_changes_nothing(specs):
    tuned = apply(table_of(row_of(specs[0], best=0)), specs)
    assert (tuned.specs, tuned.speedups, tuned.warnings) == (specs, {}, ())


def test_a_table_survives_its_file(specs, tmp_path):
    table = table_of(*(row_of(spec) for spec in specs))
    path = tmp_path / "t.json"
    path.write_bytes(encode_table(table))
    assert read_table(path) == table


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:100], "not a tuning table"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 99'), "schema_version 99"),
        (lambda text: text.replace('"kv_stages": 5', '"kv_stages": 4'), "is not that of its attend schedule"),
        (lambda text: text.replace('"head_dim"', '"dim"'), "not a kernel spec"),
    ],
    ids=["torn", "newer", "edited", "field"],
)
def test_a_damaged_file_is_named(specs, tmp_path, damage, words):
    path = tmp_path / "t.json"
    path.write_text(damage(encode_table(table_of(row_of(specs[2]))).decode()))
    with pytest.raises(ConfigError, match=words):
        read_table(path)


def test_parts_of_one_gpu_join_and_others_do_not(specs):
    parts = [table_of(row_of(specs[0])), table_of(row_of(specs[2]), crossovers=())]
    joined = merge_tables(parts)
    assert {row.default for row in joined.kernels} == {specs[0].key, specs[2].key}
    assert len(joined.crossovers) == 1
    with pytest.raises(ConfigError, match="differ in gpu"):
        merge_tables([parts[0], table_of(row_of(specs[2]), gpu="NVIDIA H100")])
    with pytest.raises(ConfigError, match="two parts hold pool-sm90"):
        merge_tables([parts[0], parts[0]])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.family}-{row.facts['head_dim'][0]}")
def test_candidates_are_distinct_hold_the_default_first_and_fit_shared_memory(row):
    fields = {name: values[0] for name, values in row.facts.items()}
    if row.family != "attend":
        fields |= {"high_dims": tuple(range(32)), "low_dims": tuple(range(32))}
    if row.family == "rotate":
        fields |= {"rotary_dim": 32, "interleaved": False}
    known = FAMILIES[row.family].problem.__struct_fields__
    problem = FAMILIES[row.family].problem(**{name: value for name, value in fields.items() if name in known})
    from prism_gen.schedules import kernel_spec

    default = kernel_spec(row.family, row.arch, problem)
    tried = candidates(default)
    assert tried[0] == default
    assert len(tried) == len(set(tried)) > 1
    for spec in tried:
        assert spec.problem == problem
        family(spec.family).dynamic_smem_bytes(spec)  # raises where it does not fit


@pytest.mark.parametrize(
    ("points", "selection_ms", "dense_ms", "density"),
    [
        (((0.1, 1.0), (0.5, 5.0), (1.0, 10.0)), 1.0, 8.0, 0.7),
        (((0.1, 1.0), (1.0, 10.0)), 0.0, 20.0, 1.0),
        (((0.1, 1.0), (1.0, 10.0)), 9.5, 10.0, 0.0),
        (((0.25, 2.0),), 1.0, 3.0, 1.0),
    ],
    ids=["between", "always", "never", "exactly"],
)
def test_break_even_density(points, selection_ms, dense_ms, density):
    assert wins_below(points, selection_ms, dense_ms) == pytest.approx(density)


def test_sparse_wins_from_the_shortest_length_behind_which_it_always_wins():
    def crossing(seqlen: int, below: float) -> Crossing:
        return Crossing(seqlen=seqlen, dense="d", dense_ms=1, selection_ms=0, attend_ms=((0.1, 1),), wins_below=below)

    crossings = (crossing(1024, 0.3), crossing(2048, 0.1), crossing(4096, 0.3), crossing(8192, 0.5))
    crossover = Crossover(arch="sm90", label="a", key="k", heads=(8, 2), crossings=crossings)
    assert [crossover.wins_from(density) for density in (0.05, 0.2, 0.4, 0.6)] == [1024, 4096, 8192, None]


def test_build_takes_a_table_and_the_manifest_records_it(prism, specs, tmp_path):
    """The CLI with the pretended compiler: only the tuned kernel is another one, and the digest is the file's."""
    path = tmp_path / "t.json"
    path.write_bytes(encode_table(table_of(row_of(specs[2]), msgspec.structs.replace(row_of(specs[0]), templates="0"))))
    words = ("build", "-m", CONFIG, "--block-size", "128x128,128x64", "--out")
    plain, tuned = prism(*words, "a"), prism(*words, "b", "--tuning", path)
    assert plain.returncode == tuned.returncode == 0, tuned.stderr
    assert "warning: pool-sm90" in tuned.stdout
    manifests = [json.loads(prism("inspect", name, "--json").stdout) for name in ("a", "b")]
    keys = [{kernel["key"] for kernel in manifest["kernels"]} for manifest in manifests]
    assert keys[0] - keys[1] == {specs[2].key}
    best = candidates(specs[2])[1].key
    assert keys[1] - keys[0] == {best}
    assert manifests[0]["tuning"] is None
    record = manifests[1]["tuning"]
    assert (record["gpu"], record["speedups"]) == ("NVIDIA H200", {best: 1.25})
    assert record["crossovers"][0]["crossings"][0]["wins_below"] == 1.0
    shown = prism("inspect", "b").stdout
    assert "tuned on NVIDIA H200, driver" in shown
    assert ": 1.250x" in shown
    assert "sparse beats dense below a density of 1.00 at" in shown
    explained = " ".join(prism("explain", *words[1:-1], "--bundle", "b").stdout.split())
    assert f"{specs[2].name} yes, tuned" in explained
    assert "tuned on NVIDIA H200" in explained


@pytest.mark.parametrize(("gpu", "taken"), [("H200", True), ("nvidia h200", True), ("H100", False)])
def test_a_table_of_another_gpu_is_ignored_with_a_warning(prism, specs, tmp_path, gpu, taken):
    (tmp_path / "t.json").write_bytes(encode_table(table_of(row_of(specs[2]))))
    words = ("--block-size", "128x128,128x64", "--out", "b", "--tuning", "t.json", "--gpu", gpu)
    done = prism("build", "-m", CONFIG, *words)
    assert done.returncode == 0, done.stderr
    assert ("the tuning is for NVIDIA H200, the bundle for H100" in done.stdout.replace("\n", " ")) != taken
    assert (json.loads(prism("inspect", "b", "--json").stdout)["tuning"] is not None) == taken


def test_merge_joins_files(prism, specs, tmp_path):
    for i, spec in enumerate(specs[:2]):
        (tmp_path / f"{i}.json").write_bytes(encode_table(table_of(row_of(spec), crossovers=())))
    done = prism("merge", "0.json", "1.json", "--out", "all.json")
    assert done.returncode == 0, done.stderr
    assert len(read_table(tmp_path / "all.json").kernels) == 2
