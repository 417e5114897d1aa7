"""The layers of docs/architecture.md, enforced by reading every import in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "prism_gen"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "templates" not in path.parts)

# Lowest first; a module imports only from its own layer or lower ones.
LAYERS = (
    {"", "errors", "dtypes", "arch", "files", "provenance", "package_names"},  # "" is prism_gen itself: its version
    {"rope", "model", "spec", "sub_blocks", "profile"},
    {"families"},
    {"schedules", "candidates"},
    {"hf_config", "hf_layers", "model_config", "specialize", "crossover", "tuning_table", "manifest"},
    {"render", "toolchain", "fingerprint", "gates", "jobs", "compile"},
    {"plan", "build", "pack"},
    {"doctor", "console", "explain_selection", "explain", "cli"},
    {"__main__"},
)
# Beside the layers from the sixth on: what needs torch. Each uses those before it, and as many layers as stand here.
TORCH_LAYERS = {"runtime": 5, "calibrate": 5, "integrations": 5, "verify": 5, "bench": 5, "tune": 7}
# External module -> the only parts of the package that may import it.
RESERVED = {
    "torch": set(TORCH_LAYERS),
    "transformers": {"integrations"},
    "tvm_ffi": {"runtime", "bench"},
    "safetensors": {"runtime"},
    "matplotlib": {"runtime", "bench"},
    "jinja2": {"render"},
    "ray": {"tune"},
    "subprocess": {"toolchain", "compile", "provenance"},
}


def _part(path: Path) -> str:
    """The name a module has in LAYERS: its file, or the folder of a subpackage."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem.replace("__init__", "")


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a module imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _internal(path: Path) -> Iterator[str]:
    """Parts of the package that a module imports; "" where it takes a name of prism_gen itself."""
    known = {_part(module) for module in MODULES}
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top == "prism_gen":
            part = rest.split(".")[0]
            yield part if part in known else ""


def _level(part: str) -> int:
    return next(level for level, layer in enumerate(LAYERS) if part in layer)


def test_every_module_has_a_layer():
    assert {_part(path) for path in MODULES} - set().union(*LAYERS) == set(TORCH_LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_lower_layers(path):
    part = _part(path)
    for imported in _internal(path):
        if part in TORCH_LAYERS:
            beside = list(TORCH_LAYERS)[: list(TORCH_LAYERS).index(part) + 1]
            assert imported in set(beside).union(*LAYERS[: TORCH_LAYERS[part]]), f"{part} imports {imported}"
        elif imported == "integrations":
            assert part in ("", "cli")  # prism_gen names it lazily
        elif imported in TORCH_LAYERS:
            assert part == "cli"
        else:
            assert _level(imported) <= _level(part), f"{part} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_leaves_reserved_imports_alone(path):
    for name in _imports(path):
        allowed = RESERVED.get(name.split(".")[0])
        assert allowed is None or _part(path) in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_cli_toolchain_and_provenance_read_the_environment(path):
    reads = any(
        isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    assert not reads or _part(path) in ("cli", "toolchain", "provenance")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_states_its_purpose_and_stays_small(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 250
