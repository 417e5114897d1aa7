"""python -m benchmarks.accuracy.plot: pictures of accuracy records: perplexity against density, and density by layer.

Owns their layout. Draws what the records say: must not run a model.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.records import Record, family, read_records

INK, QUIET, RULE = "#1B1E25", "#6B7280", "#C9CDD3"
# Okabe and Ito's palette tells apart under every common colour blindness; marks differ too.
STYLES = (
    ("#1F2A44", "o"),
    ("#E69F00", "s"),
    ("#0072B2", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#56B4E9", "P"),
    ("#D55E00", "X"),
    ("#8C8C8C", "*"),
)
DPI = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads JSON lines of benchmarks.accuracy and writes two PNG beside each other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.plot", description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="JSON lines of python -m benchmarks.accuracy")
    parser.add_argument("--curves", type=Path, help="PNG of perplexity against density")
    parser.add_argument("--block-size", help="of --curves, such as 64x64; default all")
    parser.add_argument("--layers", type=Path, help="PNG of the density of each layer")
    parser.add_argument("--setting", action="append", default=[], help="of --layers; default all")
    options = parser.parse_args(arguments)
    records = [record for path in options.records for record in read_records(path)]
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.edgecolor": RULE}):
        if options.curves:
            wanted = f", {options.block_size}" if options.block_size else ""
            of_size = [record for record in records if family(record).endswith(wanted)]
            draw_curves(of_size).savefig(options.curves, dpi=DPI, facecolor="white")
        if options.layers:
            chosen = [record for record in records if not options.setting or record["setting"] in options.setting]
            draw_layers(chosen).savefig(options.layers, dpi=DPI, facecolor="white")
    return 0


def draw_curves(records: Sequence[Record]) -> Figure:
    """One panel a document: perplexity over dense (logarithmic) against density."""
    documents = sorted({record["document"] for record in records})
    figure = Figure(figsize=(3.4 * len(documents) + 0.6, 4.4), layout="constrained")
    panels = figure.subplots(1, len(documents), squeeze=False, sharey=True)[0]
    families = sorted({family(record) for record in records})
    for axis, document in zip(panels, documents, strict=True):
        for name, (colour, mark) in zip(families, STYLES * (len(families) // len(STYLES) + 1), strict=False):
            points = sorted(
                (record["density"], record["increase_percent"])
                for record in records
                if record["document"] == document and family(record) == name and record["increase_percent"] > 0
            )
            if points:
                axis.plot(
                    *zip(*points, strict=True), color=colour, marker=mark, markersize=4.5, linewidth=1.2, label=name
                )
        axis.set_title(document, loc="left", fontweight="bold")
        _finish(axis, "density: selected of the visible blocks")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda percent, _: f"+{percent:g} %")
    panels[0].set_ylabel("perplexity over dense attention", color=INK)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_layers(records: Sequence[Record]) -> Figure:
    """The density of each layer at each setting, the mean over documents."""
    by_setting: dict[str, list[list[float]]] = defaultdict(list)
    for record in records:
        by_setting[record["setting"]].append(record["density_of_layers"])
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    axis = figure.subplots()
    for (name, rows), (colour, mark) in zip(by_setting.items(), STYLES * len(by_setting), strict=False):
        mean = [sum(column) / len(column) for column in zip(*rows, strict=True)]
        axis.plot(range(len(mean)), mean, color=colour, marker=mark, markersize=4, linewidth=1.2, label=name)
    _finish(axis, "layer")
    axis.set_ylabel("density", color=INK)
    axis.legend(frameon=False)
    return figure


def _finish(axis: Axes, label: str) -> None:
    axis.set_xlabel(label, color=INK)
    axis.grid(color=RULE, linewidth=0.5)
    axis.tick_params(colors=QUIET, length=2)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
