"""explain.py: what it prints about layers, bands and kernels, and that it fits a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from prism_gen.candidates import candidates
from prism_gen.errors import ConfigError
from prism_gen.explain import explain
from prism_gen.manifest import KernelEntry, Manifest, Provenance
from prism_gen.model import ModelSpec, SelectionSpec, Share
from prism_gen.model_config import load_model_config
from prism_gen.spec import KernelSpec
from prism_gen.specialize import specialize
from prism_gen.sub_blocks import sub_blocks

MODELS = Path(__file__).parents[1] / "models"


def model(name: str, **changes: Any) -> ModelSpec:
    """A published model with changed fields."""
    return msgspec.structs.replace(load_model_config(MODELS / f"{name}.json"), **changes)


def bundle_of(spec: ModelSpec, kernels: Sequence[KernelSpec]) -> Manifest:
    """A manifest that holds these kernels."""
    facts = {"digest": "0" * 64, "artifact": "1" * 64, "registers": 168, "smem_bytes": 1024, "stack_bytes": 0}
    entries = [
        KernelEntry(
            spec=kernel,
            key=kernel.key,
            name=kernel.name,
            arch=kernel.arch,
            file=f"lib/{kernel.name}.so",
            source=f"src/{kernel.name}.cu",
            log=f"log/{kernel.name}.log",
            spill_bytes=0,
            instructions={},
            **facts,
        )
        for kernel in kernels
    ]
    provenance = Provenance(created="2026-01-01T00:00:00+00:00", commit="")
    return Manifest(
        schema_version=1,
        generator="0",
        models=(spec,),
        kernels=tuple(entries),
        toolchain={},
        flags=(),
        provenance=provenance,
    )


def explained(
    spec: ModelSpec, *, layer: int | None = None, bundle: Manifest | None = None, encoding: str = "utf-8"
) -> str:
    """What explain prints, 80 columns wide."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as file:
        console = Console(file=file, width=80, legacy_windows=False)
        explain(spec, specialize(spec, ["sm90"]), layer=layer, bundle=bundle, console=console)
        file.flush()
        return raw.getvalue().decode(encoding)


def row(text: str, pair: str) -> list[str]:
    """The words of the spectrum's row of a pair."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [pair])


def test_bands_and_attenuation_of_qwen3() -> None:
    text = explained(model("qwen3-8b"))
    assert row(text, "0")[-1] == "high"
    assert row(text, "16")[-1] == row(text, "31")[-1] == "both"
    assert row(text, "33-63")[-1] == "low"
    assert row(text, "33-63")[-3] == "1.000"
    assert "pairs 0-13 turn at least once in 128 tokens" in text
    assert "high band: 64 dims, 0-31, 64-95; from the paper's 1/2 of head_dim" in text
    assert "low band: 96 dims, 16-63, 80-127; from the paper's 3/4 of head_dim" in text


def test_a_rectangular_block_shows_both_sizes_and_which_governs() -> None:
    text = explained(model("smollm2-135m-instruct", selection=SelectionSpec(block_sizes=((128, 64),))))
    assert "left after 64" in text
    assert "left after 128" in text
    assert "The larger block governs" in text


def test_every_row_of_the_spectrum_is_one_line_of_80_columns() -> None:
    spec = model("qwen3-8b", selection=SelectionSpec(block_sizes=((128, 64), (64, 64))))
    lines = explained(spec).splitlines()
    start = next(i for i, line in enumerate(lines) if "left after 64" in line)
    table = lines[start + 2 : start + 32]
    assert all(line.split()[0] == str(i) for i, line in enumerate(table))
    assert max(map(len, lines)) <= 80


def test_explicit_and_spectral_bands_name_their_source() -> None:
    spec = model("qwen3-8b", selection=SelectionSpec(bands="spectrum", low_freq_dim=112))
    text = explained(spec)
    assert "from the spectrum: every weakened pair" in text
    assert "low band: 112 dims, 8-63, 72-127; from prism.low_freq_dim" in text


def test_bands_that_differ_by_block_size_have_a_column_each() -> None:
    selection = SelectionSpec(bands="spectrum", block_sizes=((128, 128), (64, 64)))
    text = explained(model("smollm2-135m-instruct", selection=selection))
    assert "Bands for blocks of 128x128" in text
    assert row(text, "16")[-2:] == ["both", "low"]


@pytest.mark.parametrize("share", ["head", "group"])
def test_sub_blocks_show_what_their_means_keep_and_which_sizes_follow(share: Share) -> None:
    selection = SelectionSpec(block_sizes=((64, 64),), estimator="auto", share=share, exclude_forced=True)
    text = explained(model("smollm2-135m-instruct", selection=selection))
    words = " ".join(text.split())
    fine = sub_blocks(selection, model("smollm2-135m-instruct").rope, 64, (64, 64))
    assert fine is not None
    assert f"means of {fine.q} q tokens attend to means of {fine.k} k tokens" in words
    rows = 64 // fine.q * (3 if share == "group" else 1)
    assert f"the max over the {rows} sub-rows" in words
    assert "sum to 0.94 of what the always kept blocks leave" in words
    assert [row(text, size)[1] for size in ("4", "8", "16")] == ["0.944", "0.884", "0.824"]
    assert "Spectrum" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_missing_kernels_are_named_with_the_command_that_builds_them() -> None:
    spec = model("llama-3.1-8b")
    kernels = specialize(spec, ["sm90"])
    text = explained(spec, bundle=bundle_of(spec, kernels[1:]))
    assert f"{kernels[0].name} missing" in " ".join(text.split())
    assert f"{kernels[1].name} yes" in " ".join(text.split())
    assert "1 missing. Build them: python -m prism_gen build" in text
    assert "All of them exist" in explained(spec, bundle=bundle_of(spec, kernels))


def test_a_kernel_with_a_measured_schedule_exists() -> None:
    spec = model("llama-3.1-8b")
    *others, attend = specialize(spec, ["sm90"])
    tuned = candidates(attend)[3]
    text = explained(spec, bundle=bundle_of(spec, [*others, tuned]))
    assert f"{attend.name} yes, tuned" in " ".join(text.split())
    assert "All of them exist" in text


def test_a_sliding_layer_needs_no_kernel() -> None:
    spec = model("qwen3-8b", layer_kinds=("full", "sliding", "full"))
    assert "Layers 0, 2 (2 of 3): full attention" in explained(spec)
    text = explained(spec, layer=1)
    assert "needs no kernel" in " ".join(text.split())
    assert "Kernels" not in text
    assert "Kernels: 3" in explained(spec, layer=2)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no layer 36"):
        explained(model("qwen3-8b"), layer=36)


def test_a_terminal_without_unicode_gets_plain_bars() -> None:
    text = explained(model("qwen3-8b"), encoding="ascii")
    assert "0.444 ### " in text
