"""One `build` in a process of its own, for tests that race or kill it: build_driver.py CACHE BUNDLE TEMPLATES TOOLS."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from tiny_model import TINY  # beside this script

from prism_gen.build import build
from prism_gen.model import SelectionSpec
from prism_gen.toolchain import find_toolchain

cache, bundle, templates, tools = map(Path, sys.argv[1:])
MODEL = msgspec.structs.replace(TINY, selection=SelectionSpec(block_sizes=((128, 128), (128, 64))))
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
