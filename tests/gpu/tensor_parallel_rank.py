"""One rank of test_tensor_parallel.py, started by torch.distributed.run: MODEL_FOLDER BUNDLE OUT_FOLDER.

Owns what a rank does: real kernels on its share of the heads, on its own GPU, with NCCL between; it writes what it saw.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.gpu.tensor_parallel_model import enable, token_ids


@torch.no_grad()
def main(folder: str, bundle: str, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the argument moved into a DistributedConfig on the way to transformers 5.24
        model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.bfloat16).eval()
    enabled = enable(model, bundle)
    ids = token_ids(model.device)
    logits = model(ids).logits
    written = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    seen = {
        "logits": logits.cpu(),
        "written": written.cpu(),
        "runs": enabled.sparse_runs(),
        "densities": enabled.densities(),
        "lists": [layer.stats[0].counts.shape[1] for layer in enabled.layers],
        "device": str(model.device),
    }
    torch.save(seen, out / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
