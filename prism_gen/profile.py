"""Selection profiles: thresholds of every layer and list of blocks, found by `calibrate`, and their JSON.

Owns the schema, its checks against a model, and the file. Must not know how thresholds are found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from prism_gen.errors import ConfigError

SCHEMA_VERSION = 1


class SelectionProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds by layer and list of blocks.

    thresholds: one row a layer (empty for layers that select nothing), one cumulative probability in (0, 1] a list: a q
    head, or a KV head where a group shares its list; it holds for every band. estimator ("paper", or "subblock 4x8 max"
    and the like), share, block_size: what they were found for, and hold for alone. provenance: for people.
    Raises: ConfigError for a threshold out of range.
    """

    schema_version: int = SCHEMA_VERSION
    estimator: str
    share: str
    block_size: tuple[int, int]
    thresholds: tuple[tuple[float, ...], ...]
    provenance: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            found = f"a profile of schema_version {self.schema_version}"
            raise ConfigError(found, exists=f"schema_version {SCHEMA_VERSION}", fix="calibrate again")
        for layer, row in enumerate(self.thresholds):
            for index, threshold in enumerate(row):
                if not 0 < threshold <= 1:  # also refuses NaN
                    raise ConfigError(
                        f"profile.thresholds[{layer}][{index}] is {threshold}",
                        exists="a cumulative probability in (0, 1]",
                        fix="calibrate again",
                    )

    def check(self, *, num_layers: int, num_lists: int, share: str) -> None:
        """Raises: ConfigError unless the profile has the model's layers and lists."""
        if len(self.thresholds) != num_layers:
            found = f"a profile of {len(self.thresholds)} layers"
            raise ConfigError(found, exists=f"a model of {num_layers}", fix="calibrate this model")
        if self.share != share:
            found = f'a profile for share "{self.share}"'
            raise ConfigError(found, exists=f'the selection has share "{share}"', fix="calibrate with these settings")
        for layer, row in enumerate(self.thresholds):
            if len(row) not in (0, num_lists):
                raise ConfigError(
                    f"profile.thresholds[{layer}] has {len(row)} values",
                    exists=f"one per list of blocks, {num_lists}",
                    fix="calibrate this model",
                )

    def of_layer(self, layer: int, *, estimator: str, block_size: tuple[int, int]) -> tuple[float, ...]:
        """Thresholds of one layer. Raises: ConfigError where they were found for something else, or there are none."""
        asked = f"{estimator} at {block_size[0]}x{block_size[1]}"
        exists = f"a profile for {self.estimator} at {self.block_size[0]}x{self.block_size[1]}"
        if (estimator, block_size) != (self.estimator, self.block_size):
            raise ConfigError(
                f"no profile of thresholds for {asked}",
                exists=exists,
                fix="calibrate with these settings, choose those of the profile, or leave prism.profile out",
            )
        if not self.thresholds[layer]:
            raise ConfigError(f"the profile has no thresholds for layer {layer}", exists=exists, fix="calibrate again")
        return self.thresholds[layer]


def decode_profile(data: bytes, *, where: str) -> SelectionProfile:
    """The profile in the bytes of a JSON file. Raises: ConfigError naming `where` and the field."""
    try:
        return msgspec.json.decode(data, type=SelectionProfile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fix = "name a file that python -m prism_gen calibrate wrote"
        raise ConfigError(f"{where} is not a selection profile: {error}", fix=fix) from None


def read_profile(path: Path) -> SelectionProfile:
    """The profile in a file. Raises: ConfigError where it is missing or no profile."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix="name a selection profile") from None
    return decode_profile(data, where=str(path))


def encode_profile(profile: SelectionProfile) -> bytes:
    """Indented JSON, thresholds of a layer on one line, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(profile, order="sorted"), indent=1) + b"\n"
