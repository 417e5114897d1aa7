"""The command line, one file a command.

Owns the list of commands, and turns a PrismError into words and exit status 1. No command imports torch before it is
called, so that building needs neither torch nor a GPU.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer
from rich.console import Console

from prism_gen.cli.bench import bench
from prism_gen.cli.build import build
from prism_gen.cli.calibrate import calibrate
from prism_gen.cli.capture import capture
from prism_gen.cli.doctor import doctor
from prism_gen.cli.explain import explain
from prism_gen.cli.inspect import inspect
from prism_gen.cli.pack import pack
from prism_gen.cli.run import run
from prism_gen.cli.tune import merge, tune
from prism_gen.cli.verify import verify
from prism_gen.console import print_error
from prism_gen.errors import PrismError

COMMANDS = (
    build,
    inspect,
    explain,
    doctor,
    capture,
    run,
    verify,
    bench,
    tune,
    merge,
    calibrate,
    pack,
)  # in the order of --help

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Ahead-of-time CUTLASS kernels for spectral-aware block-sparse prefill attention.",
    epilog="Start with `doctor`; then `build --model-config config.json`, `inspect` and `run`.",
)
for _command in COMMANDS:
    app.command()(_command)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)  # unwinds, so that running compilers are killed


def main() -> None:
    """Entry point: a PrismError is printed in red, without a traceback, and exits with status 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except PrismError as error:
        print_error(Console(stderr=True), error)
        sys.exit(1)
    except OSError as error:  # a full disk, a read-only folder
        words = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print_error(Console(stderr=True), PrismError(words, fix="choose folders you may write with --out and --cache"))
        sys.exit(1)
