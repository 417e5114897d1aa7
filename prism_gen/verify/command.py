"""`python -m prism_gen verify`: a bundle examined on this machine's GPU, as a table, JUnit and JSON lines.

Owns what is printed and whether the bundle passes. Must not examine (worker.py does).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from prism_gen.errors import ConfigError
from prism_gen.runtime.connect import cuda_device
from prism_gen.runtime.load import Bundle, load_bundle
from prism_gen.verify.job import BEGIN, END, Backend, Job
from prism_gen.verify.kernels import kernel_name
from prism_gen.verify.layers import layer_name, read_fitting
from prism_gen.verify.report import Aspect
from prism_gen.verify.summary import Record, Row, summarize, write_junit
from prism_gen.verify.supervise import examine

ASPECT_COLUMNS: tuple[Aspect, ...] = ("answer", "dense", "repeat", "bounds", "ties")
MAX_PROBLEMS = 5  # of one kernel that are printed; the files hold all


def verify(
    bundle: Path,
    *,
    backend: Backend,
    device: str | None = None,
    quick: bool = False,
    only: str = "",
    qkv: Sequence[Path] = (),
    junit: Path | None = None,
    json: Path | None = None,
    case_timeout_s: float,
    console: Console,
) -> bool:
    """Whether every kernel of the bundle for this device is right. backend "reference": the examination itself is
    tried, with plain torch in the place of each kernel.

    qkv: files of real tensors, as capture writes them, to try the layers on as well. junit, json: files to write.
    Raises: BundleError, DeviceError, TensorError for a bad file, ConfigError where nothing is to be examined.
    """
    loaded = load_bundle(bundle)
    where, arch = _device(loaded, backend, device)
    names = [kernel_name(entry.spec) for entry in loaded.manifest.kernels if entry.arch == arch]
    names += [layer_name(model, size) for model in loaded.manifest.models for size in model.selection.block_sizes]
    if not any(only in name for name in names):
        raise ConfigError(
            f"nothing in {bundle} is called {only!r}",
            exists=", ".join(names),
            fix="name a part of one of these with --only, or leave it out",
        )
    for path in qkv:
        read_fitting(path, loaded.manifest.models)
    with tempfile.TemporaryDirectory() as scratch:
        records_file = json or Path(scratch) / "records.jsonl"
        job = Job(bundle, backend, str(where), arch, records_file, quick, only, qkv=tuple(qkv))
        with _Progress(console) as progress:
            records = examine(job, case_timeout_s=case_timeout_s, on_record=progress)
    rows = summarize(records)
    _print(console, bundle, arch, rows, records)
    if junit:
        write_junit(junit, rows, records)
    return all(row.ok for row in rows)


def _device(bundle: Bundle, backend: Backend, device: str | None) -> tuple[torch.device, str]:
    """The device to run on and the arch whose kernels are examined."""
    if backend == "reference":
        return torch.device("cpu"), bundle.manifest.kernels[0].arch
    chosen = cuda_device(device)
    return chosen, bundle.arch_for(torch.cuda.get_device_capability(chosen), torch.cuda.get_device_name(chosen))


class _Progress:
    """Which kernel is examined and how many of its cases are done; one line a kernel where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._verdicts: Counter[bool] = Counter()

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, record: Record) -> None:
        """Shows one record."""
        if record["case"] == BEGIN:
            self._verdicts.clear()
            self._bar.reset(self._task, description=record["what"], total=None)
        elif record["case"] == END:
            line = f"{record['what']}: {self._verdicts[True]} ok, {self._verdicts[False]} failed, {record['seconds']} s"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif record["ok"] is not None:
            self._verdicts[record["ok"]] += 1
            self._bar.update(self._task, total=record.get("trials"), advance=0 if "trials" in record else 1)


def _print(console: Console, bundle: Path, arch: str, rows: Sequence[Row], records: Sequence[Record]) -> None:
    machine = next((record for record in records if record["what"] == "environment"), {})
    versions = ", ".join(f"{name} {machine[name]}" for name in ("driver", "cuda", "torch") if name in machine)
    console.print(Text(f"{bundle}, {arch} on {machine.get('gpu', 'nothing')}; {versions}"), soft_wrap=True)
    console.print(_table(rows))
    for row in (row for row in rows if not row.ok):
        for problem in row.problems[:MAX_PROBLEMS] or ["no case ran"]:
            console.print(Text.assemble(("FAILED ", "bold red"), f"{row.name} {problem}"), soft_wrap=True)
    failed = sum(not row.ok for row in rows)
    verdict = f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} pass"
    cases = sum(row.cases for row in rows)
    console.print(Text(f"{verdict}, {cases} cases", style="bold red" if failed else "bold green"))


def _table(rows: Sequence[Row]) -> Table:
    """Narrow enough for 80 columns with the names of kernels as they are."""
    caption = (
        "answer: largest error over what is allowed, twice torch's own. dense: all blocks selected. repeat: the same"
        " bits. bounds: guards around outputs. ties: list rows within rounding of a cut-off, of all compared"
    )
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1))
    table.add_column("kernel", overflow="fold")
    for heading in ("cases", *ASPECT_COLUMNS):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row, aspect) for aspect in ASPECT_COLUMNS]
        table.add_row(row.name, str(row.cases), *cells, style=None if row.ok else "bold red")
    return table


def _cell(row: Row, aspect: Aspect) -> str:
    """What failed, or how near the answers and the lists are where nothing did."""
    verdict = row.cell(aspect)
    if verdict == "ok" and aspect == "answer" and row.share_of_limit is not None:
        return f"{row.share_of_limit:.0%}"
    if verdict != "-" and aspect == "ties" and row.ties is not None:
        return f"{row.ties}/{row.rows}" if verdict == "ok" else verdict
    return verdict
