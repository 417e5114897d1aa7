"""Pictures of a bench run: speed-up over dense attention, the roofline, and the share of the ceiling.

Owns how a run is drawn. Must not measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from prism_gen.bench.figures import OURS, BenchRun, Figure, fastest_dense

mpl.use("Agg")  # files only, on machines without a screen

from matplotlib import pyplot as plt

OUR_COLOUR, PEER_COLOURS = "#1a6e5c", ("#b5651d", "#6a5acd", "#888888", "#c2477f", "#3b7dd8", "#a0a000", "#000000")
DPI = 150


def draw(run: BenchRun, folder: Path) -> list[Path]:
    """Three PNG in `folder`; those written. A picture that the run has no figures for is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, picture in (("speedup", _speedup), ("roofline", _roofline), ("ceiling", _ceiling)):
        figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
        if picture(axes, run):
            gpu = str(run.machine.get("gpu", ""))
            axes.text(0.995, 0.01, gpu, transform=axes.transAxes, ha="right", fontsize=7, alpha=0.6)
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            drawn.append(folder / f"{name}.png")
        plt.close(figure)
    return drawn


def _speedup(axes: Any, run: BenchRun) -> bool:
    """Dense time over ours, by length; a line for each density of attend that was asked for, and the whole layer."""
    lines = _lines(run)
    for i, (what, figures) in enumerate(lines.items()):
        points = []
        for figure in sorted(figures, key=lambda figure: figure.seqlen):
            dense = fastest_dense(run.timed(), figure.seqlen, figure.heads)
            if dense is not None:
                points.append((figure.seqlen, dense.median_ms / figure.median_ms))
        densities = sorted(figure.density for figure in figures)
        style = "-o" if what[0] == "layer" else "--s"
        label = f"{what[0]} {what[1]}, density {densities[0]:.2f} to {densities[-1]:.2f}"
        axes.plot(*zip(*points, strict=True) if points else ((), ()), style, label=label, color=_colour(i))
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens", ylabel="times the fastest dense attention", title="Speed-up over dense attention")
    if lines:
        axes.legend(fontsize=7)
    return any(figure.density == 1.0 for figure in run.timed("attend"))


def _lines(run: BenchRun) -> dict[tuple[str, str, int], list[Figure]]:
    """(stage, label, which density of its length, rising) -> our figures: a mask's own density differs by length."""
    groups: dict[tuple[str, str, int], list[Figure]] = {}
    for figure in run.timed():
        if figure.who == OURS and figure.stage != "selection" and figure.density < 1.0:
            groups.setdefault((figure.stage, figure.label, figure.seqlen), []).append(figure)
    lines: dict[tuple[str, str, int], list[Figure]] = {}
    for (stage, label, _), figures in groups.items():
        for rank, figure in enumerate(sorted(figures, key=lambda figure: figure.density)):
            lines.setdefault((stage, label, rank), []).append(figure)
    return lines


def _roofline(axes: Any, run: BenchRun) -> bool:
    """TFLOP/s by FLOPs a byte, under the two ceilings measured in the same process."""
    figures = [figure for figure in run.timed("attend") if figure.flops and figure.bytes_moved]
    if not figures:
        return False
    intensity = np.array([figure.flops / figure.bytes_moved for figure in figures])
    span = np.geomspace(min(intensity.min(), 10) / 2, intensity.max() * 2, 100)
    axes.plot(span, np.minimum(span * run.ceilings.tbps, run.ceilings.tflops), color="black", linewidth=1.0)
    for i, who in enumerate(_names(figures)):
        chosen = [j for j, figure in enumerate(figures) if figure.who == who]
        colour = OUR_COLOUR if who == OURS else PEER_COLOURS[i % len(PEER_COLOURS)]
        axes.scatter(intensity[chosen], [figures[j].tflops for j in chosen], s=22, label=who, color=colour)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte of q, k, v and out", ylabel="TFLOP/s")
    axes.set_title("Roofline of attend: matrix product and copy as measured")
    axes.legend(fontsize=7)
    return True


def _ceiling(axes: Any, run: BenchRun) -> bool:
    """TFLOP/s of attend over that of a matrix product, a bar a figure."""
    figures = run.timed("attend")
    if not figures:
        return False
    cases = sorted({_case(figure) for figure in figures})
    names = _names(figures)
    width = 0.8 / len(names)
    for i, who in enumerate(names):
        shares = {_case(figure): figure.tflops / run.ceilings.tflops for figure in figures if figure.who == who}
        places = [x + i * width for x, case in enumerate(cases) if case in shares]
        colour = OUR_COLOUR if who == OURS else PEER_COLOURS[i % len(PEER_COLOURS)]
        axes.bar(places, [shares[case] for case in cases if case in shares], width, label=who, color=colour)
    ticks = [f"{label}\n{seqlen}, {density}" for label, seqlen, density in cases]
    axes.set_xticks(np.arange(len(cases)) + 0.4 - width / 2, ticks, fontsize=5, rotation=60)
    axes.set(ylabel="share of the matrix product", title="Share of the ceiling")
    axes.legend(fontsize=7)
    return True


def _case(figure: Figure) -> tuple[str, int, float]:
    return figure.label, figure.seqlen, round(figure.density, 2)


def _names(figures: Sequence[Figure]) -> list[str]:
    """Ours first, then the peers."""
    return sorted({figure.who for figure in figures}, key=lambda who: (who != OURS, who))


def _colour(index: int) -> str:
    return (OUR_COLOUR, *PEER_COLOURS)[index % (1 + len(PEER_COLOURS))]
