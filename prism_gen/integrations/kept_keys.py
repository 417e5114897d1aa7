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
    """The cache's tensor of keys as the last pass left it. version: None where torch does not count changes."""

    keys: weakref.ref[Tensor]
    version: int | None


class KeptKeys:
    """Pooled keys of one layer, for every KV cache that is alive."""

    def __init__(self, layer_index: int) -> None:
        self._layer_index = layer_index
        self._kept: weakref.WeakKeyDictionary[Any, dict[Place, PooledKeys]] = weakref.WeakKeyDictionary()
        self._seen: weakref.WeakKeyDictionary[Any, _Seen] = weakref.WeakKeyDictionary()

    def before(self, cache: Any) -> None:
        """Before a pass adds its keys to `cache`: forgets what was pooled unless its keys are those of last time."""
        seen, keys = self._seen.get(cache), self._keys_of(cache)
        unchanged = seen is not None and keys is not None and seen.keys() is keys
        if not unchanged or (seen is not None and seen.version != _version(keys)):
            self._kept.pop(cache, None)

    def after(self, cache: Any, key: Tensor) -> None:
        """After a pass, whose attention was given `key`: remembers the state of `cache`, if it can be recognised.

        That takes a cache that hands out the very tensor it keeps (a quantized one does not), and torch's count of
        changes where it writes into that tensor (none under inference_mode).
        """
        keys = self._keys_of(cache)
        writes_in_place = getattr(cache.layers[self._layer_index], "is_compileable", True) if keys is not None else True
        if keys is not key or (writes_in_place and _version(keys) is None):
            self._seen.pop(cache, None)
        else:
            self._seen[cache] = _Seen(weakref.ref(keys), _version(keys))

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

    def _keys_of(self, cache: Any) -> Tensor | None:
        """The tensor of keys that a cache hands out whole; None for a cache that keeps them in another form."""
        layers = getattr(cache, "layers", ())
        keys = getattr(layers[self._layer_index], "keys", None) if self._layer_index < len(layers) else None
        return keys if isinstance(keys, Tensor) and keys.dim() == 4 else None


def _version(keys: Tensor | None) -> int | None:
    return None if keys is None or keys.is_inference() else keys._version
