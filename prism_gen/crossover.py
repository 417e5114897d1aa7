"""Where sparse attention begins to beat dense attention: by length and density, from measured times.

Owns the records and the break-even density. Must not time (tune/ does).
"""

from __future__ import annotations

from collections.abc import Sequence

from prism_gen.spec import Struct


class Crossing(Struct, frozen=True, kw_only=True):
    """One length. Milliseconds: dense_ms of the fastest dense attention here, called `dense`; selection_ms of pool and
    select; attend_ms by density, rising.

    wins_below: density under which selection and attend together are faster than dense; 0: never, 1: always.
    """

    seqlen: int
    dense: str
    dense_ms: float
    selection_ms: float
    attend_ms: tuple[tuple[float, float], ...]
    wins_below: float


class Crossover(Struct, frozen=True, kw_only=True):
    """One attend problem on one GPU, batch 1. label: of the problem. key: of the kernel timed. heads: (q, kv)."""

    arch: str
    label: str
    key: str
    heads: tuple[int, int]
    crossings: tuple[Crossing, ...]

    def wins_from(self, density: float) -> int | None:
        """The shortest measured length from which on sparse wins at every measured length; None if it does nowhere."""
        shortest = None
        for crossing in sorted(self.crossings, key=lambda c: -c.seqlen):
            if density > crossing.wins_below:
                break
            shortest = crossing.seqlen
        return shortest


def wins_below(attend_ms: Sequence[tuple[float, float]], selection_ms: float, dense_ms: float) -> float:
    """Density at which selection and attend take as long as dense attention, in [0, 1].

    attend_ms: (density, ms), rising densities, at least one. Between two points time is linear in density; below the
    first it is that point's, so a sparse call that loses at the lowest density measured loses everywhere.
    """
    left = dense_ms - selection_ms
    below: tuple[float, float] | None = None
    for density, ms in attend_ms:
        if ms > left:
            if below is None:
                return 0.0
            return below[0] + (density - below[0]) * (left - below[1]) / (ms - below[1])
        below = (density, ms)
    return 1.0
