"""Rewrites tests/golden/*.cu from the templates; run it after a change to a template or schedule, and read the diff.

Owns which kernels have a golden source. Must not compile.
"""

from __future__ import annotations

from pathlib import Path

from prism_gen.model import ModelSpec, RopeSpec, SelectionSpec
from prism_gen.render import render, template_root
from prism_gen.specialize import specialize

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
# Half-split RoPE with unequal blocks, and interleaved partial RoPE: the two ways in which bands become chunks. And the
# estimator that has no bands.
MODELS = {
    "half-split-d128": ModelSpec(
        name="half-split",
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        dtype="bf16",
        rope=RopeSpec(rotary_dim=128),
        selection=SelectionSpec(block_sizes=((128, 128),), fused_rope=True),
        layer_kinds=("full",),
    ),
    "interleaved-d64": ModelSpec(
        name="interleaved",
        num_q_heads=9,
        num_kv_heads=3,
        head_dim=64,
        dtype="fp16",
        rope=RopeSpec(rotary_dim=32, interleaved=True),
        selection=SelectionSpec(block_sizes=((64, 64),), fused_rope=True),
        layer_kinds=("full",),
    ),
    "sub-blocks-d128": ModelSpec(
        name="sub-blocks",
        num_q_heads=32,
        num_kv_heads=8,
        head_dim=128,
        dtype="bf16",
        rope=RopeSpec(rotary_dim=128),
        selection=SelectionSpec(block_sizes=((128, 64),), estimator="subblock", sub_block_q=4),
        layer_kinds=("full",),
    ),
}


def golden_sources() -> dict[str, str]:
    """File name -> rendered source, of every kernel that has a golden."""
    root = template_root()
    return {
        f"{label}-{spec.family}.cu": render(spec, root)
        for label, model in MODELS.items()
        for spec in specialize(model, ["sm90"])
    }


def main() -> None:
    """Replace every golden file."""
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.cu"):
        old.unlink()
    for name, source in golden_sources().items():
        (GOLDEN / name).write_text(source, encoding="utf-8")
        print(GOLDEN / name)


if __name__ == "__main__":
    main()
