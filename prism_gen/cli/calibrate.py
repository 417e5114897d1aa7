"""`prism_gen calibrate`: thresholds of every layer and head, found on text and written as a selection profile.

Owns the command's options. Imports torch and transformers, so only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from prism_gen.cli.options import runtime_packages
from prism_gen.errors import ConfigError
from prism_gen.hf_config import read_json
from prism_gen.model import SelectionSpec
from prism_gen.model_config import selection_spec
from prism_gen.profile import encode_profile

DEFAULT_TOKENS = 8192


def calibrate(
    model: Annotated[Path, typer.Option(help="Folder of a transformers model as published, or a .gguf file.")],
    text: Annotated[list[Path], typer.Option(help="UTF-8 text like what the model will read; repeatable.")],
    out: Annotated[Path, typer.Option(help="The profile to write, JSON: name it as `profile` in the prism object.")],
    target_ppl: Annotated[str | None, typer.Option(help="Perplexity over dense attention, such as `1%`.")] = None,
    target_density: Annotated[
        float | None, typer.Option(help="Mean share of the visible blocks, such as `.15`.")
    ] = None,
    selection: Annotated[
        Path | None, typer.Option(help="JSON file with the prism object to calibrate. Default: the config's own.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Of each text, from its start.")] = DEFAULT_TOKENS,
    device: Annotated[str | None, typer.Option(help="Default: cuda where torch sees one.")] = None,
    harm: Annotated[
        Literal["gradient", "measured"],
        typer.Option(help="gradient: one backward pass a text. measured: four runs a list and text; fewer blocks."),
    ] = "gradient",
    bundle: Annotated[Path | None, typer.Option(help="Kernels to run the sparse model with.")] = None,
) -> None:
    """Find the thresholds of every layer and list of blocks that meet a target with the fewest blocks.

    Measures, on each text, what each threshold of each list would do to the model's loss, shares the budget out among
    them, and checks the result with every layer sparse.

    Example: `python -m prism_gen calibrate --model DIR --text a.txt --text b.txt --target-ppl 1% --out profile.json`
    """
    chosen = None if selection is None else _selection(selection)
    with runtime_packages("calibrate"):
        from prism_gen.integrations.calibration import calibrate_model, parse_target  # noqa: PLC0415 imports torch

    console = Console()
    result = calibrate_model(
        model,
        text,
        parse_target(target_ppl, target_density),
        selection=chosen,
        tokens=tokens,
        device=device,
        say=lambda words: console.print(words, markup=False, highlight=False),
        harm=harm,
        bundle=bundle,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encode_profile(result.profile))
    found = result.measured
    console.print(
        f"{escape(str(out))}: perplexity {found.increase_percent:+.2f} % at density {found.density:.3f} on these texts,"
        f" for {result.profile.estimator} at {'x'.join(map(str, result.profile.block_size))}; in config.json:"
        f' "prism": {{"profile": "{escape(out.name)}", ...}}'
    )


def _selection(path: Path) -> SelectionSpec:
    """The selection in a JSON file. Raises: ConfigError as a config's prism object does."""
    prism = read_json(path)
    if prism.get("profile") is not None:
        raise ConfigError(f"{path} has a profile already", fix="leave it out: calibrate finds one")
    return selection_spec(prism, at=f"{path}: ", folder=path.parent)
