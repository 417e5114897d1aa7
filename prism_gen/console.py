"""What people see: build progress, the table of a bundle, the findings of doctor.

Owns rich output for the command line. Must not build, load or decide anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from prism_gen.arch import ARCHS
from prism_gen.compile import Event
from prism_gen.errors import PrismError
from prism_gen.manifest import Manifest
from prism_gen.toolchain import Finding


class BuildProgress:
    """A bar that names the kernels being compiled; plain lines where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self.compiled = 0
        self.reused = 0
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._running: dict[str, TaskID] = {}

    def __enter__(self) -> BuildProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event; called from the compiling threads."""
        if event.kind == "hit":
            self.reused += 1
        elif event.kind == "start":
            self._running[event.name] = self._bars.add_task(f"compiling {event.name}", total=1)
            if not self._console.is_terminal:
                self._console.print(f"compiling {event.name}", highlight=False, soft_wrap=True)
        else:
            self.compiled += 1
            self._bars.remove_task(self._running.pop(event.name))
            self._console.print(f"compiled  {event.name}  {event.seconds:.1f} s", highlight=False, soft_wrap=True)


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
    commit = f", commit {manifest.provenance.commit[:12]}" if manifest.provenance.commit else ""
    console.print(
        f"built {manifest.provenance.created} by prism_gen {manifest.generator}{commit} with {tools}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _kernel_table(bundle: Path, manifest: Manifest) -> Table:
    table = Table(title=None)
    table.add_column("kernel", no_wrap=True, overflow="fold")
    for heading in ("registers", "smem KiB", "spills B", "tensor-core ops"):
        table.add_column(heading, justify="right")
    table.add_column("file")
    for entry in manifest.kernels:
        matrix_op = ARCHS[entry.arch].tensor_core_sass[0] if entry.arch in ARCHS else ""
        path = bundle / entry.file
        table.add_row(
            entry.name,
            str(entry.registers),
            f"{entry.smem_bytes / 1024:.1f}",
            str(entry.spill_bytes),
            f"{count} {matrix_op}" if (count := entry.instructions.get(matrix_op, 0)) else "-",
            f"{path.stat().st_size / 1e6:.2f} MB" if path.exists() else "[red]missing[/red]",
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
