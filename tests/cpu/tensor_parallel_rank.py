"""One rank of test_tensor_parallel.py, started by torch.distributed.run: MODEL_FOLDER OUT_FOLDER THRESHOLDS.

THRESHOLDS: one a q head, separated by commas. Owns what a rank does: its share of the heads runs sparse, and it writes
what it saw.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.cpu.tiny_transformers import enable, token_ids


@torch.no_grad()
def main(folder: str, out: Path, thresholds: list[float]) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the argument moved into a DistributedConfig on the way to transformers 5.24
        model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    enabled = enable(model, high_threshold=thresholds, low_threshold=thresholds)
    attention = enabled.layers[0].attention
    shapes = []
    real = attention.backend.attend

    class Watched(type(attention.backend)):
        def attend(self, q, k, v, selection, **options):
            shapes.append((q.shape[2], k.shape[2], selection.block_counts.shape[1]))
            return real(q, k, v, selection, **options)

    attention.backend = Watched(attention.backend.scoring, attention.backend.interleaved, attention.backend.rules)
    ids = token_ids(2, 80)
    logits = model(ids).logits
    written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    torch.save(
        {"logits": logits, "written": written, "shapes": shapes, "runs": enabled.sparse_runs()},
        out / f"rank{torch.distributed.get_rank()}.pt",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [float(word) for word in sys.argv[3].split(",")])
