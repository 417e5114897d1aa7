#!/usr/bin/env bash
# Compiles attend.cpp: build.sh [OUTPUT]. Needs g++, and what `pip install 'prism-gen[toolchain]'` brings: the headers
# of tvm-ffi and the CUDA runtime, which is linked statically. nvcc itself is not used.
set -euo pipefail
out="$(realpath -m "${1:-attend}")"
cd "$(dirname "$0")"

mapfile -t paths < <(python3 - <<'PYTHON'
import importlib.util
from pathlib import Path

from prism_gen.toolchain import find_toolchain

tools = find_toolchain(nvcc=None, cache=Path("../../generated/cache"))
print(tools.tvm_ffi_include)
print(Path(importlib.util.find_spec("tvm_ffi").origin).parent / "lib")
print(tools.cudart_dir)
for folder in (tools.cudart_dir.parent / "include", tools.nvcc.resolve().parent.parent / "include"):
    if (folder / "cuda_runtime.h").is_file():
        print(folder)
        break
PYTHON
)
set -x
g++ -std=c++17 -O2 -Wall attend.cpp -o "$out" -isystem "${paths[0]}" -isystem "${paths[3]}" \
  -L"${paths[1]}" -Wl,-rpath,"${paths[1]}" -ltvm_ffi -L"${paths[2]}" -lcudart_static -ldl -lrt -lpthread
