"""One `build` in a process of its own, for tests that race or kill it: build_driver.py CACHE BUNDLE TEMPLATES TOOLS."""

from __future__ import annotations

import sys
from pathlib import Path

from prism_gen.build import build
from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec
from prism_gen.toolchain import find_toolchain

cache, bundle, templates, tools = map(Path, sys.argv[1:])
MODEL = ModelSpec(
    name="tiny",
    num_q_heads=8,
    num_kv_heads=2,
    head_dim=128,
    dtype="bf16",
    rope=RopeSpec(rotary_dim=128),
    selection=SelectionSpec(block_sizes=((128, 128), (128, 64))),
    layer_kinds=("full",),
)
build(
    [MODEL],
    archs=["sm90"],
    out=bundle,
    cache=cache,
    toolchain=find_toolchain(nvcc=tools / "nvcc", cache=cache),
    jobs=2,
    report=lambda event: None,
    root=templates,
)
