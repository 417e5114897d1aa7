"""The block mask of every head as a picture.

Owns colours and layout. Draws what it is given: must not select or attend.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator
from numpy.typing import NDArray
from torch import Tensor

from prism_gen.runtime import reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.selection import Selection, visible_blocks

# Okabe and Ito's palette tells apart under every common colour blindness; dark ink where both bands agree.
INK, QUIET, RULE = "#1B1E25", "#6B7280", "#C9CDD3"
COLOURS = {
    "not visible": "#FFFFFF",
    "skipped": "#EEF0F3",
    "high band only": "#56B4E9",
    "low band only": "#E69F00",
    "both bands": "#1F2A44",
    "forced (sink, diagonal)": "#B9A3C9",
    "most probable": "#1F2A44",  # of the one distribution of the subblock estimator
}
CLASSES = list(COLOURS)
MASS_COLOURS = ("#EEF0F3", "#B5D0E3", "#5E9AC3", "#235A8C", "#0A1B33")  # one hue, evenly darker: order survives in grey
MAX_COLUMNS = 6
PANEL_INCHES = 3.1
DPI = 200
LEAST_MASS = 1e-4  # of a row's probability: what is less looks like nothing


class Panel(NamedTuple):
    """One head: title line, second line, classes int [num_q_blocks, num_k_blocks], and block mass fp32 or None."""

    title: str
    note: str
    classes: NDArray[np.int64]
    mass: NDArray[np.float32] | None


def classify(selection: Selection, thresholds: Tensor) -> Tensor:
    """Why each block is in or out, as an index into CLASSES; int64 [batch, num_lists, num_q_blocks, num_k_blocks].

    selection: with its probs. thresholds: fp32 [num_lists, bands], those it was selected with.
    """
    assert selection.probs is not None
    kept = reference.cut(selection.probs, thresholds, selection.grid).unbind(2)
    reasons = {"most probable": kept[0]}
    if len(kept) == 2:
        high, low = kept
        reasons = {"high band only": high & ~low, "low band only": low & ~high, "both bands": high & low}
    chosen = selection.block_mask()
    visible = visible_blocks(selection.grid, chosen.device)
    classes = visible.long().expand(chosen.shape).clone()
    for name, where in {"forced (sink, diagonal)": chosen, **reasons}.items():
        classes[where] = CLASSES.index(name)
    return classes


def draw(panels: list[Panel], grid: BlockGrid, *, title: str, subtitle: str, path: Path) -> None:
    """One column per head: dense attention's mass above (where given), the selected blocks below; written as PNG.

    Raises: OSError if `path` cannot be written.
    """
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 8.5, "text.color": INK, "axes.edgecolor": RULE}):
        bands = 2 if panels[0].mass is not None else 1  # rows of axes per row of heads
        columns = min(len(panels), MAX_COLUMNS)
        rows = math.ceil(len(panels) / columns) * bands
        width = max(PANEL_INCHES * columns + 1.0, 6.5)
        height = PANEL_INCHES * _shape(grid) * rows + 0.3 * rows + 1.3
        layout = ConstrainedLayoutEngine(rect=(0.01, 0.45 / height, 0.98, 1 - 1.25 / height), h_pad=0.06, w_pad=0.06)
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axis in axes.flat[len(panels) * bands :] if bands == 1 else ():
            axis.set_visible(False)
        for number, panel in enumerate(panels):
            row, column = divmod(number, columns)
            lowest = axes[row * bands + bands - 1, column]
            _draw_classes(lowest, panel, grid)
            lowest.tick_params(labelbottom=number + columns >= len(panels))  # no panel below it
            if panel.mass is not None:
                image = _draw_mass(axes[row * bands, column], panel.mass, grid)
            axes[row * bands, column].set_title(panel.title, loc="left", fontweight="bold", fontsize=10)
        if bands == 2:
            axes[0, 0].set_ylabel("where dense attention looks", color=INK, fontsize=9.5)
            bar = figure.colorbar(image, ax=axes[0, :].tolist(), shrink=0.9, aspect=28, pad=0.012)
            bar.set_label("share of a query's attention", color=QUIET)
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
            bar.outline.set_visible(False)
            bar.ax.tick_params(which="both", colors=QUIET, length=2)
            axes[1, 0].set_ylabel("what is selected", color=INK, fontsize=9.5)
        used = {int(x) for panel in panels for x in np.unique(panel.classes)}
        _write_heading(figure, title, subtitle, height, [name for i, name in enumerate(CLASSES) if i in used and i])
        figure.savefig(path, facecolor="white")


def _write_heading(figure: Figure, title: str, subtitle: str, height: float, legend: list[str]) -> None:
    figure.text(0.02, 1 - 0.20 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.47 / height, subtitle, fontsize=9, color=QUIET, va="top")
    handles = [Patch(facecolor=COLOURS[name], edgecolor=RULE, linewidth=0.5, label=name) for name in legend]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, handlelength=1.1, fontsize=9)


def _draw_mass(axis: Axes, mass: NDArray[np.float32], grid: BlockGrid) -> AxesImage:
    colours = LinearSegmentedColormap.from_list("mass", MASS_COLOURS).with_extremes(bad=COLOURS["not visible"])
    hidden = ~visible_blocks(grid, torch.device("cpu")).numpy()
    image = axis.imshow(
        np.ma.masked_where(hidden, mass.clip(LEAST_MASS)),
        cmap=colours,
        norm=LogNorm(LEAST_MASS, 1.0),
        extent=_extent(grid),
        interpolation="nearest",
    )
    _finish(axis, grid)
    return image


def _draw_classes(axis: Axes, panel: Panel, grid: BlockGrid) -> None:
    axis.imshow(
        panel.classes,
        cmap=ListedColormap(list(COLOURS.values())),
        vmin=-0.5,
        vmax=len(COLOURS) - 0.5,
        extent=_extent(grid),
        interpolation="nearest",
    )
    axis.set_title(panel.note, loc="right", fontsize=8, color=QUIET)
    _finish(axis, grid)


def _shape(grid: BlockGrid) -> float:
    """Height over width of a panel; a short chunk of queries over many keys stays readable."""
    return max(grid.num_q_blocks * grid.block_size_q / (grid.num_k_blocks * grid.block_size_k), 0.25)


def _extent(grid: BlockGrid) -> tuple[float, float, float, float]:
    """Axes in tokens; a short last block is drawn whole."""
    return (0, grid.num_k_blocks * grid.block_size_k, grid.num_q_blocks * grid.block_size_q, 0)


def _finish(axis: Axes, grid: BlockGrid) -> None:
    axis.set_aspect("auto")
    axis.set_box_aspect(_shape(grid))
    axis.tick_params(colors=QUIET, length=2, labelsize=7.5)
    for which, tokens in ((axis.xaxis, grid.seqlen_k), (axis.yaxis, grid.seqlen_q)):
        step = max(2 ** math.floor(math.log2(max(tokens // 2, 1))) // 2, 1)  # 4 to 7 ticks, on powers of two
        which.set_major_locator(MultipleLocator(step))
        which.set_major_formatter(FuncFormatter(_tokens_label))
    axis.spines[["top", "right"]].set_visible(False)


def _tokens_label(tokens: float, _position: int | None) -> str:
    return f"{tokens / 1024:g}K" if tokens >= 1024 else f"{tokens:g}"
