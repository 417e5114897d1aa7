"""`prism_gen doctor`: what this machine has and lacks.

Owns the command's options and its exit status. Must not import torch.
"""

from __future__ import annotations

import typer
from rich.console import Console

from prism_gen.cli.options import DEFAULT_CACHE, Cache, Nvcc
from prism_gen.console import print_findings
from prism_gen.doctor import build_findings, run_findings


def doctor(nvcc: Nvcc = None, cache: Cache = DEFAULT_CACHE) -> None:
    """Say what this machine has and lacks for building and for running, with the command that fixes each.

    Exit status 1 if it cannot build. Example: `python -m prism_gen doctor`
    """
    console = Console()
    to_build = build_findings(nvcc=nvcc, cache=cache)
    print_findings(console, "To build (no GPU needed):", to_build)
    print_findings(console, "To run:", run_findings())
    if not all(finding.ok for finding in to_build):
        raise typer.Exit(1)
