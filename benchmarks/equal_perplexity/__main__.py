"""python -m benchmarks.equal_perplexity: time of an attention layer at equal perplexity, dense and in several ways.

Owns the command line, the plan and the records. Densities come from benchmarks.accuracy (a real model at 8192 tokens)
and hold for every length and shape that is timed; inputs are random, so each way's threshold is tuned until it selects
that density on them. Usage:

  python -m benchmarks.equal_perplexity --bundle generated/equal --out equal.jsonl \\
      --densities benchmarks/results/2026-11-24-equal-perplexity.json --percent 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.equal_perplexity.layer_times import (
    Layer,
    attention_of,
    dense_calls,
    make_layer,
    stage_calls,
    thresholds_for,
    timed,
)
from benchmarks.equal_perplexity.ways import MIXTURE, Way, mixture_ways, single_ways
from prism_gen.bench.run import measured_ceilings
from prism_gen.errors import PrismError
from prism_gen.model import ModelSpec, SelectionSpec
from prism_gen.runtime import PrismAttention, load_bundle
from prism_gen.runtime.connect import cuda_device
from prism_gen.runtime.environment import environment
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.verify.report import emit

DENSE = SelectionSpec(block_sizes=((128, 128),))  # what our kernel attends to every block of: its fastest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 for a mistake in its arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_perplexity", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="kernels of the ways, for each shape to be timed")
    parser.add_argument("--densities", type=Path, required=True, help="JSON of python -m benchmarks.accuracy.equal")
    parser.add_argument("--percent", type=float, default=2.0, help="perplexity over dense at which ways are compared")
    parser.add_argument(
        "--mixture",
        type=Path,
        action="append",
        default=[],
        help="NAME.parts.json of python -m benchmarks.equal_perplexity.parts, timed as one way",
    )
    parser.add_argument("--mixtures-only", action="store_true", help="beside dense attention")
    parser.add_argument("--lengths", default="8192,32768,131072", help="tokens, comma-separated")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--commit", help="commit of this tree, where .git is absent")
    options = parser.parse_args(arguments)
    try:
        ways = [] if options.mixtures_only else single_ways(options.densities, options.percent)
        ways += [way for path in options.mixture for way in mixture_ways(path)]
        bundle, device = load_bundle(options.bundle), cuda_device(None)
    except PrismError as error:
        print(error, file=sys.stderr)
        return 2
    with options.out.open("a", encoding="utf-8") as out:
        top = measured_ceilings(device)
        head = {"section": "environment", "percent": options.percent, "tflops": top.tflops, "tbps": top.tbps}
        emit({**head, **environment(device, commit=options.commit)}, out=out, echo=False)
        for model in shapes(bundle.manifest.models):
            for tokens in map(int, options.lengths.split(",")):
                for record in compare(bundle, model, ways, tokens, device):
                    emit(record, out=out, echo=False)
                    print("  ".join(f"{key} {record[key]}" for key in SHOWN if key in record), flush=True)
    return 0


SHOWN = ("heads", "head_dim", "tokens", "way", "of", "density", "ms", "dense", "times_dense", "stages_ms")


def shapes(models: Sequence[ModelSpec]) -> list[ModelSpec]:
    """One model of each shape."""
    return list({(m.num_q_heads, m.num_kv_heads, m.head_dim): m for m in models}.values())


def compare(
    bundle: Bundle | None, model: ModelSpec, ways: Sequence[Way], tokens: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """The records of one shape and length: dense attention first, a mixture's parts, then the mixture."""
    layer = make_layer(model, tokens, device)
    sparse = [way for way in ways if way.selection is not None]
    chosen = [(way, *_tuned(bundle, model, way, layer)) for way in sparse]
    own = attention_of(bundle, model, Way("dense", DENSE, 1.0, "dense"), device)
    layers = {
        f"{way.of}: {way.name}": stage_calls(attention, layer, set_)["layer"] for way, attention, set_, _ in chosen
    }
    times = timed({**dense_calls(own, layer), **layers}, layer)
    dense = {name: figure for name, figure in times.items() if name not in layers}
    fastest = min(figure["ms"] for figure in dense.values())
    shape = {
        "section": "equal_perplexity",
        "heads": [model.num_q_heads, model.num_kv_heads],
        "head_dim": model.head_dim,
        "tokens": tokens,
    }
    yield {**shape, "way": "dense", "density": 1.0, "ms": fastest, "dense": {n: f["ms"] for n, f in dense.items()}}
    for way, attention, set_, density in chosen:
        figure = times[_key(way)]
        record = {
            **shape,
            "way": way.name,
            "of": way.of,
            "layers": way.layers,
            "asked_density": way.density,
            "density": round(density, 4),
            "threshold": float(set_.values[0, 0]),
            **figure,
            "times_dense": round(fastest / figure["ms"], 3),
        }
        if way.of == way.name:  # a mixture's parts are ways whose stages are timed by themselves
            stages = stage_calls(attention, layer, set_)
            del stages["layer"]
            record["stages_ms"] = {name: stage["ms"] for name, stage in timed(stages, layer).items()}
        yield record
    for mixture in dict.fromkeys(way.of for way in ways if way.of.startswith(MIXTURE)):
        parts = [way for way in ways if way.of == mixture]
        ms = [fastest if way.selection is None else times[_key(way)]["ms"] for way in parts]
        count = sum(way.layers for way in parts)
        mean = sum(way.layers * part for way, part in zip(parts, ms, strict=True)) / count
        density = sum(way.layers * way.density for way in parts) / count
        yield {
            **shape,
            "way": mixture,
            "density": round(density, 4),
            "ms": round(mean, 5),
            "times_dense": round(fastest / mean, 3),
        }


def _tuned(bundle: Bundle | None, model: ModelSpec, way: Way, layer: Layer) -> tuple[PrismAttention, Thresholds, float]:
    attention = attention_of(bundle, model, way, layer.q.device)
    return attention, *thresholds_for(attention, layer, way.density)


def _key(way: Way) -> str:
    return f"{way.of}: {way.name}"


if __name__ == "__main__":
    sys.exit(main())
