"""Two bench runs side by side: what became slower beyond noise.

Owns that verdict. Pure: must not time or print.
"""

from __future__ import annotations

from typing import NamedTuple

from prism_gen.bench.figures import OURS, BenchRun, Figure
from prism_gen.errors import ConfigError

DIGEST_DIGITS = 12  # of a file's SHA-256, enough to tell two apart


class Change(NamedTuple):
    """One figure in both runs. ratio: new over old median. on_par: the same, corrected by what the ceiling of the stage
    changed between the runs. failed: slower than allowed.
    """

    old: Figure
    new: Figure
    ratio: float
    on_par: float
    failed: bool


def parse_share(text: str) -> float:
    """ "5%" or "0.05" -> 0.05. Raises: ConfigError unless a share in [0, 1)."""
    try:
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ConfigError(f"--fail-over {text!r}", exists="a share such as 5% or 0.05", fix="give such a share")
    return share


def compare(old: BenchRun, new: BenchRun, fail_over: float) -> list[Change]:
    """Our own figures that both runs hold.

    A figure fails where it is slower by more than fail_over and the wider spread of the two runs: its median, as it is
    and against the ceiling measured in the same process (a chip that is slower as a whole is no regression), and even
    its fastest run (what slows most runs and spares one is not the kernel); and where the quartiles lie apart. The
    spread counts twice because processes differ by more than the runs of one: on an H200 the same bundle's layer at 8K,
    .254 ms with 3 % between quartiles, was .267 in the next process.
    Raises: ConfigError where the runs are of different GPUs or data, or have nothing in common.
    """
    gpus = old.machine.get("gpu"), new.machine.get("gpu")
    if gpus[0] != gpus[1]:
        raise ConfigError(
            f"the old run is of {gpus[0]}, the new one of {gpus[1]}", fix="compare runs of one kind of GPU"
        )
    if old.data != new.data:
        names = [f"the file {run.data[:DIGEST_DIGITS]}" if run.data else "random tensors" for run in (old, new)]
        raise ConfigError(
            f"the old run is on {names[0]}, the new one on {names[1]}", fix="compare runs on the same --qkv, or on none"
        )
    before = {figure.key: figure for figure in old.timed() if figure.who == OURS}
    changes = [_change(before[f.key], f, old, new, fail_over) for f in new.timed() if f.who == OURS and f.key in before]
    if not changes:
        raise ConfigError(
            "the two runs have no figure in common", fix="compare runs of the same model, lengths, densities and heads"
        )
    return changes


def _change(old: Figure, new: Figure, old_run: BenchRun, new_run: BenchRun, fail_over: float) -> Change:
    ratio = new.median_ms / old.median_ms
    if new.stage == "selection":  # bound by memory, the others by the tensor cores
        ceiling = new_run.ceilings.tbps / old_run.ceilings.tbps
    else:
        ceiling = new_run.ceilings.tflops / old_run.ceilings.tflops
    on_par = ratio * ceiling
    noise = max((high - low) / f.median_ms for f in (old, new) for low, high in (f.quartiles_ms,))
    apart = new.quartiles_ms[0] > old.quartiles_ms[1]
    fastest = min(new.ms) / old.median_ms * min(1.0, ceiling)
    failed = min(ratio, on_par, fastest) > 1 + fail_over + noise and apart
    return Change(old, new, ratio, on_par, failed)
