"""Which heads of every layer this process has, where transformers shards a model over several.

Owns the reading of transformers' device mesh. Kernels take any whole groups of heads and need nothing of it; thresholds
of single heads do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from prism_gen.errors import UnsupportedError
from prism_gen.runtime.thresholds import Thresholds


class Shard(NamedTuple):
    """This process is number `rank` of the `size` that hold a part of every layer's heads, in order."""

    rank: int
    size: int

    def own(self, thresholds: Thresholds) -> Thresholds:
        """Those of this process's lists. Raises: UnsupportedError where the lists do not divide evenly."""
        if thresholds.uniform or self.size == 1:
            return thresholds
        total = len(thresholds.values)
        count, rest = divmod(total, self.size)
        if rest:
            raise UnsupportedError(
                f"thresholds of {total} lists of blocks under tensor parallelism over {self.size} processes",
                exists="one threshold for all lists, or numbers of lists that divide evenly",
                fix="give one threshold, or use another number of processes",
            )
        own = slice(self.rank * count, (self.rank + 1) * count)
        return Thresholds(thresholds.values[own].contiguous(), uniform=False)


def shard_of(model: Any) -> Shard:
    """The shard of a transformers model that this process holds; all of it without tensor parallelism."""
    size = getattr(model, "_tp_size", None) or 1
    if size == 1:
        return Shard(0, 1)
    mesh = model._device_mesh
    return Shard((mesh["tp"] if mesh.ndim > 1 else mesh).get_local_rank(), size)
