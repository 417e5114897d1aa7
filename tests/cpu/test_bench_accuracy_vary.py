"""One layer or list set otherwise, on the tiny Llama of test_bench_accuracy, and the mixture chosen from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import mixture, profiles
from benchmarks.accuracy.settings import parse_setting
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


PAPER = {"block_size": "64x64"}
SHAPE = {"heads": [4, 2], "head_dim": 32, "tokens": 64}


def test_a_mixture_spends_time_where_it_saves_harm(tmp_path, capsys):
    """Two layers; dense helps the first alone. 2 ms a layer for dense, 1 + density for the paper's estimator."""
    prisms = {"dense": None, "paper": PAPER}
    harms = {(0, "dense"): -0.5, (0, "paper"): 0.0, (1, "dense"): -0.1, (1, "paper"): 0.0}
    lines = [{"section": "environment", "documents": ["a", "b"]}]
    for name, prism in {**prisms, "base": PAPER}.items():
        lines.append({"what": "everywhere", "setting": name, "prism": prism, "divergence": [1.0, 3.0]})
    for (layer, name), harm in harms.items():
        density = [1, 1] if name == "dense" else [0.1, 0.3]
        record = {"what": "layer", "layer": layer, "setting": name, "divergence": [1 + harm, 3 + harm]}
        lines.append({**record, "density": density})
    stages = {"pool": 0.4, "select": 0.6, "attend": 0.5}
    timed = [
        {**SHAPE, "way": "dense", "ms": 2.0, "density": 1.0},
        {**SHAPE, "way": "paper, 64x64", "of": "paper, 64x64", "ms": 1.4, "density": 0.5, "stages_ms": stages},
        {**SHAPE, "tokens": 128, "way": "dense", "ms": 99.0, "density": 1.0},
    ]
    for name, rows in (("vary", lines), ("times", timed)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--vary", tmp_path / "vary", "--times", tmp_path / "times", "--heads", "4x2x32", "--tokens", 64]
    command += ["--out", tmp_path, "--ms", 1.7]
    assert mixture.main([*map(str, command)]) == 0
    assert json.loads((tmp_path / "settings.json").read_text()) == {"mixture 1.7": {"layers": [None, PAPER]}}
    assert json.loads((tmp_path / "mixture-1.7.parts.json").read_text()) == [
        {"prism": None, "layers": 1, "density": 1.0},
        {"prism": PAPER, "layers": 1, "density": 0.2},
    ]
    assert "1.60 ms, harm -0.50000, density 0.600: dense paper" in capsys.readouterr().out


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
