"""`python -m prism_gen run`: one layer of real q, k, v, measured and drawn.

Owns the choice of the default backend, said aloud, and the printed report. Must not measure or draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prism_gen.errors import UnsupportedError
from prism_gen.model_config import parse_block_size
from prism_gen.runtime import reference
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.measure import LayerReport, measure
from prism_gen.runtime.qkv_file import QKV, read_qkv

MASS_ROW_HEADS = 6  # with more heads the picture shows the masks alone
RunBackend = Literal["auto", "cuda", "reference"]


def run_layer(
    *,
    bundle: Path | str,
    qkv: Path | str,
    model: str | None = None,
    layer: int | None = None,
    block_size: tuple[int, int] | str | None = None,
    backend: RunBackend = "auto",
    plot: Path | None = None,
    console: Console | None = None,
) -> LayerReport:
    """Runs and prints one layer; draws its masks where `plot` names a PNG.

    layer: default the file's own, else 0. block_size: (q, k) tokens or "128x64". backend: "auto" takes cuda where torch
    sees a device and the reference otherwise, and says which.
    Raises: TensorError for a bad file; UnsupportedError where `plot` is no PNG; everything that PrismAttention raises.
    """
    console = console or Console()
    if plot is not None and plot.suffix.lower() != ".png":
        raise UnsupportedError(f"--plot {plot} does not end in .png", fix="name a PNG, such as --plot mask.png")
    tensors = read_qkv(Path(qkv))
    chosen = ("cuda" if torch.cuda.is_available() else "reference") if backend == "auto" else backend
    attention = PrismAttention(
        bundle,
        model,
        (tensors.layer or 0) if layer is None else layer,
        block_size=parse_block_size(block_size) if isinstance(block_size, str) else block_size,
        backend=chosen,
    )
    if attention.device is not None:
        q, k, v = (x.to(attention.device) for x in tensors[:3])
        tensors = QKV(q, k, v, tensors.layer)
    report = measure(attention, *tensors[:3])
    _print_heading(console, attention, report, Path(qkv), was_asked=backend != "auto")
    console.print(_heads_table(report))
    console.print(_times_table(report))
    if plot is not None:
        _draw(plot, attention, report, tensors)
        console.print(f"block masks drawn in {plot}", markup=False)
    return report


def _print_heading(
    console: Console, attention: PrismAttention, report: LayerReport, file: Path, *, was_asked: bool
) -> None:
    grid = report.selection.grid
    if attention.device is not None:
        where = f"cuda, the bundle's kernels on {torch.cuda.get_device_name(attention.device)}"
    else:
        where = "reference, plain torch on the CPU"
        where += "" if was_asked else " (torch sees no CUDA device)"
    console.print(f"[bold]{escape(attention.model.name)}[/bold] layer {attention.layer}, {escape(file.name)}")
    console.print(f"backend  {where}", highlight=False)
    console.print(
        f"tokens   {grid.seqlen_q} queries, {grid.seqlen_k} keys, blocks of {grid.block_size_q}x{grid.block_size_k}"
        f" ({report.stats.visible_blocks} visible a head)",
        highlight=False,
    )


def _heads_table(report: LayerReport) -> Table:
    table = Table(title="Against dense causal attention", title_justify="left", title_style="bold")
    for name in ("head", "density", "mass kept", "least of a row", "output error"):
        table.add_column(name, justify="right")
    columns = (report.density, report.mean_mass, report.least_mass, report.error)
    for head, (density, mass, least, error) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        table.add_row(str(head), f"{density:.2%}", f"{mass:.2%}", f"{least:.2%}", f"{error:.2%}")
    table.add_section()
    density, mass, least, error = (float(c.mean()) for c in columns)
    least = float(report.least_mass.min())
    table.add_row("all", f"{density:.2%}", f"{mass:.2%}", f"{least:.2%}", f"{error:.2%}", style="bold")
    return table


def _times_table(report: LayerReport) -> Table:
    how = f"median of {report.repeats} runs, CUDA events" if report.repeats > 1 else "one run, host clock"
    table = Table(title=f"Time per stage ({how})", title_justify="left", title_style="bold")
    stages = dict(report.stage_ms)
    dense = stages.pop("dense")
    for name in (*stages, "sum", "dense attend"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{ms:.3f} ms" for ms in (*stages.values(), sum(stages.values()), dense)))
    return table


def _draw(path: Path, attention: PrismAttention, report: LayerReport, tensors: QKV) -> None:
    """Draws the first sequence of the batch. Raises: UnsupportedError without matplotlib or a writable path."""
    try:
        from prism_gen.runtime.plot import Panel, classify, draw  # noqa: PLC0415 matplotlib takes a second to import
    except ImportError as error:
        raise UnsupportedError(
            f"--plot needs matplotlib ({error})", fix="pip install 'prism-gen[runtime]', or leave --plot out"
        ) from None
    q, k, _, _ = tensors
    selection = report.selection
    rows = attention.thresholds.rows(selection.block_counts.shape[1], q.device)
    classes = classify(selection, rows)[0].repeat_interleave(attention.model.heads_per_list, 0).cpu().numpy()
    mass = None
    if q.shape[2] <= MASS_ROW_HEADS:
        scale = attention.softmax_scale
        mass = reference.block_mass(q[:1], k[:1], report.dense_lse[:1], selection.grid, softmax_scale=scale)[0].cpu()
    panels = [
        Panel(
            title=f"head {head}",
            note=f"{float(report.density[head]):.1%} of blocks, {float(report.mean_mass[head]):.1%} of attention",
            classes=classes[head],
            mass=None if mass is None else mass[head].float().numpy(),
        )
        for head in range(q.shape[2])
    ]
    grid = selection.grid
    title = f"{attention.model.name}, layer {attention.layer}: the blocks Prism selects"
    subtitle = (
        f"{grid.seqlen_q} queries down, {grid.seqlen_k} keys across, blocks of {grid.block_size_q}x{grid.block_size_k}"
        f" tokens; {float(report.density.mean()):.1%} of the causal blocks hold"
        f" {float(report.mean_mass.mean()):.1%} of the attention"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(panels, grid, title=title, subtitle=subtitle, path=path)
    except OSError as error:
        raise UnsupportedError(
            f"{path} cannot be written: {error.strerror or error}", fix="choose another --plot"
        ) from None
