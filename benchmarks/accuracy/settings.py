"""A selection setting that is judged: one `prism` object for all layers, or one each.

Owns how it is written in JSON and in records. Must not run a model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from prism_gen.errors import ConfigError
from prism_gen.model import SelectionSpec
from prism_gen.model_config import selection_spec


class Setting(NamedTuple):
    """A name for people, and the selection of every layer: one for all, or one each, None for a dense layer."""

    name: str
    selections: tuple[SelectionSpec | None, ...]

    def of_layers(self, num_layers: int) -> list[SelectionSpec | None]:
        """One a layer. Raises: ConfigError for a mixture of another number of layers."""
        if len(self.selections) not in (1, num_layers):
            found = f"setting {self.name!r} has {len(self.selections)} layers"
            raise ConfigError(found, exists=f"a model of {num_layers}", fix="give one prism object a layer")
        return list(self.selections) * (num_layers // len(self.selections))

    def record(self) -> dict[str, Any]:
        """What it selects, for a record: `selection` of all layers, or `selections` of each."""
        found = [msgspec.to_builtins(selection) for selection in self.selections]
        return {"selections": found} if len(found) > 1 else {"selection": found[0]}


def parse_setting(name: str, value: Any) -> Setting:
    """Of a prism object; null, which is dense; or {"layers": [one of these each]}. Raises: ConfigError naming it."""
    each = value["layers"] if isinstance(value, dict) and isinstance(value.get("layers"), list) else [value]
    return Setting(name, tuple(None if one is None else selection_spec(one, at=f"{name}: ") for one in each))
