"""Under transformers' own tensor parallelism each rank runs its heads: two gloo processes against one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from prism_gen.errors import UnsupportedError
from prism_gen.integrations.shard import Shard
from prism_gen.runtime.thresholds import Thresholds
from tests.cpu.tiny_transformers import enable, tiny, token_ids

REPOSITORY = Path(__file__).parents[2]
THRESHOLDS = (0.2, 0.9, 0.5, 0.7, 0.3, 0.8, 0.4, 0.6)  # of each q head, so that a rank must find its own
TIMEOUT_S = 240  # two processes that import torch and transformers, on a busy machine


@pytest.mark.slow
@torch.no_grad()
def test_two_ranks_give_what_one_process_gives(tmp_path):
    model = tiny(num_attention_heads=8, num_key_value_heads=4, head_dim=16)
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rank = [str(Path(__file__).with_name("tensor_parallel_rank.py")), str(tmp_path / "model"), str(tmp_path)]
    subprocess.run(
        [*command, *rank, ",".join(map(str, THRESHOLDS))],
        check=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    enable(model, high_threshold=THRESHOLDS, low_threshold=THRESHOLDS)
    ids = token_ids(2, 80)
    exact = model(ids).logits
    written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for number in (0, 1):
        found = torch.load(tmp_path / f"rank{number}.pt")
        assert found["shapes"] == [(4, 2, 4)] * 2  # q heads, kv heads and lists of this rank, in two passes
        assert found["runs"] == [2, 2]
        torch.testing.assert_close(found["logits"], exact, rtol=1e-4, atol=1e-4)
        assert torch.equal(found["written"], written)


def test_a_rank_has_its_own_thresholds():
    values = torch.arange(12.0).view(6, 2)
    assert torch.equal(Shard(1, 3).own(Thresholds(values, uniform=False)).values, values[2:4])
    same = Thresholds(values, uniform=True)
    assert Shard(1, 4).own(same) is same
    with pytest.raises(UnsupportedError, match="6 lists of blocks under tensor parallelism over 4 processes"):
        Shard(0, 4).own(Thresholds(values, uniform=False))
