# Sourced by demo.sh and test.sh from the repository's root, with the extras to install: . tools/venv.sh runtime,toolchain
# Owns the environment: .venv, or the folder that $PRISM_VENV names, holding what pyproject.toml asks for and nothing that
# was on the machine. Must not build or run anything of the project.

python="${PYTHON:-python3}"
venv="${PRISM_VENV:-.venv}"

# Prints a command, then runs it: what these scripts do can be typed by hand.
show() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "error: $python is not Python 3.10 or newer; fix: PYTHON=/path/to/python3.12 $0" >&2
  exit 1
fi
if [ ! -x "$venv/bin/pip" ] && ! "$python" -m venv "$venv"; then
  echo "error: $python cannot make a virtual environment; fix: apt-get install python3-venv" >&2
  exit 1
fi
. "$venv/bin/activate"
# pip would compile all 12,000 modules first; Python compiles those that are used, once.
unset PYTHONDONTWRITEBYTECODE
# torch is named first and pinned here: the extra takes any version from 2.5 on, this is the one that the tests know.
show python -m pip install -qq --no-compile torch==2.13.0 --editable ".[$1]"
