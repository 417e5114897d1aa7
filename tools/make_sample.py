"""Cuts examples/data/ from a longer q, k, v file. Owns the sample's provenance; must not touch the package.

Causal attention never looks ahead, so the first tokens of a run are themselves a valid run.
Usage: python tools/make_sample.py SOURCE.safetensors SOURCE_provenance.json OUT_DIR
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import safetensors.torch

TOKENS = (
    4096  # 2.6 MB in bf16 for 3 q heads and 1 kv head of 64 dims: half of the source, under the 3 MB meant for the repo
)
LAYER = 14
NAME = f"smollm2_pycode_L{LAYER}_4k"


def main(source: Path, provenance: Path, out_dir: Path) -> None:
    """Writes NAME.safetensors and NAME.json into out_dir."""
    tensors = {name: x[:, :TOKENS].contiguous() for name, x in safetensors.torch.load_file(source).items()}
    target = out_dir / f"{NAME}.safetensors"
    origin = json.loads(provenance.read_text())
    safetensors.torch.save_file(tensors, target, metadata={"layer": str(LAYER), "model": origin["model"]})
    target.chmod(0o644)
    record = {
        "model": origin["model"],
        "model_source": {"package": origin["package"], "gguf_sha256": origin["gguf_sha256"]},
        "model_license": origin["model_license"],
        "text": {**origin["text"], "tokens": TOKENS},
        "rope": {**origin["rope"], "positions": f"0..{TOKENS - 1}"},
        "heads": origin["heads"],
        "layer": LAYER,
        "layout": origin["layout"],
        "dtype": "bf16",
        "shapes": {name: list(x.shape) for name, x in tensors.items()},
        "softmax_scale": origin["softmax_scale"],
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "cut_from": {"file": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
        "made_by": "tools/make_sample.py",
    }
    (out_dir / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
