"""`prism_gen verify`: a bundle's kernels examined on the user's own GPU.

Owns the command's options and its exit status. Imports torch, so only when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prism_gen.cli.options import BackendName, BundlePath, runtime_packages

CASE_TIMEOUT_S = 120.0  # the longest case takes 3 s on an H200; the first one also loads CUDA


def verify(
    bundle: BundlePath,
    backend: BackendName = "cuda",
    device: Annotated[str | None, typer.Option(help="Such as `cuda:1`. Default: the current one.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few cases a kernel: seconds instead of a minute.")] = False,
    only: Annotated[str, typer.Option(help="Part of a kernel's or a model's name, such as `attend`.")] = "",
    qkv: Annotated[
        list[Path] | None, typer.Option(help="Also try layers on this file of real q, k, v; repeatable.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML for CI.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write every case as JSON lines.")] = None,
    case_timeout: Annotated[float, typer.Option(help="Seconds after which a case counts as hung.")] = CASE_TIMEOUT_S,
) -> None:
    """Examine every kernel of a bundle on this GPU against float64; exit status 1 if any is wrong.

    Answers on ragged and large shapes, everything selected against dense attention, the same bits again, guards around
    every output, block lists with their ties, and each model's layers through PrismAttention.

    Example: `python -m prism_gen verify generated/qwen3 --junit verify.xml`
    """
    with runtime_packages("verify"):
        from prism_gen.verify.command import verify as verify_bundle  # noqa: PLC0415 imports torch

    passed = verify_bundle(
        bundle,
        backend=backend,
        device=device,
        quick=quick,
        only=only,
        qkv=qkv or (),
        junit=junit,
        json=json,
        case_timeout_s=case_timeout,
        console=Console(),
    )
    if not passed:
        raise typer.Exit(1)
