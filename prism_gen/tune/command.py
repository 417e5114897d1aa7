"""`python -m prism_gen tune`: the race of schedules on this machine, with its progress, journal and table.

Owns what is printed and written. Must not build (prepare.py does) or time (device.py does).
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from prism_gen import __version__
from prism_gen.files import write_atomic
from prism_gen.tune.execute import Plan
from prism_gen.tune.journal import Journal, Line
from prism_gen.tune.progress import TuneProgress
from prism_gen.tune.unit import Memory, tuned_kernel
from prism_gen.tuning_table import TABLE_SCHEMA_VERSION, TunedKernel, TuningTable, encode_table

Executor = Callable[[Plan, Callable[[Line], None]], None]


def tune(plan: Plan, execute: Executor, *, out: Path, toolchain: dict[str, str], console: Console) -> TuningTable:
    """Runs what the journal does not hold of the plan and writes the table; interrupted, the journal is left.

    toolchain: of the candidates' bundle. Raises: DeviceError as the executor does.
    """
    journal = Journal(plan.journal)
    known, foreign = journal.of_machine(plan.machine)
    names = {unit.name for unit in plan.units}
    stale = foreign + sum(getattr(line, "unit", "") not in names for line in known)
    if stale:
        console.print(
            f"[bold yellow]warning:[/] {stale} lines of {plan.journal} are of another GPU, driver, shape, schedule or"
            " template, and are ignored",
            highlight=False,
            soft_wrap=True,
        )
    journal.add(plan.machine)
    with TuneProgress(console, plan.units, known, deadline=plan.deadline) as bar:
        try:
            execute(plan, bar)
        except KeyboardInterrupt:
            console.print(f"interrupted: {plan.journal} keeps what was measured; the same command goes on from there")
            raise
    lines, _ = journal.of_machine(plan.machine)
    rows = [row for unit in plan.units if (row := tuned_kernel(unit, lines)) is not None]
    table = TuningTable(
        schema_version=TABLE_SCHEMA_VERSION,
        generator=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        gpu=plan.machine.gpu,
        driver=plan.machine.driver,
        cuda=plan.machine.cuda,
        heads=plan.units[0].heads if plan.units else (0, 0),
        toolchain=toolchain,
        kernels=tuple(rows),
        crossovers=tuple(c for unit in plan.units if (c := Memory(unit, lines).crossover) is not None),
    )
    write_atomic(out, encode_table(table))
    print_table(console, table, out)
    return table


def print_table(console: Console, table: TuningTable, path: Path) -> None:
    """Which schedule is best of how many, and where attention crosses dense attention."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    shown.add_column("kernel", overflow="fold")
    for heading in ("right", "others", "faster", "best"):
        shown.add_column(heading, justify="left" if heading == "best" else "right")
    for row in table.kernels:
        outcomes = Counter(candidate.outcome for candidate in row.candidates)
        right = outcomes.pop("right", 0)
        others = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())) or "-"
        shown.add_row(f"{row.family}-{row.problem.label()}", str(right), others, f"{row.speedup:.3f}x", _best(row))
    console.print(shown)
    for crossover in table.crossovers:
        for c in crossover.crossings:
            console.print(
                f"{crossover.label} at {c.seqlen} tokens: faster than {c.dense} ({c.dense_ms:.3f} ms)"
                f" below a density of {c.wins_below:.2f}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    console.print(
        f"tuning table for {table.gpu}: {path}; use it with: python -m prism_gen build --tuning {path} ...",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _best(row: TunedKernel) -> str:
    """The fields of the best schedule that differ from the default's."""
    if not row.complete:
        return "default (not finished)"
    if row.best == row.default:
        return "default"
    best, default = row.schedule(row.best), row.schedule(row.default)
    names = [name for name in best.__struct_fields__ if getattr(best, name) != getattr(default, name)]
    values = {name: getattr(best, name) for name in names}
    return ", ".join(f"{name} {value}" if isinstance(value, int) else name for name, value in values.items())
