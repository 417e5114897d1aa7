"""What a packed bundle is called: its distribution, its module, its entry point.

Owns these names, which `pack` writes and the runtime looks up. Must not read or write files.
"""

from __future__ import annotations

import re

from prism_gen.errors import ConfigError

ENTRY_POINTS = "prism_gen.bundles"  # the group: name of the bundle -> module that holds it
BUNDLE_FOLDER = "bundle"  # inside the module
_NAME = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")


def bundle_name(model: str) -> str:
    """A model's name as a package may be called: meta-llama/Llama-3.1-8B -> llama-3.1-8b."""
    return re.sub(r"[^a-z0-9.]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-.")


def check_name(name: str) -> str:
    """The name itself. Raises: ConfigError unless it is lower-case words joined by - or a dot."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}", exists="lower-case letters, digits, - and .", fix="such as llama-3.1-8b")
    return name


def distribution(name: str) -> str:
    """What pip installs: prism-gen-bundle-llama-3.1-8b."""
    return f"prism-gen-bundle-{name}"


def module(name: str) -> str:
    """What it installs: prism_gen_bundle_llama_3_1_8b."""
    return re.sub(r"[-.]", "_", distribution(name))
