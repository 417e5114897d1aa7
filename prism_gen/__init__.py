"""prism-gen: ahead-of-time CUTLASS kernels for spectral-aware block-sparse attention.

Owns the version. Must not import torch, so that building needs neither torch nor a GPU.
"""

__version__ = "0.1.0"
