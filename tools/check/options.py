"""What one run of the check was asked to do: the command line, parsed once.

Owns every option and its default. Must not run anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prism_gen.bench.peers import attend_peers
from prism_gen.verify.kernels import TORCH_DTYPES

SPEED_SECTIONS = ("attend_speed", "pool_speed", "select_speed", "score_speed", "power")
SECTIONS = ("build", "numerics", "select", "subblock", "graph", *SPEED_SECTIONS, "sanitizer")
# What the sanitizer section runs under compute-sanitizer: a section for workers only.
SANITIZED = "sanitized"
DEFAULT_TIMEOUT_S = 150.0  # of one section: each is meant to end within 60 s, compute-sanitizer within 150
PEERS = (*attend_peers(), "prism-estimate")
GPU_LENGTHS, QUICK_LENGTHS, CPU_LENGTHS = "8192,32768,131072", "8192", "256"
DENSITIES = "0.10,0.25"  # asked for; at 128K the mask's own density is .0975 and .234, as in the peers' figures


@dataclass(frozen=True)
class Options:
    """One run, typed. lengths (tokens), densities, heads, speed_dtypes and peers belong to the speed sections.

    only: part of a kernel's name, "" for every kernel. worker: the section that this process runs, "" in the parent.
    """

    bundle: tuple[Path, ...]
    backend: str
    sections: tuple[str, ...]
    out: Path
    only: str
    quick: bool
    verbose: bool
    timeout: float
    lengths: tuple[int, ...]
    densities: tuple[float, ...]
    num_q_heads: int
    num_kv_heads: int
    speed_dtypes: tuple[str, ...]
    peers: tuple[str, ...]
    prism_src: str | None
    flashprefill_lib: str | None
    commit: str | None
    worker: str

    @property
    def heads(self) -> tuple[int, int]:
        """(q, kv) heads."""
        return self.num_q_heads, self.num_kv_heads


def _listed(allowed: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def words(text: str) -> tuple[str, ...]:
        given = tuple(word for word in text.split(",") if word)
        wrong = [word for word in given if word not in allowed]
        if wrong:
            raise argparse.ArgumentTypeError(f"no {', '.join(wrong)}; there are {', '.join(allowed)}")
        return given

    return words


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _densities(text: str) -> tuple[float, ...]:
    given = tuple(float(word) for word in text.split(","))
    if not all(0.0 < density <= 1.0 for density in given):
        raise argparse.ArgumentTypeError(f"a density lies in (0, 1], got {text}")
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpu_check", description="One-shot check of kernels: right, and how fast.")
    add = parser.add_argument
    add("--bundle", type=Path, action="append", default=[], help="a bundle directory; repeat for several")
    add(
        "--backend",
        choices=("cuda", "reference"),
        default="cuda",
        help="reference: plain torch stands in, on any device",
    )
    add("--sections", type=_listed(SECTIONS), default=SECTIONS, help="comma-separated: " + ", ".join(SECTIONS))
    add("--out", type=Path, required=True, help="JSON lines, replaced")
    add("--only", default="", help="part of a kernel's name, e.g. attend-bf16-d128")
    add("--quick", action="store_true", help="few cases, the shortest length")
    add("--verbose", action="store_true", help="print every record, not only failures and figures")
    add("--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="seconds a section may take before it is killed")
    add("--lengths", type=_integers, help=f"tokens, for speed; {GPU_LENGTHS}, or {QUICK_LENGTHS} with --quick")
    add("--densities", type=_densities, default=_densities(DENSITIES), help=f"for attend_speed; {DENSITIES}")
    add("--num-q-heads", type=int, default=32)
    add("--num-kv-heads", type=int, default=8)
    add("--speed-dtypes", type=_listed(tuple(TORCH_DTYPES)), default=("bf16",), help="default bf16")
    add("--peers", type=_listed(PEERS), default=(), help="comma-separated: " + ", ".join(PEERS))
    add("--prism-src", help="checkout of the official Prism, for its peers")
    add("--flashprefill-lib", help="library of FlashPrefill V2, made by tools/build_flashprefill.py, for its peer")
    add("--commit", help="commit of this tree, where .git is absent")
    add("--worker", choices=(*SECTIONS, SANITIZED), default="", help=argparse.SUPPRESS)
    return parser


def parse(arguments: list[str]) -> Options:
    """Options of a command line; exits with a message for a wrong one."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    if given["backend"] == "cuda" and not given["bundle"]:
        parser.error("give --bundle DIR, or --backend reference")
    if given["num_kv_heads"] < 1 or given["num_q_heads"] < 1 or given["num_q_heads"] % given["num_kv_heads"]:
        parser.error("--num-q-heads must be a positive multiple of --num-kv-heads")
    if given["lengths"] is None:
        on_cpu = given["backend"] == "reference"
        given["lengths"] = _integers(CPU_LENGTHS if on_cpu else QUICK_LENGTHS if given["quick"] else GPU_LENGTHS)
    return Options(**{**given, "bundle": tuple(given["bundle"])})
