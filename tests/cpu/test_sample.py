"""The committed sample of real q, k, v: figures that hold the method as a whole in place.

The densities at 8192 tokens were checked by hand against the official code's (.1479 for this layer); the sample is the
first 4096 tokens of the same tensors. Computed by the reference in fp32, and again in fp64: the same set to the block.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prism_gen.model import ModelSpec
from prism_gen.runtime import PrismAttention, Selection, reference
from prism_gen.runtime.results import mass_kept

# block size -> density and mean mass kept per head, thresholds .95
FIGURES = {
    (64, 64): ((0.0707, 0.3971, 0.1490), (0.9597, 0.9609, 0.9725)),
    (128, 64): ((0.0909, 0.4063, 0.1581), (0.9675, 0.9577, 0.9681)),
    (128, 128): ((0.1231, 0.4508, 0.2235), (0.9713, 0.9637, 0.9755)),
}


def layer(sample: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (sample[name].transpose(0, 1)[None] for name in "qkv")
    return q, k, v


def test_provenance_describes_the_file(sample: dict[str, Tensor], sample_path: Path) -> None:
    record = json.loads(sample_path.with_suffix(".json").read_text())
    assert record["sha256"] == hashlib.sha256(sample_path.read_bytes()).hexdigest()
    assert record["shapes"] == {name: list(x.shape) for name, x in sample.items()}
    assert sample_path.stat().st_size <= 3_000_000


@pytest.mark.parametrize("block_size", FIGURES, ids=str)
def test_density_and_mass(sample: dict[str, Tensor], model: ModelSpec, block_size: tuple[int, int]) -> None:
    q, k, v = layer(sample)
    attention = PrismAttention(None, model, 14, backend="reference", block_size=block_size)
    sparse = attention(q, k, v, return_lse=True, return_stats=True)
    everything = Selection.all_visible(attention.grid(q, k), 1, 3, q.device)
    _, dense_lse = attention.attend(q, k, v, everything, return_lse=True)
    density, mass = FIGURES[block_size]
    assert sparse.stats.density[0].tolist() == pytest.approx(density, abs=5e-4)
    assert mass_kept(sparse.lse, dense_lse).mean((0, 2)).tolist() == pytest.approx(mass, abs=5e-4)


def test_block_mass_sums_to_the_mass_kept(sample: dict[str, Tensor], model: ModelSpec) -> None:
    q, k, v = (x[:, :1000] for x in layer(sample))
    attention = PrismAttention(None, model, 14, backend="reference")
    grid = attention.grid(q, k)
    _, dense_lse = attention.attend(q, k, v, Selection.all_visible(grid, 1, 3, q.device), return_lse=True)
    mass = reference.block_mass(q, k, dense_lse, grid, softmax_scale=attention.softmax_scale)
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 3, grid.num_q_blocks))
    selection = attention.select(attention.pool(q, k))
    _, lse = attention.attend(q, k, v, selection, return_lse=True)
    kept = (mass * selection.block_mask()).sum(-1)
    rows = torch.tensor([64.0] * 15 + [40.0])
    torch.testing.assert_close((kept * rows).sum(-1) / 1000, mass_kept(lse, dense_lse).mean(-1))
