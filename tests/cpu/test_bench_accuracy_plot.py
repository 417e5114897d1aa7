"""The pictures and the densities of equal perplexity that are made of accuracy records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import equal, plot
from benchmarks.accuracy.equal import Point, density_at
from benchmarks.accuracy.records import family


def record(setting: str, document: str, density: float, increase: float, **selection: Any) -> dict[str, Any]:
    chosen = {
        "block_sizes": [[64, 64]],
        "estimator": "subblock",
        "sub_block_q": 4,
        "sub_block_k": None,
        "reduce": "max",
        "share": "head",
        "exclude_forced": False,
        **selection,
    }
    measured = {"density": density, "increase_percent": increase, "density_of_layers": [density, density / 2]}
    return {
        "section": "accuracy",
        "what": "sparse",
        "setting": setting,
        "document": document,
        **measured,
        "selection": chosen,
    }


@pytest.fixture
def records(tmp_path: Path) -> Path:
    rows = [
        {"section": "environment"},
        {"section": "accuracy", "what": "dense", "document": "a"},
        record("low", "a", 0.1, 6.0),
        record("low", "b", 0.2, 10.0),
        record("high", "a", 0.3, 1.0),
        record("high", "b", 0.4, 3.0),
        record("paper", "a", 0.3, 9.0, estimator="paper"),
        record("paper", "b", 0.3, 9.0, estimator="paper"),
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_density_of_equal_perplexity_is_linear_in_the_logarithm() -> None:
    points = [Point(0.1, 8.0), Point(0.2, 4.0), Point(0.4, 1.0)]
    assert density_at(points, 4.0) == 0.2
    assert density_at(points, 2.0) == pytest.approx(0.3)
    assert density_at(points, 8.0 / 2**0.5) == pytest.approx(0.15)
    assert density_at(points, 9.0) is None
    assert density_at(points, 0.5) is None


def test_equal_means_over_documents_first(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "equal.json"
    assert equal.main([str(records), "--percent", "4", "--percent", "9", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["paper, 64x64", "sub-blocks 4x8 max, 64x64"]
    fine = found["sub-blocks 4x8 max, 64x64"]
    assert fine["measured"] == [
        {"density": 0.15, "increase_percent": 8.0},
        {"density": 0.35, "increase_percent": 2.0},
    ]
    assert fine["at_percent"] == {"4": 0.25, "9": None}


def test_pictures_are_written(records: Path, tmp_path: Path) -> None:
    curves, layers = tmp_path / "curves.png", tmp_path / "layers.png"
    command = [str(records), "--block-size", "64x64", "--curves", str(curves), "--layers", str(layers)]
    assert plot.main([*command, "--setting", "low"]) == 0
    assert curves.read_bytes()[:4] == layers.read_bytes()[:4] == b"\x89PNG"


def test_a_curve_joins_thresholds_of_one_rule_alone() -> None:
    fine = record("x", "a", 0.1, 1.0)
    assert family(fine) == "sub-blocks 4x8 max, 64x64"
    shared = record("x", "a", 0.1, 1.0, share="group", exclude_forced=True, profile={}, block_sizes=[[32, 64]])
    assert family(shared) == "sub-blocks 4x8 max, shared by a group, forced excluded, 32x64"
