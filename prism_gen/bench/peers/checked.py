"""What a peer must show before it is timed: that it runs here, and that its output is ours.

Owns that judgement. Must not time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from prism_gen.bench.peers.problem import Peer, differs, distance
from prism_gen.verify.problem import Problem

MOST_WORDS = 160  # characters of what a peer that fails says: a line of a terminal or two


class Checked(NamedTuple):
    """What to time and how far its output is from ours, or why it is skipped."""

    call: Callable[[], object] | None
    distance: float = 0.0
    skipped: str = ""


def prepare_checked(peer: Peer, problem: Problem, ours: Tensor) -> Checked:
    """Runs a peer once. ours: our output on the blocks that it visits.

    A peer that fails is skipped with its words, one that is wrong with the distance: neither ends the run of the rest.
    """
    if reason := peer.unavailable(problem):
        return Checked(None, skipped=reason)
    try:
        call = peer.prepare(problem)
        away = distance(call(), ours)
    except Exception as error:
        return Checked(None, skipped=failure(error))
    return Checked(None if differs(away) else call, away, differs(away))


def failure(error: Exception) -> str:
    """The first line of what a peer raised."""
    words = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {words[0][:MOST_WORDS]}"
