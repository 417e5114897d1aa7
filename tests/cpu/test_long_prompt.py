"""examples/long_prompt.py on a tiny model: the answers of a needle prompt, and the lines that it writes."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from examples.long_prompt import Prompt, Trial, answer, answer_spans
from tests.cpu.tiny_transformers import enable, tiny, token_ids

ANSWERS = [slice(60, 63), slice(70, 73), slice(77, 80)]


@pytest.fixture
def prompt():
    """80 tokens, the last of which are three questions and their answers."""
    mask = torch.zeros(80, dtype=torch.bool)
    for span in ANSWERS:
        mask[span] = True
    return Prompt(token_ids(1, 80), mask)


class Decoder:
    """A tokenizer's decoding alone."""

    def batch_decode(self, ids):
        return [" ".join(map(str, row.tolist())) for row in ids]


def test_answers_are_those_of_prompts_that_end_at_the_question(prompt):
    """Sub-blocks select the same of a prompt, whatever follows."""
    model = tiny()
    enabled = enable(model, 0.5, estimator="subblock")
    assert answer_spans(prompt) == ANSWERS
    written = answer(model, prompt)
    assert enabled.sparse_runs() == [1, 1]
    for span, row in zip(ANSWERS, written, strict=True):
        alone = model.generate(prompt.ids[:, : span.start], max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert torch.equal(row, alone[0, span.start :])


def test_a_prompt_that_asks_nothing_has_no_answers(prompt):
    assert answer_spans(Prompt(prompt.ids, None)) == []
    assert answer_spans(Prompt(prompt.ids, torch.zeros(80, dtype=torch.bool))) == []


def test_each_attention_is_a_line_of_the_file(prompt, tmp_path, capsys):
    model = tiny()
    trial = Trial(model, Decoder(), prompt, {"tokens": 80}, tmp_path / "out.jsonl")
    trial.run("dense", 4, None)
    trial.run("prism", 4, enable(model, 1.0, keep_stats=True))
    dense, prism = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert prism["as_dense"] == {"answers": 3, "of": 3, "digits": 1.0}
    assert prism["perplexity"] == pytest.approx(dense["perplexity"], rel=1e-4)
    assert (prism["density"], prism["tokens"], len(prism["answers"])) == (1.0, 80, 3)
    assert "3 of 3 answers are those of dense attention" in capsys.readouterr().out
