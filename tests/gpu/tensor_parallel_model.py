"""The settings and prompt that one process and two ranks of test_tensor_parallel.py run alike."""

from __future__ import annotations

from typing import Any

import torch

import prism_gen
from prism_gen.integrations.transformers import Enabled
from prism_gen.model import SelectionSpec

THRESHOLDS = (0.6, 0.95, 0.8, 0.7, 0.9, 0.65, 0.85, 0.75)  # of each q head, so that a rank must find its own
TOKENS = 1500


def enable(model: Any, bundle: str) -> Enabled:
    """Real kernels in blocks of 128x128, on every prompt."""
    selection = SelectionSpec(block_sizes=((128, 128),))
    thresholds = {"high_threshold": THRESHOLDS, "low_threshold": THRESHOLDS}
    enabled = prism_gen.enable(model, bundle, selection=selection, min_keys=0, keep_stats=True, **thresholds)
    model.set_attn_implementation("prism")
    return enabled


def token_ids(device: torch.device) -> torch.Tensor:
    """A batch of two."""
    return torch.randint(3, 512, (2, TOKENS), generator=torch.Generator().manual_seed(7)).to(device)
