"""profile.py: what a profile holds, how a config names it, and what it must fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prism_gen.errors import ConfigError
from prism_gen.model_config import load_model_config
from prism_gen.profile import SelectionProfile, encode_profile, read_profile
from tests.unit.small_config import write_config

ROWS = tuple(tuple(0.5 + 0.01 * layer + 0.001 * head for head in range(8)) for layer in range(4))
PRISM: dict[str, Any] = {"estimator": "subblock", "block_size": "64x64", "profile": "found.json"}


def profile(**changes: Any) -> SelectionProfile:
    fields: dict[str, Any] = {
        "estimator": "subblock 8x8 max",
        "share": "head",
        "block_size": (64, 64),
        "thresholds": ROWS,
        "provenance": {"tokens": [8192]},
    }
    return SelectionProfile(**{**fields, **changes})


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_bytes(encode_profile(profile()))
    assert read_profile(tmp_path / "found.json") == profile()


@pytest.mark.parametrize("inline", [False, True])
def test_a_config_takes_it_by_a_path_beside_it_or_whole(tmp_path: Path, inline: bool) -> None:
    (tmp_path / "found.json").write_bytes(encode_profile(profile()))
    prism = {**PRISM, "profile": json.loads(encode_profile(profile()))} if inline else PRISM
    selection = load_model_config(write_config(tmp_path / "config.json", {"prism": prism})).selection
    assert selection.profile == profile()


BAD: dict[str, tuple[SelectionProfile | bytes | None, str]] = {
    "missing": (None, "found.json cannot be read"),
    "no-json": (b"thresholds", "found.json is not a selection profile"),
    "newer": (encode_profile(profile()).replace(b'"schema_version": 1', b'"schema_version": 2'), "schema_version 2"),
    "unknown": (encode_profile(profile()).replace(b'"share"', b'"shared"'), "is not a selection profile"),
    "layers": (profile(thresholds=ROWS[:3]), "a profile of 3 layers"),
    "lists": (profile(thresholds=(*ROWS[:3], ROWS[3][:2])), r"profile.thresholds\[3\] has 2 values"),
    "share": (profile(share="group"), 'a profile for share "group"'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_profile_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    if content is not None:
        data = content if isinstance(content, bytes) else encode_profile(content)
        (tmp_path / "found.json").write_bytes(data)
    with pytest.raises(ConfigError, match=words):
        load_model_config(write_config(tmp_path / "config.json", {"prism": PRISM}))


@pytest.mark.parametrize("threshold", [0.0, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"profile.thresholds\[0\]\[1\] is"):
        profile(thresholds=((0.5, threshold),))


def test_it_holds_for_its_own_estimator_and_block_size_alone() -> None:
    assert profile().of_layer(2, estimator="subblock 8x8 max", block_size=(64, 64)) == ROWS[2]
    for estimator, block_size in (("paper", (64, 64)), ("subblock 8x8 max", (128, 64))):
        with pytest.raises(ConfigError, match="no profile of thresholds for"):
            profile().of_layer(2, estimator=estimator, block_size=block_size)
    with pytest.raises(ConfigError, match="no thresholds for layer 0"):
        profile(thresholds=((), ROWS[1])).of_layer(0, estimator="subblock 8x8 max", block_size=(64, 64))
