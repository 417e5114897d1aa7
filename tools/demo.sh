#!/usr/bin/env bash
# From a fresh checkout to one layer of a real model on real data: environment, bundle, run, picture. Needs Python 3.10+
# and g++, no CUDA and no GPU; where torch sees a GPU the kernels run on it, elsewhere the plain-torch reference does.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh runtime,toolchain

show python -m prism_gen build --model-config tests/models/smollm2-135m-instruct.json --block-size 64x64 --out generated/smollm2
show python -m prism_gen inspect generated/smollm2
show python -m prism_gen run --bundle generated/smollm2 --qkv examples/data/smollm2_pycode_L14_4k.safetensors \
  --plot generated/smollm2-mask.png
