"""One layer or list set otherwise, on the tiny Llama of test_bench_accuracy, and the searches that go by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.accuracy import descend, profiles
from benchmarks.accuracy.costs import costs_of, way_of
from benchmarks.accuracy.documents import load_documents
from benchmarks.accuracy.evaluate import evaluate
from benchmarks.accuracy.settings import parse_setting
from benchmarks.accuracy.smollm2 import SmolLM2
from benchmarks.accuracy.vary import main
from tests.cpu.test_bench_accuracy import LAYERS, docs, llama, weights  # noqa: F401 fixtures

BASE = {"block_size": "16x16", "estimator": "subblock", "threshold": 0.7}
LISTS = 6


@pytest.fixture(params=["reference", "masked"])
def records(request, weights, docs, tmp_path):  # noqa: F811
    out = tmp_path / "found.jsonl"
    command = ["--weights", weights, "--docs", docs, "--out", out, "--backend", request.param, "--tokens", 160]
    settings = {"same": BASE, "all": None, "less": {**BASE, "threshold": 0.3}}
    for name, prism in settings.items():
        command += ["--setting", f"{name}={json.dumps(prism)}"]
    command += ["--threshold", 0.7, "--threshold", 1.0]
    assert main([*map(str, command), "--base", json.dumps(BASE)]) == 0
    return [json.loads(line) for line in Path(out).read_text().splitlines()]


def test_layers_and_lists_are_varied_about_the_base(records):
    everywhere = {record["setting"]: record for record in records if record.get("what") == "everywhere"}
    assert list(everywhere) == ["same", "all", "less", "base"]
    base = everywhere["base"]
    heads = np.array(base.pop("head_density"))
    assert heads.shape == (LAYERS, 2, LISTS)
    assert base["density"] == pytest.approx(heads.mean((0, 2)))
    assert base == {**everywhere["same"], "setting": "base"}
    assert everywhere["less"]["prism"]["threshold"] == 0.3
    assert everywhere["all"]["divergence"] == pytest.approx([0, 0], abs=1e-6)
    assert everywhere["less"]["density"] < base["density"]
    layers = [record for record in records if record.get("what") == "layer"]
    assert len(layers) == 3 * LAYERS
    for record in layers:
        if record["setting"] == "same":
            assert record["divergence"] == pytest.approx(base["divergence"], abs=1e-7)
        if record["setting"] == "all":
            assert record["density"] == [1, 1]
            assert sum(record["divergence"]) < sum(base["divergence"])
    lists = [record for record in records if record.get("what") == "list"]
    assert len(lists) == 2 * LISTS * LAYERS
    for record in lists:
        if record["threshold"] == 0.7:
            assert record["added_nll"] == pytest.approx(base["added_nll"], abs=1e-7)
        else:
            assert record["density"] == [1, 1]


def test_attending_costs_by_density_and_choosing_does_not():
    stages = {"pool": 0.4, "select": 0.6, "attend": 0.5}
    timed = [
        {"way": "dense", "ms": 2.0, "density": 1.0},
        {"way": "paper, 64x64", "of": "paper, 64x64", "ms": 1.4, "density": 0.5, "stages_ms": stages},
        {"way": "paper, 64x64", "of": "mixture x", "ms": 9.0, "density": 0.5, "stages_ms": stages},
    ]
    costs = costs_of(timed)
    assert costs[way_of({"block_size": "64x64"})].at(0.2) == pytest.approx(1.2)
    assert costs[way_of(None)].at(1.0) == 2.0


def test_a_profile_is_chosen_without_one_document(tmp_path):
    """Two lists in one layer: document a suffers by list 0, document b by list 1."""
    base = {"what": "everywhere", "setting": "base", "prism": {**BASE, "threshold": 0.7}, "divergence": [1.0, 1.0]}
    lines = [{"documents": ["a", "b"]}, {**base, "head_density": [[[0.4, 0.4], [0.4, 0.4]]]}]
    for index, threshold in ((0, 0.3), (1, 0.3), (0, 0.9), (1, 0.9)):
        change = [0.1, 0.5] if threshold == 0.3 else [-0.1, -0.5]
        divergence = [1 + x for x in (change[::-1] if index == 0 else change)]
        density = [threshold - 0.2] * 2
        lines.append(
            {"what": "list", "layer": 0, "list": index, "threshold": threshold}
            | {"divergence": divergence, "density": density}
        )
    (tmp_path / "vary").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "profiles.json"
    assert profiles.main(["--vary", str(tmp_path / "vary"), "--density", "0.4", "--out", str(out)]) == 0
    found = {name: prism["profile"]["thresholds"] for name, prism in json.loads(out.read_text()).items()}
    assert found["without b 0.4"] == [[0.9, 0.3]]
    assert found["without a 0.4"] == [[0.3, 0.9]]
    assert "without none 0.4" in found
    assert parse_setting("x", json.loads(out.read_text())["without b 0.4"]).selections[0].profile


@pytest.mark.parametrize("whole", [0, 1])
def test_a_descent_lowers_what_it_is_asked_to(weights, docs, tmp_path, whole):  # noqa: F811
    menu = {"fine": {**BASE, "sub_block_q": 4}, "paper": {"block_size": "16x16"}, "dense": None}
    del menu["fine"]["threshold"]
    (tmp_path / "menu.json").write_text(json.dumps(menu))
    command = ["--weights", weights, "--docs", docs, "--tokens", 160, "--backend", "reference", "--price", 1.0]
    command += ["--menu", tmp_path / "menu.json", "--out", tmp_path / "out.json", "--log", tmp_path / "log.jsonl"]
    command += ["--price", 1e-6, "--layer-sweeps", whole, "--start", '{"threshold": 0.6}']
    assert descend.main([*map(str, command)]) == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()][1:]
    assert [record["setting"] for record in log] == ["price 1 layers 0"] * whole + ["price 1", "price 1e-06"]
    assert log[-1]["divergence"] < log[-2]["divergence"]
    assert log[-1]["cost"] > log[-2]["cost"]
    settings = json.loads((tmp_path / "out.json").read_text())
    model = SmolLM2(weights, torch.device("cpu"), linear_dtype=torch.float32)
    found: list[dict] = []
    documents = load_documents(docs, [], tokens=160)
    setting = parse_setting("last", settings["price 1e-06"])
    evaluate(model, documents, [setting], backend="reference", bundle=None, at_once=2, emit=found.append)
    measured = [record for record in found if record["what"] == "sparse"]
    assert np.mean([record["density"] for record in measured]) == pytest.approx(log[-1]["cost"], abs=2e-3)


def test_a_descent_may_leave_documents_out(weights, docs, tmp_path):  # noqa: F811
    (tmp_path / "menu.json").write_text(json.dumps({"fine": BASE}))
    starts = {"needle": {"threshold": 0.9}, "prose": {"profile": {"thresholds": [[0.5] * LISTS] * LAYERS}}}
    (tmp_path / "starts.json").write_text(json.dumps(starts))
    command = ["--weights", weights, "--docs", docs, "--tokens", 160, "--backend", "reference", "--price", 0.01]
    command += ["--menu", tmp_path / "menu.json", "--out", tmp_path / "out.json", "--log", tmp_path / "log.jsonl"]
    assert descend.main([*map(str, command), "--without", str(tmp_path / "starts.json"), "--seconds", "0"]) == 0
    settings = json.loads((tmp_path / "out.json").read_text())
    assert list(settings) == ["without needle price 0.01", "without prose price 0.01"]
    assert settings["without prose price 0.01"]["layers"][1]["profile"]["thresholds"] == [[], [0.5] * LISTS]
