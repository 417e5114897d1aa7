#!/usr/bin/env bash
# Everything that must hold: lint, types, and the tests, which compile each kernel family for real. Needs Python 3.10+ and
# g++, no CUDA and no GPU; GPU tests skip where there is none. Arguments go to pytest: tools/test.sh tests/unit -k rope
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh runtime,toolchain,transformers,dev

show ruff check .
show ruff format --check .
show mypy & types=$!  # one core for most of a minute: beside the tests
# In the order of the folders: tests/compile, which takes longest, starts first, and the other worker tests meanwhile.
status=0
show python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
wait "$types" || status=$?
exit "$status"
