"""Pooled keys beside a transformers KV cache: kept from chunk to chunk while the cache provably holds the same keys.

Owns that proof. A cache may be cropped, reordered or reset between two chunks without a word to us; then everything is
pooled again, which costs one more read of the keys and never a wrong block. Must not pool.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from prism_gen.integrations.lazy_mask import Segment
from prism_gen.runtime.pooled_keys import PooledKeys

MakePooledKeys = Callable[[int], PooledKeys]  # max_tokens -> an empty one

Place = tuple[int, int]  # first row of the batch, first real key: what a segment keeps from chunk to chunk


class _Seen(NamedTuple):
    """A cache layer as the last pass left it. versions: torch's counts of changes to its tensors."""

    keys: weakref.ref[Tensor]
    versions: tuple[int | None, ...]


class KeptKeys:
    """Pooled keys of one layer, for every KV cache that is alive."""

    def __init__(self, layer_index: int) -> None:
        self._layer_index = layer_index
        self._kept: weakref.WeakKeyDictionary[Any, dict[Place, PooledKeys]] = weakref.WeakKeyDictionary()
        self._seen: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()

    def before(self, cache: Any) -> None:
        """Before a pass adds its keys to `cache`: forgets what was pooled unless its keys are those of last time."""
        seen, layer = self._seen.get(cache), self._layer_of(cache)
        if seen is None or layer is None or seen.keys() is not layer.keys or seen.versions != _versions(layer):
            self._kept.pop(cache, None)

    def after(self, cache: Any, key: Tensor) -> None:
        """After a pass, whose attention was given `key`: remembers the state of `cache`, if it can be recognised.

        That takes a cache that hands out the very tensor it keeps (a quantized one does not), and torch's count of
        changes where it writes into that tensor (none under inference_mode).
        """
        layer = self._layer_of(cache)
        if layer is None or layer.keys is not key or (layer.is_compileable and None in _versions(layer)):
            self._seen.pop(cache, None)
        else:
            self._seen[cache] = _Seen(weakref.ref(layer.keys), _versions(layer))

    def pooled(self, cache: Any, segment: Segment, num_old_keys: int, make: MakePooledKeys) -> PooledKeys:
        """What is known of a segment's keys, with room for all of them; num_old_keys of them come from earlier passes.

        make: for a segment that is new.
        """
        kept = self._kept.setdefault(cache, {})
        place, num_keys = (segment.rows.start, segment.keys.start), segment.keys.stop - segment.keys.start
        found = kept.get(place)
        if found is None or len(found.mean) != segment.rows.stop - segment.rows.start:
            found = kept[place] = make(num_keys)
        if found.num_tokens > num_old_keys:  # the sequence was cut back
            found.reset()
        if num_keys > found.max_tokens:
            found = kept[place] = found.grown(max(num_keys, 2 * found.max_tokens))
        return found

    def _layer_of(self, cache: Any) -> Any:
        """The cache's layer; None for one that keeps its keys in another form. is_compileable: it writes in place."""
        if self._layer_index >= len(cache.layers):
            return None
        layer = cache.layers[self._layer_index]
        return layer if isinstance(getattr(layer, "keys", None), Tensor) else None


def _versions(layer: Any) -> tuple[int | None, ...]:
    """How often each tensor of a cache layer was changed; None for one that torch does not count for.

    cumulative_length: of static layers, what cropping one changes.
    """
    tensors = (layer.keys, getattr(layer, "cumulative_length", None))
    return tuple(None if x.is_inference() else x._version for x in tensors if isinstance(x, Tensor))
