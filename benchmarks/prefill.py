"""End-to-end prefill of a model-shaped transformers model on one GPU: time to first token, dense and sparse.

Owns the plan and the report. Weights are random, so the blocks that are selected mean nothing and their number is set:
a share of the visible ones. Usage:

  python -m benchmarks.prefill --model-config tests/models/qwen3-8b.json --bundle generated/e2e --out prefill.jsonl
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

import prism_gen
from benchmarks.prefill_figures import (
    Figure,
    capture_layer,
    choose_dense,
    share_for,
    shares,
    stage_ms,
    timed_passes,
)
from benchmarks.prefill_model import Clock, compile_rest, dense_kernels, first_token, random_model
from prism_gen.model import EstimatorName, SelectionSpec
from prism_gen.runtime import load_bundle
from prism_gen.runtime.environment import environment
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.verify.report import emit

CHOOSING_TOKENS = 32768  # where the dense kernels are compared: long enough for their order at any length
CHECK_TOKENS = 8192  # of the comparison with every block selected
HEADING = " tokens      variant   TTFT ms   attn ms    rest  x e2e x attn ceiling"


class Bench:
    """One model on one device, and where its figures go."""

    def __init__(
        self,
        model: Any,
        bundle: Path,
        out: TextIO,
        facts: dict[str, Any],
        *,
        estimator: EstimatorName,
        seconds: float,
    ) -> None:
        """seconds: of repeated passes behind a figure."""
        self.model, self.out = model, out
        self.facts = {"section": "prefill", **facts}
        self.seconds = seconds
        self.clock = Clock()
        selection = SelectionSpec(density=1.0, estimator=estimator)
        self.enabled = prism_gen.enable(model, load_bundle(bundle), selection=selection, min_keys=0)
        self.attentions = [layer.attention for layer in self.enabled.layers if layer.attention is not None]
        self.prism = self.clock.register_prism()

    def report(self, **record: Any) -> None:
        """One line of JSON to the file."""
        emit({**self.facts, **record}, out=self.out, echo=False)

    def select(self, thresholds: Thresholds) -> None:
        """Makes every layer select by these."""
        for attention in self.attentions:
            attention.thresholds = thresholds

    def run(self, lengths: list[int], densities: list[float]) -> None:
        """Every length, dense first; prints a table."""
        vocabulary, device = self.model.config.vocab_size, self.model.device
        ids = torch.randint(0, vocabulary, (1, max(*lengths, CHOOSING_TOKENS)), device=device)
        self.model.set_attn_implementation(self.clock.register_dense("cudnn", dense_kernels()["cudnn"]))
        dense, times = choose_dense(capture_layer(self.model, ids[:, :CHOOSING_TOKENS], self.clock, 0))
        self.report(what="dense_choice", tokens=CHOOSING_TOKENS, chosen=dense, ms=times)
        name = self.clock.register_dense(dense, dense_kernels()[dense])
        self.check(ids[:, :CHECK_TOKENS], dense)
        print(HEADING)
        for tokens in lengths:
            self.length(ids[:, :tokens], name, dense, densities)

    def check(self, ids: Tensor, dense: str) -> None:
        """With every block selected the logits are as near to dense attention's as another dense kernel's are.

        Raises: SystemExit where they are not within twice that.
        """
        kernels = dense_kernels()
        other = next(name for name in kernels if name != dense)
        logits = {}
        self.select(shares(self.attentions[0], 1.0))
        for name in (*(self.clock.register_dense(name, kernels[name]) for name in (dense, other)), self.prism):
            self.model.set_attn_implementation(name)
            logits[name] = first_token(self.model, ids).float()
        exact, near, ours = logits.values()
        floor, error = (float((x - exact).norm() / exact.norm()) for x in (near, ours))
        figures = {"relative_error": round(error, 5), "of_another_dense_kernel": round(floor, 5), "other": other}
        self.report(what="all_selected_against_dense", tokens=ids.shape[1], **figures)
        if error > 2 * floor:
            raise SystemExit(f"with all blocks selected logits differ from dense attention's by {error:.4f}: {figures}")

    def length(self, ids: Tensor, dense: str, label: str, densities: list[float]) -> None:
        """Dense and each density at one length."""
        tokens = ids.shape[1]
        self.model.set_attn_implementation(dense)
        qkv = capture_layer(self.model, ids, self.clock, len(self.attentions) // 2)
        exact = timed_passes(self.model, ids, self.clock, self.seconds)
        self.line(tokens, label, exact, exact)
        self.model.set_attn_implementation(self.prism)
        before = self.enabled.sparse_runs()
        for density in densities:
            thresholds, found = share_for(self.attentions[0], qkv, density)
            self.select(thresholds)
            sparse = timed_passes(self.model, ids, self.clock, self.seconds)
            self.line(
                tokens, f"sparse {found:.3f}", sparse, exact, density=found, stages=stage_ms(self.attentions[0], qkv)
            )
        if any(after == runs for after, runs in zip(self.enabled.sparse_runs(), before, strict=True)):
            raise SystemExit(f"a layer did not run sparse: {self.enabled.calls()}")

    def line(self, tokens: int, variant: str, figure: Figure, dense: Figure, **more: Any) -> None:
        """Prints one line and writes its record; ceiling: the speed-up if attention cost nothing (Amdahl)."""
        ratios = {
            "speedup": dense.ttft_ms / figure.ttft_ms,
            "attention_speedup": dense.attention_ms / figure.attention_ms,
            "ceiling": dense.ttft_ms / (dense.ttft_ms - dense.attention_ms),
        }
        rest = figure.ttft_ms - figure.attention_ms
        print(
            f"{tokens:7} {variant:>12} {figure.ttft_ms:9.1f} {figure.attention_ms:9.1f} {rest:7.0f}"
            f" {ratios['speedup']:6.2f} {ratios['attention_speedup']:6.2f} {ratios['ceiling']:6.2f}"
            f"  {figure.peak_gib:.0f} GiB, {figure.passes} passes {more.get('stages', '')}",
            flush=True,
        )
        rounded = {name: round(value, 3) for name, value in {**figure._asdict(), **ratios}.items()}
        self.report(what="prefill", tokens=tokens, variant=variant, **rounded, **more)


def main() -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-config", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True, help="kernels of the model at blocks of 128x128")
    parser.add_argument("--lengths", default="8192,32768,131072", help="tokens, comma-separated")
    parser.add_argument("--densities", default="0.10,0.23")
    parser.add_argument("--estimator", default="paper", choices=("paper", "subblock"))
    parser.add_argument("--seconds", type=float, default=8.0, help="of repeated passes behind a figure")
    parser.add_argument("--layers", type=int, help="fewer layers, to try things out")
    parser.add_argument("--compile-rest", action="store_true", help="torch.compile the norms and MLPs")
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--commit", help="for a copy of the tree without .git")
    arguments = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    model = random_model(arguments.model_config, device, num_layers=arguments.layers)
    if arguments.compile_rest:
        compile_rest(model)
    rest = "compiled" if arguments.compile_rest else "eager"
    with Path(arguments.out or os.devnull).open("a", encoding="utf-8") as out:
        emit({"section": "environment", **environment(device, commit=arguments.commit)}, out=out, echo=False)
        facts = {"model": arguments.model_config.stem, "layers": model.config.num_hidden_layers, "rest": rest}
        facts["estimator"] = arguments.estimator
        chosen = {"estimator": arguments.estimator, "seconds": arguments.seconds}
        bench = Bench(model, arguments.bundle, out, facts, **chosen)
        print(bench.enabled)
        bench.run([int(x) for x in arguments.lengths.split(",")], [float(x) for x in arguments.densities.split(",")])


if __name__ == "__main__":
    main()
