"""The runtime: loads a bundle, resolves its kernels, runs one attention layer.

Owns the public names. The only part of the package that needs torch.
"""

from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.load import Bundle, load_bundle
from prism_gen.runtime.pooled_keys import PooledKeys
from prism_gen.runtime.results import Output, Stats
from prism_gen.runtime.selection import Selection

__all__ = ["Bundle", "Output", "PooledKeys", "PrismAttention", "Selection", "Stats", "load_bundle"]
