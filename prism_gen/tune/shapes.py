"""The grid of shapes that schedules are raced on.

Owns the default grid and the reading of another. Must not time.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from prism_gen.errors import ConfigError
from prism_gen.tuning_table import Shape

# The telling shape first: long enough to fill the GPU many times, at the density that models show. Batches share the
# tiles of short prompts; at 131072 tokens a launch is long enough for the power limit to show.
DEFAULT_SHAPES = (
    Shape(seqlen=32768, density=0.1),
    Shape(seqlen=8192, density=0.25),
    Shape(seqlen=131072, density=0.1),
    Shape(seqlen=8192, density=0.1, batch=4),
    Shape(seqlen=32768, density=0.25),
)
CROSSOVER_DENSITIES = (0.05, 0.1, 0.25, 0.5, 1.0)
FAMILIES_WITH_DENSITY = ("attend",)  # of the others the time does not depend on what is selected


def read_shapes(path: Path) -> tuple[Shape, ...]:
    """Shapes from a JSON file: [{"seqlen": 32768, "density": 0.1, "batch": 1}, ...]. Raises: ConfigError."""
    fix = 'write such as [{"seqlen": 32768, "density": 0.1, "batch": 1}]'
    try:
        shapes = msgspec.json.decode(path.read_bytes(), type=tuple[Shape, ...])
    except OSError as error:
        raise ConfigError(f"shapes file {path} cannot be read ({error.strerror or error})", fix=fix) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} holds no list of shapes: {error}", fix=fix) from None
    wrong = [s.label for s in shapes if s.seqlen < 1 or s.batch < 1 or not 0 < s.density <= 1]
    if wrong or not shapes:
        raise ConfigError(
            f"{path} holds {wrong[0] if wrong else 'no shape'}",
            exists="seqlen and batch of at least 1, densities in (0, 1]",
            fix=fix,
        )
    return shapes


def shapes_for(family: str, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shapes that differ for a family, in their order; those whose time depends on no density have density 1."""
    if family in FAMILIES_WITH_DENSITY:
        return shapes
    return tuple(dict.fromkeys(Shape(seqlen=shape.seqlen, batch=shape.batch) for shape in shapes))
