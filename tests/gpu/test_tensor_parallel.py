"""Two ranks with NCCL under transformers' own tensor parallelism, real kernels on each GPU, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.4")

from prism_gen.runtime import Bundle  # noqa: E402
from tests.gpu.tensor_parallel_model import enable, token_ids  # noqa: E402
from tests.gpu.tiny_llama import make_model  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 180  # two processes that import torch and transformers, and NCCL's first connection


@torch.no_grad()
def test_two_ranks_give_what_one_process_gives(bundle: Bundle, tmp_path: Path) -> None:
    model = make_model("cpu")
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rank = [str(Path(__file__).with_name("tensor_parallel_rank.py")), str(tmp_path / "model")]
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [*command, *rank, str(bundle.path.resolve()), str(tmp_path)],
        check=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "4"},
    )
    model.cuda()
    enabled = enable(model, str(bundle.path))
    ids = token_ids(model.device)
    exact = model(ids).logits.cpu()
    densities = enabled.densities()
    model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    ranks = [torch.load(tmp_path / f"rank{number}.pt") for number in (0, 1)]
    assert [found["device"] for found in ranks] == ["cuda:0", "cuda:1"]
    for found in ranks:
        assert found["lists"] == [4, 4]  # half of the q heads
        assert found["runs"] == [2, 2] == enabled.sparse_runs()
        assert found["written"].shape == (2, ids.shape[1] + 4)
        # Sums over the ranks round in another order than one product does: bf16 through two layers.
        assert float((found["logits"].float() - exact.float()).norm() / exact.float().norm()) < 0.02
    assert torch.equal(ranks[0]["written"], ranks[1]["written"])
    assert torch.equal(ranks[0]["logits"], ranks[1]["logits"])
    for layer, density in enumerate(densities):
        assert sum(found["densities"][layer] for found in ranks) / 2 == pytest.approx(density, abs=0.01)
    assert ranks[0]["densities"][0] != ranks[1]["densities"][0]
