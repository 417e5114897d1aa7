"""How pictures of a bench run look, and what they call things.

Owns names, colours, panels and labels. Must not know a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

from prism_gen.bench.figures import OURS, BenchRun, Figure

mpl.use("Agg")  # files only, on machines without a screen

from matplotlib import pyplot as plt

# Ours, then the peers; after Okabe and Ito, so that they are told apart under common colour blindness.
NAMES = {
    OURS: ("prism-gen", "#00795C"),
    "fa4-sparse": ("FlashAttention-4, block-sparse", "#E69F00"),
    "fa4-packed": ("FlashAttention-4, packed rows", "#B47B00"),
    "flashprefill2-sparse": ("FlashPrefill V2", "#7B4B94"),
    "flex-sparse": ("FlexAttention", "#56B4E9"),
    "prism-sparse": ("official Prism", "#CC79A7"),
    "prism": ("official Prism", "#CC79A7"),
    "fa4-dense": ("FlashAttention-4, dense", "#D55E00"),
    "fa3-dense": ("FlashAttention-3, dense", "#8C5A2B"),
    "cudnn-dense": ("SDPA cuDNN, dense", "#4B5563"),
    "flash2-dense": ("SDPA flash, dense", "#9CA3AF"),
    "fa2-dense": ("FlashAttention-2, dense", "#C4C9D1"),
}
INK, QUIET, RULE = "#1B1E25", "#6B7280", "#E3E6EA"
DPI = 160
PANEL_INCHES = (3.3, 2.6)
STYLE: Any = {  # matplotlib types these by a literal of three hundred names
    "font.size": 9,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
}


def panels(run: BenchRun, rows: int, columns: int, note: str, *, inches: tuple[float, float] = PANEL_INCHES) -> Any:
    """(figure, axes [rows, columns]) that share their scales, with the machine below."""
    size = (inches[0] * columns, inches[1] * rows + 1.0)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    words = f"{note} {run.machine.get('gpu', '')}, torch {run.machine.get('torch', '?')}."
    figure.supxlabel(words, x=0.008, ha="left", fontsize=8, color=QUIET)
    return figure, axes


def heading(figure: Any, title: str, handles: Sequence[Any], *, columns: int = 4) -> None:
    """The title, and below it what the colours mean."""
    place = {"loc": "outside upper left", "alignment": "left", "frameon": False}
    words = {"title": title, "title_fontproperties": {"size": 12, "weight": "bold"}, "fontsize": 8.5}
    figure.legend(handles=handles, ncols=columns, **place, **words)


def name_of(who: str) -> str:
    """What a picture calls ours or a peer."""
    return NAMES[who][0] if who in NAMES else who


def colour_of(who: str) -> str:
    """Its colour."""
    return NAMES[who][1] if who in NAMES else INK


def everyone(figures: Sequence[Figure]) -> list[str]:
    """Ours first, then the peers in the order of NAMES, then any other; one of those that have the same name."""
    order = {who: rank for rank, who in enumerate(NAMES)}
    found = sorted({figure.who for figure in figures}, key=lambda who: (order.get(who, len(order)), who))
    return list({name_of(who): who for who in reversed(found)}.values())[::-1]


def tokens(seqlen: int) -> str:
    """8192 -> "8K"."""
    return f"{seqlen // 1024}K" if seqlen % 1024 == 0 else str(seqlen)


def problem_words(label: str) -> str:
    """ "bf16-d128-b128x64" -> "blocks 128x64, head_dim 128"."""
    _, head_dim, blocks, *rest = label.split("-")
    return ", ".join([f"blocks {blocks[1:]}", f"head_dim {head_dim[1:]}", *rest])


def density_words(figures: Sequence[Figure]) -> str:
    """The densities of ours, a range where they differ."""
    found = [figure.density for figure in figures if figure.who == OURS]
    low, high = f"{min(found):.2f}", f"{max(found):.2f}"
    return f"density {low}" if low == high else f"density {low} to {high}"


def by_density(figures: Sequence[Figure]) -> list[list[Figure]]:
    """Attend figures by which density of their problem and length they are of, rising: masks differ by length."""
    of_length: dict[tuple[str, int], set[float]] = {}
    for figure in figures:
        of_length.setdefault((figure.label, figure.seqlen), set()).add(figure.density)
    ranked: dict[int, list[Figure]] = {}
    for figure in figures:
        rank = sorted(of_length[figure.label, figure.seqlen]).index(figure.density)
        ranked.setdefault(rank, []).append(figure)
    return [ranked[rank] for rank in sorted(ranked)]
