"""Pictures of a bench run: speed-up over dense attention, the roofline, and the share of the ceiling.

Owns how a run is drawn. Must not measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from prism_gen.bench.figures import OURS, BenchRun, Ceilings, Figure, fastest_dense
from prism_gen.bench.plot_style import (
    DPI,
    INK,
    QUIET,
    RULE,
    STYLE,
    by_density,
    colour_of,
    density_words,
    everyone,
    heading,
    name_of,
    panels,
    problem_words,
    tokens,
)

MARKERS = "osD^vP"  # of the lengths in the roofline, rising


def draw(run: BenchRun, folder: Path) -> list[Path]:
    """Up to three PNG in `folder`; those written. A picture that the run has no figures for is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[BenchRun], Any]] = {"speedup": _speedup, "roofline": _roofline, "ceiling": _ceiling}
    drawn = []
    with plt.rc_context(STYLE):
        for name, picture in pictures.items():
            figure = picture(run)
            if figure is not None:
                drawn.append(folder / f"{name}.png")
                figure.savefig(drawn[-1], dpi=DPI, facecolor="white")
                plt.close(figure)
    return drawn


def _speedup(run: BenchRun) -> Any:
    """Dense time over ours and the peers', by length: a row a problem, a column a density, then the whole layer."""
    timed = run.timed()
    if not any(figure.density == 1.0 for figure in run.timed("attend")):
        return None
    compared = [f for f in timed if f.stage != "selection" and f.density < 1.0 and _dense_ms(f, timed)]
    columns = by_density([f for f in compared if f.stage == "attend"])
    columns += [layers] if (layers := [f for f in compared if f.stage == "layer"]) else []
    labels, seqlens = list(dict.fromkeys(f.label for f in compared)), sorted({f.seqlen for f in compared})
    if not columns:
        return None
    figure, axes = panels(run, len(labels), len(columns), "By tokens, log scale.")
    for ax, label, _, here in _filled(axes, labels, columns):
        stage = "whole layer" if here[0].stage == "layer" else "attend"
        ax.set_title(f"{problem_words(label)}\n{stage}, {density_words(here)}")
        for who in everyone(here):
            own = sorted((f for f in here if f.who == who), key=lambda f: f.seqlen)
            times = [_dense_ms(f, timed) / f.median_ms for f in own]
            _line(ax, own, [seqlens.index(f.seqlen) for f in own], times)
        ax.axhline(1.0, color=QUIET, linewidth=0.8)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        ax.set_xticks(range(len(seqlens)), [tokens(n) for n in seqlens])
        ax.grid(axis="y", color=RULE, linewidth=0.8)
        ax.margins(x=0.12, y=0.2)
    handles = [Line2D([], [], marker="o", color=colour_of(who), label=name_of(who)) for who in everyone(compared)]
    heading(figure, "How many times as fast as the fastest dense attention", handles)
    return figure


def _filled(
    axes: Any, labels: Sequence[str], columns: Sequence[Sequence[Figure]]
) -> Iterator[tuple[Any, str, Sequence[Figure], list[Figure]]]:
    """(ax, label, column, the column's figures of that label) of each panel with any; others are switched off."""
    for row, label in enumerate(labels):
        for ax, column in zip(axes[row], columns, strict=True):
            if here := [f for f in column if f.label == label]:
                yield ax, label, column, here
            else:
                ax.set_axis_off()


def _line(ax: Any, figures: Sequence[Figure], places: Sequence[int], times: Sequence[float]) -> None:
    """One line. Its numbers stand at ours, with the densities of layers, which differ more by length."""
    who = figures[0].who
    ours = who == OURS
    ax.plot(places, times, "-o", color=colour_of(who), lw=2.4 if ours else 1.3, ms=5, zorder=3 + ours)
    for figure, x, y in zip(figures, places, times, strict=True) if ours else ():
        text = f"{y:.1f}" + (f"\nat {figure.density:.2f}" if figure.stage == "layer" else "")
        label = ax.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center", weight="bold", zorder=9)
        label.set_path_effects([withStroke(linewidth=3, foreground="white")])  # legible across a line


def _dense_ms(figure: Figure, timed: Sequence[Figure]) -> float:
    """Of the fastest dense attention of its length and heads; 0 where none was timed."""
    dense = fastest_dense(timed, figure.seqlen, figure.heads)
    return dense.median_ms if dense else 0.0


def _roofline(run: BenchRun) -> Any:
    """TFLOP/s by FLOPs a byte, under the two ceilings measured in the same process; a panel a problem."""
    figures = [f for f in run.timed() if f.stage != "layer" and f.flops and f.bytes_moved]
    if not figures:
        return None
    labels, seqlens = list(dict.fromkeys(f.label for f in figures)), sorted({f.seqlen for f in figures})
    note = "Open marks: every block. Bytes: inputs and outputs, once."
    figure, axes = panels(run, 1, len(labels), note, inches=(10.0 / len(labels), 4.0))
    intensity = [f.flops / f.bytes_moved for f in figures]
    span = np.geomspace(min(intensity) / 2, max(intensity) * 2, 200)
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set(xscale="log", yscale="log", xlabel="FLOPs a byte", xlim=(span[0], span[-1]))
        ax.set_ylim(min(f.tflops for f in figures) / 2, run.ceilings.tflops * 2)
        ax.set_title(problem_words(label))
        _roof(ax, span, run.ceilings)
        for f in (f for f in figures if f.label == label):
            colour, face = colour_of(f.who), "none" if f.density == 1.0 else colour_of(f.who)
            marker, front = MARKERS[seqlens.index(f.seqlen) % len(MARKERS)], 3 + (f.who == OURS)
            ax.scatter(f.flops / f.bytes_moved, f.tflops, s=34, marker=marker, c=face, edgecolors=colour, zorder=front)
        ax.text(span[0] * 1.3, run.ceilings.tflops * 1.3, "left: pool and select\nright: attend", va="top", color=QUIET)
    axes[0, 0].set_ylabel("TFLOP/s")
    who_handles = [Patch(color=colour_of(who), label=name_of(who)) for who in everyone(figures)]
    marks = [MARKERS[i % len(MARKERS)] for i in range(len(seqlens))]
    lengths = [
        Line2D([], [], marker=mark, linestyle="", color=QUIET, label=f"{tokens(n)} tokens")
        for mark, n in zip(marks, seqlens, strict=True)
    ]
    heading(figure, "Roofline, with both ceilings measured in the same process", [*who_handles, *lengths])
    return figure


def _roof(ax: Any, span: Any, top: Ceilings) -> None:
    """The ceilings over a span of FLOPs a byte, and their names along them."""
    roof = np.minimum(span * top.tbps, top.tflops)
    ax.plot(span, roof, color=INK, linewidth=1.4)
    ax.text(span[-1] * 0.9, top.tflops * 1.1, f"matrix product {top.tflops:.0f} TFLOP/s", ha="right")
    slope = 1.25 * top.tbps  # of a line that runs a little above the roof
    along = {"rotation": math.degrees(math.atan(slope)), "rotation_mode": "anchor", "transform_rotates_text": True}
    ax.text(span[0] * 6, span[0] * 6 * slope, f"copy {top.tbps:.2f} TB/s", **along)


def _ceiling(run: BenchRun) -> Any:
    """TFLOP/s of attend over that of a matrix product: a row a problem, a column a density, then dense attention."""
    figures = run.timed("attend")
    dense = [f for f in figures if f.density == 1.0]
    columns = [*by_density([f for f in figures if f.density < 1.0]), *([dense] if dense else [])]
    if not columns:
        return None
    labels, seqlens = list(dict.fromkeys(f.label for f in figures)), sorted({f.seqlen for f in figures})
    note = f"Matrix product in the same process: {run.ceilings.tflops:.0f} TFLOP/s."
    figure, axes = panels(run, len(labels), len(columns), note)
    for ax, label, column, here in _filled(axes, labels, columns):
        is_dense = column is dense
        ax.set_title(f"{problem_words(label)}\n{'dense' if is_dense else density_words(here)}")
        _bars(ax, _with_dense_peers(here, column) if is_dense else here, seqlens, run.ceilings.tflops)
    handles = [Patch(color=colour_of(who), label=name_of(who)) for who in everyone(figures)]
    heading(figure, "Share of the matrix product's speed that attention reaches", handles)
    return figure


def _with_dense_peers(own: Sequence[Figure], column: Sequence[Figure]) -> list[Figure]:
    """Dense figures of one problem, and those of peers, timed beside another one: no block size changes them."""
    heads = {figure.heads for figure in own}
    others = [figure for figure in column if figure.who != OURS and figure.heads in heads]
    return list({(figure.who, figure.seqlen): figure for figure in [*others, *own]}.values())


def _bars(ax: Any, figures: Sequence[Figure], seqlens: Sequence[int], tflops: float) -> None:
    whos = everyone(figures)
    width = 0.8 / max(1, len(whos))
    for i, who in enumerate(whos):
        shares = {seqlens.index(f.seqlen): f.tflops / tflops for f in figures if f.who == who}
        places = [x + (i + 0.5) * width - 0.4 for x in shares]
        ax.bar(places, list(shares.values()), width * 0.92, color=colour_of(who), zorder=2)
        for place, share in zip(places, shares.values(), strict=True):
            ax.annotate(
                f"{share:.0%}"[:-1], (place, share), (0, 2), textcoords="offset points", ha="center", fontsize=6.5
            )
    ax.set_xticks(range(len(seqlens)), [tokens(n) for n in seqlens])
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.grid(axis="y", color=RULE, linewidth=0.8, zorder=0)
