"""python -m benchmarks.equal_perplexity.plot: the picture and the table of what benchmarks.equal_perplexity measured.

Owns their layout. Must not time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.plot import DPI, INK, QUIET, RULE
from benchmarks.equal_perplexity.ways import MIXTURE

Record = dict[str, Any]
Shape = tuple[int, int, int]  # q heads, kv heads, head_dim
# Of each kind the fastest way is drawn: (name, how its ways begin, colour).
KINDS = (
    ("dense", "dense", "#8C8C8C"),
    ("paper", "paper", "#1F2A44"),
    ("sub-blocks", "sub-blocks", "#0072B2"),
    (MIXTURE, MIXTURE, "#E69F00"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a Markdown table a shape, and draws where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_perplexity.plot", description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="JSON lines of python -m benchmarks.equal_perplexity")
    parser.add_argument("--title", action="append", default=[], help="WAY=TITLE: another name for a way")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    parser.add_argument("--without", action="append", default=[], help="a way to leave out")
    options = parser.parse_args(arguments)
    lines = [json.loads(line) for path in options.records for line in path.read_text(encoding="utf-8").splitlines()]
    percent = next(line["percent"] for line in lines if "percent" in line)
    records = [line for line in lines if line.get("way") and line.get("of", "") in ("", line["way"])]
    records = [line for i, line in enumerate(records) if line["way"] != "dense" or not _seen(line, records[:i])]
    records = [record for record in records if record["way"] not in options.without]
    names = dict(text.partition("=")[::2] for text in options.title)
    records = [{**record, "way": names.get(record["way"], record["way"])} for record in records]
    for shape in shapes(records):
        print(f"{title(shape)}\n\n{table(records, shape)}\n")
    if options.picture:
        with mpl.rc_context({"font.family": "sans-serif", "font.size": 9, "text.color": INK, "axes.edgecolor": RULE}):
            draw(records, percent).savefig(options.picture, dpi=DPI, facecolor="white")
    return 0


def _seen(dense: Record, before: Sequence[Record]) -> bool:
    """Whether an earlier file has dense attention at this shape and length; a mixture keeps the ratio to its own."""
    place = ("way", "heads", "head_dim", "tokens")
    return any(all(record[key] == dense[key] for key in place) for record in before)


def shapes(records: Sequence[Record]) -> list[Shape]:
    """In the order of the file."""
    return list(dict.fromkeys((*record["heads"], record["head_dim"]) for record in records))


def title(shape: Shape) -> str:
    """For people."""
    return f"{shape[0]} q and {shape[1]} kv heads of {shape[2]}"


def table(records: Sequence[Record], shape: Shape) -> str:
    """One row a way, one column a length: milliseconds, and times as fast as dense."""
    of_shape = _of(records, shape)
    lengths = sorted({record["tokens"] for record in of_shape})
    rows = [f"| | density | {' | '.join(map(_tokens, lengths))} |", f"|---|---|{'---|' * len(lengths)}"]
    for way in dict.fromkeys(record["way"] for record in of_shape):
        mine = {record["tokens"]: record for record in of_shape if record["way"] == way}
        cells = [_cell(mine[tokens]) if tokens in mine else "" for tokens in lengths]
        name = f"**{way}**" if way.startswith(MIXTURE) else way
        density = next(iter(mine.values()))
        rows.append(f"| {name} | {density.get('asked_density', density['density']):.3g} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(records: Sequence[Record], percent: float) -> Figure:
    """One panel a shape: how many times as fast as dense attention, by length, the fastest way of each kind."""
    known = shapes(records)
    figure = Figure(figsize=(4.6 * len(known), 3.6), layout="constrained")
    panels = figure.subplots(1, len(known), squeeze=False)[0]
    for axis, shape in zip(panels, known, strict=True):
        _panel(axis, _of(records, shape))
        axis.set_title(f"{title(shape)} (figures: ms)", loc="left", fontweight="bold", fontsize=9)
    panels[0].set_ylabel(f"times as fast as dense, +{percent:.2g} % perplexity", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(KINDS), frameon=False)
    return figure


def _panel(axis: Axes, records: Sequence[Record]) -> None:
    lengths = sorted({record["tokens"] for record in records})
    kinds = [kind for kind in KINDS if any(record["way"].startswith(kind[1]) for record in records)]
    width = 0.8 / len(kinds)
    for index, (name, start, colour) in enumerate(kinds):
        for place, tokens in enumerate(lengths):
            here = [record for record in records if record["tokens"] == tokens]
            mine = min((r for r in here if r["way"].startswith(start)), key=lambda record: record["ms"], default=None)
            if mine is None:
                continue
            left = place + (index - (len(kinds) - 1) / 2) * width
            label = name if place == 0 else None
            bar = axis.bar(left, mine.get("times_dense", 1.0), width=0.92 * width, color=colour, label=label)
            axis.bar_label(bar, labels=[f"{mine['ms']:.3g}"], fontsize=6.5, color=QUIET, padding=1)
    axis.set_xticks(range(len(lengths)), [f"{_tokens(tokens)} tokens" for tokens in lengths])
    axis.grid(axis="y", color=RULE, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(colors=QUIET, length=2)
    axis.spines[["top", "right"]].set_visible(False)


def _of(records: Sequence[Record], shape: Shape) -> list[Record]:
    return [record for record in records if (*record["heads"], record["head_dim"]) == shape]


def _tokens(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)


def _ms(ms: float) -> str:
    return f"{ms:.3g} ms"


def _cell(record: Record) -> str:
    return _ms(record["ms"]) + (f" ({record['times_dense']:.2f})" if "times_dense" in record else "")


if __name__ == "__main__":
    sys.exit(main())
