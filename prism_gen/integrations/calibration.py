"""calibrate on a transformers model and text files: what the command runs.

Owns reading targets and texts. Must not search (calibrate/search.py does).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from prism_gen.calibrate.search import Calibrated, Harm, Say, Target, calibrate
from prism_gen.errors import ConfigError
from prism_gen.integrations.text_model import TextModel
from prism_gen.model import SelectionSpec
from prism_gen.runtime.load import load_bundle


def parse_target(ppl: str | None, density: float | None) -> Target:
    """The target that was given, of the two. ppl: percent over dense, "1%" or "1". Raises: ConfigError."""
    if (ppl is None) == (density is None):
        asked = "neither target was given" if ppl is None else "both targets were given"
        raise ConfigError(asked, exists="--target-ppl 1%, --target-density .15", fix="give one of the two")
    if ppl is not None:
        try:
            target = Target("ppl", float(ppl.strip().removesuffix("%")))
        except ValueError:
            target = Target("ppl", 0.0)
        if not 0 < target.value < float("inf"):
            raise ConfigError(f"--target-ppl is {ppl!r}", exists="percent above 0", fix="give for example 1%")
        return target
    assert density is not None
    if not 0 < density <= 1:  # also refuses NaN
        raise ConfigError(f"--target-density is {density}", exists="a share in (0, 1]", fix="give for example .15")
    return Target("density", density)


def calibrate_model(
    path: Path,
    texts: Sequence[Path],
    target: Target,
    *,
    selection: SelectionSpec | None,
    tokens: int,
    device: str | None,
    say: Say,
    harm: Harm = "gradient",
    bundle: Path | None = None,
) -> Calibrated:
    """Loads a model and its texts, and finds the profile.

    tokens: of each text, at most. device: None takes cuda where torch sees one. harm, bundle: as calibrate.
    Raises: ConfigError for a path that cannot be read; UnsupportedError as calibrate does.
    """
    contents = [_read(text) for text in texts]
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = TextModel(path, selection, where)
    ids = [model.ids(content, tokens) for content in contents]
    digests = [hashlib.sha256(content.encode()).hexdigest() for content in contents]
    provenance = {"texts": {text.name: digest for text, digest in zip(texts, digests, strict=True)}}
    opened = None if bundle is None else load_bundle(bundle)
    return calibrate(model, ids, target, provenance=provenance, say=say, harm=harm, bundle=opened)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", fix="name a text file with --text") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", fix="convert it") from None
