"""`python -m prism_gen bench`: figures as a table, a file and pictures, and the guard against regressions.

Owns what is printed and whether a comparison passes. Must not measure (run.py does).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prism_gen.bench.compare import Change, compare
from prism_gen.bench.figures import OURS, BenchRun, Figure, fastest_dense, read_run, write_run
from prism_gen.bench.peers import attend_peers
from prism_gen.bench.real_data import RealData
from prism_gen.bench.run import Backend, Plan, run_bench
from prism_gen.errors import UnsupportedError
from prism_gen.runtime.connect import cuda_device
from prism_gen.runtime.load import load_bundle


def measure(
    bundle: Path,
    *,
    backend: Backend,
    device: str | None,
    lengths: tuple[int, ...],
    densities: tuple[float, ...],
    peers: tuple[str, ...] | None,
    prism_src: str | None,
    flashprefill_lib: str | None,
    qkv: Path | None,
    console: Console,
) -> BenchRun:
    """Takes every figure, one line each as it comes. qkv: a file to measure on in the place of random tensors.

    Raises: BundleError, DeviceError, UnsupportedError; TensorError, ConfigError for a file that is not of this bundle.
    """
    known = attend_peers(prism_src, flashprefill_lib)
    if unknown := [name for name in peers or () if name not in known]:
        raise UnsupportedError(f"no peer {unknown[0]!r}", exists=", ".join(known), fix="choose one of these")
    if backend == "reference":
        torch.set_num_threads(1)  # tensors are small, and the machine may be shared
    where = torch.device("cpu") if backend == "reference" else cuda_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # events and peers go to the current device
    loaded = load_bundle(bundle)
    data = RealData.read(qkv, loaded.manifest.models) if qkv else None
    plan = Plan(backend, where, lengths, densities, peers, prism_src, flashprefill_lib, data)

    def show(figure: Figure) -> None:
        if not figure.skipped:
            line = f"{figure.stage} {figure.label} {_case(figure)} {figure.who}: {figure.median_ms:.3f} ms"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return run_bench(loaded, plan, show)


def report(run: BenchRun, *, json: Path | None, plots: Path | None, console: Console) -> None:
    """The table, and the file and pictures where they are asked for."""
    machine = ", ".join(f"{name} {run.machine[name]}" for name in ("driver", "cuda", "torch") if name in run.machine)
    console.print(
        f"{run.machine.get('gpu', '')}; {machine}; matrix product {run.ceilings.tflops:.0f} TFLOP/s, copy"
        f" {run.ceilings.tbps:.2f} TB/s",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if not run.complete:
        console.print("interrupted: these are the figures that were taken by then", style="bold yellow")
    for label in dict.fromkeys(figure.label for figure in run.figures):
        console.print(_table(run, label))
        for figure in run.timed("layer"):
            if figure.label == label and figure.list_densities:
                console.print(_lists(figure), highlight=False, soft_wrap=True)
    skipped = {figure.who: figure.skipped for figure in run.figures if figure.skipped}
    for who, reason in skipped.items():
        console.print(f"not everywhere: {who} {reason}", highlight=False, markup=False, soft_wrap=True)
    if json:
        write_run(json, run)
    if plots:
        from prism_gen.bench.plots import draw  # noqa: PLC0415 matplotlib takes a second to import

        for path in draw(run, plots):
            console.print(f"drawn: {path}", highlight=False, markup=False, soft_wrap=True)


def _case(figure: Figure) -> str:
    """Length and density."""
    return f"n{figure.seqlen} {figure.density:.2f}"


def _lists(figure: Figure) -> str:
    """How the lists of a layer differ."""
    least, most = min(figure.list_densities), max(figure.list_densities)
    return f"layer n{figure.seqlen}: {len(figure.list_densities)} lists of {least:.1%} to {most:.1%} of the blocks"


def _table(run: BenchRun, label: str) -> Table:
    """One row a figure, narrow enough for 80 columns."""
    caption = (
        "case: tokens and density. spread: between quartiles. top: share of the ceiling measured in this run."
        " dense: times as fast as the fastest dense attention"
    )
    table = Table(title=label, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    for heading in ("stage", "case", "who"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "spread", "rate", "top", "dense"):
        table.add_column(heading, justify="right", no_wrap=True)
    timed = run.timed()
    for figure in (figure for figure in timed if figure.label == label):
        dense = fastest_dense(timed, figure.seqlen, figure.heads)
        low, high = figure.quartiles_ms
        by_memory = figure.stage == "selection"
        rate = f"{figure.tbps:.2f} TB/s" if by_memory else f"{figure.tflops:.0f} TF/s"
        share = figure.tbps / run.ceilings.tbps if by_memory else figure.tflops / run.ceilings.tflops
        times = "-" if dense is None or by_memory else f"{dense.median_ms / figure.median_ms:.2f}"
        table.add_row(
            figure.stage,
            _case(figure),
            figure.who,
            f"{figure.median_ms:.3f}",
            f"{(high - low) / figure.median_ms:.1%}",
            rate,
            f"{share:.0%}",
            times,
            style="bold" if figure.who == OURS else None,
        )
    return table


def guard(old: Path, run: BenchRun, fail_over: float, console: Console) -> bool:
    """Whether nothing of ours became slower than the old run by more than fail_over and noise."""
    before = read_run(old)
    changes = compare(before, run, fail_over)
    peers = [{figure.who for figure in each.timed()} for each in (before, run)]
    if peers[0] != peers[1]:
        words = (
            f"not in both runs: {', '.join(sorted(peers[0] ^ peers[1]))}; ours shares clocks and caches with its peers"
        )
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    console.print(_changes_table(changes))
    failed = sum(change.failed for change in changes)
    words = f"{failed} of {len(changes)} figures are slower" if failed else f"none of {len(changes)} figures is slower"
    console.print(Text(f"{words} by more than {fail_over:.1%} and noise", style="bold red" if failed else "bold green"))
    return failed == 0


def _changes_table(changes: Sequence[Change]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("figure", "old ms", "new ms", "ratio", "to ceiling", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right", no_wrap=heading != "figure")
    for change in changes:
        new = change.new
        table.add_row(
            f"{new.stage} {new.label} {_case(new)}",
            f"{change.old.median_ms:.3f}",
            f"{new.median_ms:.3f}",
            f"{change.ratio:.3f}",
            f"{change.on_par:.3f}",
            "SLOWER" if change.failed else "",
            style="bold red" if change.failed else None,
        )
    return table
