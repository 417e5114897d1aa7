"""Bundles and the cache behind them: what a change rebuilds, what is shared, what is left after a failure."""

from __future__ import annotations

import os

import msgspec
import pytest

from prism_gen import __version__, fingerprint
from prism_gen.build import build
from prism_gen.compile import Compiler, Event
from prism_gen.jobs import default_jobs
from prism_gen.manifest import MANIFEST_NAME, read_manifest
from prism_gen.model import SelectionSpec
from prism_gen.render import render
from prism_gen.specialize import specialize

PAIRS = ((128, 128), (128, 64))


def _families(calls) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, times in calls.items():
        counts[name.split("-")[0]] = counts.get(name.split("-")[0], 0) + times
    return counts


def test_bundle_holds_what_its_manifest_names(run_build, make_model, tmp_path, tree):
    manifest = run_build(make_model(block_sizes=PAIRS))
    bundle = tmp_path / "bundle"
    named = {path for entry in manifest.kernels for path in (entry.file, entry.source, entry.log)}
    assert set(tree(bundle)) == named | {MANIFEST_NAME, ".lock"}
    assert len(manifest.kernels) == 4
    assert read_manifest(bundle) == manifest
    assert manifest.generator == __version__
    for entry in manifest.kernels:
        assert entry.spec.to_json() in (bundle / entry.source).read_text()


def test_unchanged_second_build_compiles_nothing_and_keeps_every_byte(run_build, make_model, fake, tmp_path, tree):
    run_build(make_model())
    before = tree(tmp_path / "bundle")
    fake.reset()
    run_build(make_model())
    assert not fake.calls()
    assert tree(tmp_path / "bundle") == before


def test_a_dirty_commit_is_replaced_by_the_clean_one_that_builds_the_same(run_build, make_model, monkeypatch):
    def commit(text):
        monkeypatch.setattr("prism_gen.build.commit_of", lambda _checkout: text)
        return run_build(make_model()).provenance.commit

    assert commit("a-dirty") == "a-dirty"
    assert commit("b") == "b"
    assert [commit("c-dirty"), commit("c")] == ["b", "b"]  # nothing changed


def test_second_bundle_takes_kernels_from_the_cache(run_build, make_model, fake):
    run_build(make_model())
    fake.reset()
    run_build(make_model(name="other", num_q_heads=32), out="second")
    assert not fake.calls()


def test_kernel_of_two_models_is_compiled_and_listed_once(run_build, make_model, fake):
    manifest = run_build(make_model(), make_model(name="other", num_q_heads=32, block_sizes=PAIRS))
    assert [model.name for model in manifest.models] == ["tiny", "other"]
    assert len({entry.key for entry in manifest.kernels}) == len(manifest.kernels) == 4
    assert set(fake.calls().values()) == {1}


@pytest.mark.parametrize(
    ("changed", "rebuilt"),
    [
        ("attend/attend.cu.jinja", {"attend": 2}),
        ("pool/kernel.h", {"pool": 1}),
        ("shared/common.h", {"pool": 1, "select": 1, "attend": 2}),
    ],
)
def test_changed_file_rebuilds_exactly_what_includes_it(run_build, make_model, fake, templates, changed, rebuilt):
    model = make_model(block_sizes=PAIRS)
    run_build(model)
    fake.reset()
    with (templates / changed).open("a") as file:
        file.write("// changed\n")
    run_build(model)
    assert _families(fake.calls()) == rebuilt


def test_touched_file_with_the_same_bytes_rebuilds_nothing(run_build, make_model, fake, templates):
    run_build(make_model())
    fake.reset()
    (templates / "shared" / "common.h").touch()
    run_build(make_model())
    assert not fake.calls()


@pytest.mark.parametrize("tool", ["nvcc", "g++", "cutlass", "tvm-ffi"])
def test_changed_version_rebuilds_everything(run_build, make_model, fake, tool):
    run_build(make_model())
    fake.reset()
    run_build(make_model(), toolchain=fake.toolchain(**{tool: "99.0"}))
    assert _families(fake.calls()) == {"pool": 1, "select": 1, "attend": 1}


def test_changed_flag_rebuilds_everything(run_build, make_model, fake, monkeypatch):
    run_build(make_model())
    fake.reset()
    monkeypatch.setattr(fingerprint, "FLAGS", (*fingerprint.FLAGS, "-DEXTRA"))
    run_build(make_model())
    assert _families(fake.calls()) == {"pool": 1, "select": 1, "attend": 1}


def test_changed_schedule_leaves_no_old_file(run_build, make_model, templates, tmp_path):
    old = run_build(make_model())
    with (templates / "attend" / "kernel.h").open("a") as file:
        file.write("// changed\n")
    new = run_build(make_model())
    assert old.kernels[-1].file != new.kernels[-1].file
    assert not (tmp_path / "bundle" / old.kernels[-1].file).exists()


def test_changed_model_with_the_same_kernels_changes_only_the_manifest(run_build, make_model, tmp_path, tree):
    run_build(make_model())
    before = tree(tmp_path / "bundle")
    run_build(make_model(selection=SelectionSpec(low_freq_threshold=0.5)))
    after = tree(tmp_path / "bundle")
    assert [path for path in before if before[path] != after[path]] == [MANIFEST_NAME]


def test_jobs_are_bounded_by_memory_and_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(100_000)))
    assert 1 <= default_jobs() < 100_000
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert default_jobs() == 1


def test_events_name_each_kernel(fake, templates, make_model, tmp_path):
    events: list[Event] = []
    for _ in range(2):
        build(
            [make_model()],
            archs=["sm90"],
            out=tmp_path / "bundle",
            cache=tmp_path / "cache",
            toolchain=fake.toolchain(),
            jobs=1,
            report=events.append,
            root=templates,
        )
    assert [event.kind for event in events] == ["plan", *["start", "done"] * 3, "plan", *["hit"] * 3]
    assert {event.name.split("-")[0] for event in events if event.name} == {"pool", "select", "attend"}


def test_command_takes_nothing_hidden_from_the_environment(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", "/somewhere")
    environment = fake.toolchain().environment(tmp_path)
    assert not {"NVCC_APPEND_FLAGS", "CPLUS_INCLUDE_PATH"} & set(environment)
    assert environment["TMPDIR"] == str(tmp_path)


def test_code_digest_follows_headers_but_not_their_comments(templates, make_model):
    spec = specialize(make_model(), ["sm90"])[0]
    text = '#include "pool/kernel.h"\nint x;\n'
    common = templates / "shared" / "common.h"

    def digest(header: str, source: str = text) -> str:
        common.write_text(header)
        return fingerprint.code_digest(spec, source, root=templates)

    bare = digest("int a;\n")
    assert digest("// why\nint a;  // what\n\n/* and\n   how */\n", f"// for people\n{text}") == bare
    assert len({bare, digest("int b;\n"), digest("int a;\n", f"{text}int y;\n")}) == 3


def test_header_closure_crosses_folders_and_stops_at_foreign_headers(templates):
    found = fingerprint.header_closure('#include "pool/kernel.h"\n#  include <cute/tensor.hpp>\n', templates)
    assert set(found) == {"pool/kernel.h", "shared/common.h"}


def test_compile_all_keeps_the_order_of_its_sources(fake, templates, make_model, tmp_path):
    tools = fake.toolchain()
    sources = [
        fingerprint.make_source(spec, render(spec, templates), root=templates, toolchain=tools)
        for spec in specialize(make_model(block_sizes=PAIRS), ["sm90"])
    ]
    compiler = Compiler(toolchain=tools, cache=tmp_path / "cache", root=templates)
    artifacts = compiler.compile_all(sources, jobs=4, report=lambda event: None)
    assert [artifact.digest for artifact in artifacts] == [source.digest for source in sources]
    assert msgspec.to_builtins(artifacts[0].figures)["registers"] == 32
