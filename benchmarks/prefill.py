"""End-to-end prefill of a model-shaped transformers model on one GPU: time to first token, dense and sparse.

Owns the plan, the density that random weights are made to select, and the report. Weights are random, so the blocks
that are selected mean nothing and their number is set: a share of the visible ones. Usage:

  python -m benchmarks.prefill --model-config tests/models/qwen3-8b.json --bundle generated/e2e --out prefill.jsonl
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

import prism_gen
from benchmarks.prefill_model import QKV, Clock, compile_rest, dense_kernels, first_token, heads_second, random_model
from prism_gen.bench.timing import MIN_RUNS, measure
from prism_gen.model import EstimatorName, SelectionSpec
from prism_gen.runtime import PrismAttention, load_bundle
from prism_gen.runtime.environment import environment
from prism_gen.runtime.results import Stats
from prism_gen.runtime.thresholds import Thresholds
from prism_gen.sub_blocks import SubBlocks
from prism_gen.verify.report import emit

CHOOSING_TOKENS = 32768  # where the dense kernels are compared: long enough for their order at any length
LEAST = 1e-9  # a share so small that the band of low frequencies adds one block a row
SEARCH_STEPS = 14  # halvings of [0, 1]: finer than one block in 1024
CHECK_TOKENS = 8192  # of the comparison with every block selected
STAGE_CALLS = 4  # back to back, so that no launch gap is in a stage's time
MAX_ERROR = 0.05  # of logits, all blocks selected against dense: bf16 noise through all layers (.014 in 4 layers)
HEADING = " tokens      variant   TTFT ms   attn ms    rest  x e2e x attn ceiling"


class Figure(NamedTuple):
    """One variant at one length: medians over passes, milliseconds; peak memory in GiB."""

    ttft_ms: float
    attention_ms: float
    layer_ms: float
    passes: int
    peak_gib: float


def timed_passes(model: Any, ids: Tensor, clock: Clock, seconds: float) -> Figure:
    """Time to first token and its attention part: passes until `seconds` are spent, at most MIN_RUNS.

    The caller has run a pass of this length, so memory is at hand.
    """
    device = ids.device
    torch.cuda.reset_peak_memory_stats(device)
    walls: list[float] = []
    layers: list[list[float]] = []
    while len(walls) < MIN_RUNS and sum(walls) < seconds * 1e3:
        start = time.perf_counter()
        first_token(model, ids)
        layers.append(clock.take_ms())
        walls.append((time.perf_counter() - start) * 1e3)
    return Figure(
        statistics.median(walls),
        statistics.median(map(sum, layers)),
        statistics.median(ms for passes in layers for ms in passes),
        len(walls),
        torch.cuda.max_memory_allocated(device) / 2**30,
    )


def capture_layer(model: Any, ids: Tensor, clock: Clock, layer: int) -> QKV:
    """q, k, v of one layer, [batch, tokens, heads, head_dim], from a pass that also warms the length up."""
    kept: list[QKV] = []

    def keep(module: Any, qkv: QKV) -> None:
        if module.layer_idx == layer:
            kept.append(heads_second(qkv))

    clock.seen = keep
    first_token(model, ids)
    clock.seen = None
    clock.take_ms()
    return kept[0]


def shares(attention: PrismAttention, share: float) -> Thresholds:
    """Of the visible blocks, the share that one distribution keeps; the paper's second adds as little as it can."""
    if isinstance(attention.scoring, SubBlocks):
        return attention.make_thresholds(threshold=share)
    return attention.make_thresholds(share, LEAST)


def share_for(attention: PrismAttention, qkv: QKV, density: float) -> tuple[Thresholds, float]:
    """Thresholds with which a layer selects `density` of the visible blocks, forced ones included, and what it does."""
    pooled = attention.pool(*qkv[:2])
    low, high = LEAST, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        thresholds = shares(attention, middle)
        found = float(Stats.of(attention.select(pooled, thresholds=thresholds)).density.mean())
        low, high = (middle, high) if found < density else (low, middle)
    return thresholds, found


def stage_ms(attention: PrismAttention, qkv: QKV) -> dict[str, float]:
    """Each stage alone on the tensors of one layer, milliseconds."""
    q, k, v = qkv
    pooled = attention.pool(q, k)
    selection = attention.select(pooled)
    stages: dict[str, Callable[[], object]] = {
        "pool": lambda: attention.pool(q, k),
        "select": lambda: attention.select(pooled),
        "attend": lambda: attention.attend(q, k, v, selection),
    }
    return {name: round(measure(run, q.device, warm=1, calls=STAGE_CALLS).median_ms, 4) for name, run in stages.items()}


def choose_dense(qkv: QKV) -> tuple[str, dict[str, float]]:
    """The fastest dense kernel on these tensors, and milliseconds of each; all must agree with the first."""
    heads_first = heads_second(qkv)
    times: dict[str, float] = {}
    exact: Tensor | None = None
    for name, kernel in dense_kernels().items():
        out = kernel(heads_first, None).float()
        exact = out if exact is None else exact
        error = float((out - exact).norm() / exact.norm())
        if error > MAX_ERROR:
            raise SystemExit(f"{name} differs from the first dense kernel by {error:.3f}")
        times[name] = round(measure(lambda run=kernel: run(heads_first, None), out.device).median_ms, 3)  # type: ignore[misc]
    return min(times, key=times.__getitem__), times


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
        self.enabled = prism_gen.enable(model, load_bundle(bundle), selection=selection)
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
        self.check(ids[:, :CHECK_TOKENS], name)
        print(HEADING)
        for tokens in lengths:
            self.length(ids[:, :tokens], name, dense, densities)

    def check(self, ids: Tensor, dense: str) -> None:
        """With every block selected the logits are dense attention's. Raises: SystemExit where they are not."""
        self.model.set_attn_implementation(dense)
        exact = first_token(self.model, ids).float()
        self.select(shares(self.attentions[0], 1.0))
        self.model.set_attn_implementation(self.prism)
        error = float((first_token(self.model, ids).float() - exact).norm() / exact.norm())
        self.report(what="all_selected_against_dense", tokens=ids.shape[1], relative_error=round(error, 5))
        if error > MAX_ERROR:
            raise SystemExit(f"with all blocks selected the logits differ from dense attention's by {error:.3f}")

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
