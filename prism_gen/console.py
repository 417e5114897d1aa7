"""What people see: build progress, the table of a bundle, the findings of doctor.

Owns rich output for the command line. Must not build, load or decide anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from prism_gen.arch import ARCHS
from prism_gen.compile import Event
from prism_gen.doctor import Finding
from prism_gen.errors import PrismError
from prism_gen.manifest import Manifest
from prism_gen.provenance import short


class BuildProgress:
    """A bar that names the kernels being compiled; plain lines where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self.compiled = 0
        self.reused = 0
        self._console = console
        self._running: list[str] = []
        self._bar = Progress(
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._lock = threading.Lock()

    def __enter__(self) -> BuildProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; called from the compiling threads."""
        with self._lock:
            if event.kind == "plan":
                self._bar.update(self._task, total=event.total)
            elif event.kind == "hit":
                self.reused += 1
                self._bar.advance(self._task)
            elif event.kind == "warning":
                self._console.print(Text.assemble(("warning: ", "bold yellow"), event.name), soft_wrap=True)
            elif event.kind == "start":
                self._running.append(event.name)
                if not self._console.is_terminal:
                    self._line(f"compiling {event.name}")
            else:
                if event.name in self._running:
                    self._running.remove(event.name)
                self._bar.advance(self._task)
                if event.kind == "done":
                    self.compiled += 1
                    self._line(f"compiled  {event.name}  {event.seconds:.1f} s")
                else:
                    self._line(f"refused   {event.name}")
            self._bar.update(self._task, description="\n".join(self._running))

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_error(console: Console, error: PrismError) -> None:
    """The three parts of an error, the first line in red; brackets in it are not markup."""
    first, _, rest = str(error).partition("\n")
    console.print(Text.assemble(("error: ", "bold red"), (first, "red")), soft_wrap=True)
    if rest:
        console.print(Text(rest), soft_wrap=True)


def print_manifest(console: Console, bundle: Path, manifest: Manifest) -> None:
    """Models, kernels with their figures, and what they were built with."""
    total_bytes = sum(
        (bundle / entry.file).stat().st_size for entry in manifest.kernels if (bundle / entry.file).exists()
    )
    console.print(Text(f"{bundle}: {len(manifest.kernels)} kernels, {total_bytes / 1e6:.1f} MB"), soft_wrap=True)
    for model in manifest.models:
        full = model.layer_kinds.count("full")
        blocks = ", ".join(f"{q}x{k}" for q, k in model.selection.block_sizes)
        console.print(
            f"  {model.name}: {model.num_q_heads}/{model.num_kv_heads} heads of {model.head_dim}, {model.dtype}, "
            f"{full} of {model.num_layers} layers, blocks {blocks}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    console.print(_kernel_table(bundle, manifest))
    tools = ", ".join(f"{tool} {version}" for tool, version in manifest.toolchain.items())
    commit = f", commit {short(manifest.provenance.commit)}" if manifest.provenance.commit else ""
    console.print(
        f"built {manifest.provenance.created} by prism_gen {manifest.generator}{commit} with {tools}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if manifest.tuning:
        print_tuning(console, manifest)


def print_tuning(console: Console, manifest: Manifest) -> None:
    """What a tuning table changed in a bundle, and from where sparse beats dense on its GPU; nothing without one."""
    tuning = manifest.tuning
    if tuning is None:
        return
    names = {entry.key: entry.name for entry in manifest.kernels}
    lines = [
        f"tuned on {tuning.gpu}, driver {tuning.driver}, CUDA {tuning.cuda}, table {tuning.digest[:12]}:"
        f" {len(tuning.speedups)} of {len(names)} kernels have another schedule than the default"
    ]
    lines += [f"  {names.get(key, key)}: {speedup:.3f}x" for key, speedup in sorted(tuning.speedups.items())]
    for crossover in tuning.crossovers:
        where = [f"{c.wins_below:.2f} at {c.seqlen} tokens" for c in crossover.crossings]
        lines.append(f"  {crossover.label}: sparse beats dense below a density of {', '.join(where)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _kernel_table(bundle: Path, manifest: Manifest) -> Table:
    """Narrow enough for 80 columns; units stand in the caption."""
    caption = "regs a thread, smem KiB a CTA, spill bytes, MMA instructions, library MB"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1))
    table.add_column("kernel", no_wrap=True)
    for heading in ("regs", "smem", "spill", "MMA", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in manifest.kernels:
        matrix_op = ARCHS[entry.arch].tensor_core_sass[0] if entry.arch in ARCHS else ""
        path = bundle / entry.file
        table.add_row(
            entry.name,
            str(entry.registers),
            f"{entry.smem_bytes / 1024:.0f}",
            str(entry.spill_bytes),
            str(entry.instructions.get(matrix_op, 0) or "-"),
            f"{path.stat().st_size / 1e6:.1f}" if path.exists() else "[red]gone[/red]",
        )
    return table


def print_findings(console: Console, title: str, findings: Iterable[Finding]) -> None:
    """One line per finding, with the fix below each that is missing."""
    console.print(Text(title, style="bold"))
    for finding in findings:
        mark = ("ok      ", "green") if finding.ok else ("missing ", "yellow")
        console.print(Text.assemble("  ", mark, f"{finding.name:<16} {finding.detail}"), soft_wrap=True)
        if finding.fix and not finding.ok:
            console.print(Text(f"          fix: {finding.fix}"), soft_wrap=True)
