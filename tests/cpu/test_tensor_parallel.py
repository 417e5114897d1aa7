"""Under transformers' own tensor parallelism each rank runs its heads: two gloo processes against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from tests.cpu.tiny_transformers import enable, tiny, token_ids

REPOSITORY = Path(__file__).parents[2]
THRESHOLD = 0.6
TIMEOUT_S = 240  # two processes that import torch and transformers, on a busy machine


@pytest.mark.slow
@torch.no_grad()
def test_two_ranks_give_what_one_process_gives(tmp_path):
    model = tiny(num_attention_heads=8, num_key_value_heads=4, head_dim=16)
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rank = [str(Path(__file__).with_name("tensor_parallel_rank.py")), str(tmp_path / "model"), str(tmp_path)]
    subprocess.run(
        [*command, *rank, str(THRESHOLD)],
        check=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    enable(model, THRESHOLD)
    ids = token_ids(2, 80)
    exact = model(ids).logits
    written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for number in (0, 1):
        found = torch.load(tmp_path / f"rank{number}.pt")
        assert found["shapes"] == [(4, 2, 4)] * 2  # q heads, kv heads and lists of this rank, in two passes
        assert found["runs"] == [2, 2]
        torch.testing.assert_close(found["logits"], exact, rtol=1e-4, atol=1e-4)
        assert torch.equal(found["written"], written)
