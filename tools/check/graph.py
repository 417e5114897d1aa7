"""The whole pipeline as a CUDA graph and on side streams, and repeatability under load: the section `graph`.

Owns what "the same bits wherever it runs" means. Must not judge numerics (numerics.py and selection.py do).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prism_gen.bench.timing import captured
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.rules import SelectRules
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.pooling import find_pool
from prism_gen.verify.report import Findings, Group, Report

SEQLEN_TOKENS = 3000  # 24 ragged blocks of 128: more tiles than one wave of a small head count, still milliseconds
QUICK_SEQLEN_TOKENS = 300
NUM_Q_HEADS, NUM_KV_HEADS = 8, 2
REPEATS = 20
SLEEP_CLOCKS = 20_000_000  # about 10 ms: long enough that a launch on another stream would read the zeros
THRESHOLD = 0.8


@dataclass(frozen=True)
class Pipeline:
    """pool, select, attend on fixed inputs into fixed outputs; run() launches all three. rules: what select is told."""

    pool: Kernel
    select: Kernel
    attend: Kernel
    grid: BlockGrid
    rules: SelectRules
    q: Tensor
    k: Tensor
    v: Tensor
    buffers: dict[str, Tensor]

    @property
    def outputs(self) -> list[Tensor]:
        """What must be bitwise the same on every run; the lists' unused places keep their poison."""
        return [self.buffers[name] for name in ("out", "lse", "block_indices", "block_counts")]

    def run_pool(self) -> None:
        """Launches pool on q and k."""
        b, sizes = self.buffers, (self.grid.block_size_q, self.grid.block_size_k)
        outputs = (b["q_mean"], b["q_energy"], b["k_mean"], b["k_energy"])
        self.pool.launch(self.q, self.k, *outputs, *sizes, 0, None, None)

    def run_select(self, probs: Tensor | None = None) -> None:
        """Launches select on what pool left. probs: where its masses go, if anywhere."""
        b, grid = self.buffers, self.grid
        scored = (b["q_mean"], b["k_mean"], b["q_energy"], b["k_energy"], b["thresholds"])
        lengths = (grid.block_size_q, grid.block_size_k, grid.seqlen_q, grid.seqlen_k)
        lists = (b["block_indices"], b["block_counts"])
        self.select.launch(*scored, *lengths, *self.rules.kernel_arguments(), *lists, None, probs, b.get("scratch"))

    def selection(self) -> None:
        """Launches pool and select."""
        self.run_pool()
        self.run_select()

    def run(self) -> None:
        """Launches the three kernels on the current stream: no allocation, no synchronisation."""
        b = self.buffers
        self.selection()
        scale = self.attend.problem.head_dim**-0.5
        lists = (b["block_indices"], b["block_counts"])
        self.attend.launch(self.q, self.k, self.v, b["out"], b["lse"], *lists, scale, b["tile_counter"])


def make_pipeline(
    kernels: list[Kernel], attend: Kernel, grid: BlockGrid, heads: tuple[int, int], device: torch.device
) -> Pipeline | None:
    """A pipeline that ends in `attend` on seeded normal inputs, batch 1, heads (q, kv).

    Where attend serves lists that a group shares, select makes such lists, and each KV head gets as many q heads as
    attend packs. None if the bundle lacks a pool or select for it.
    """
    problem = attend.problem
    rules = SelectRules(share="head" if problem.heads_per_list == 1 else "group")
    if rules.share == "group":
        heads = (heads[1] * problem.heads_per_list, heads[1])
    block_sizes = (problem.block_size_q, problem.block_size_k)
    for select in of_family(kernels, "select"):
        pool = find_pool(kernels, select, block_sizes, attend.dtype)
        if pool is None or select.problem.head_dim != problem.head_dim:
            continue
        draw = torch.Generator(device=device).manual_seed(7)
        sizes = ((grid.seqlen_q, heads[0]), (grid.seqlen_k, heads[1]), (grid.seqlen_k, heads[1]))
        q, k, v = (
            torch.randn(1, seqlen, count, problem.head_dim, generator=draw, device=device).to(attend.dtype)
            for seqlen, count in sizes
        )
        return Pipeline(pool, select, attend, grid, rules, q, k, v, _buffers(select, grid, q, heads, rules))
    return None


def _buffers(
    select: Kernel, grid: BlockGrid, q: Tensor, heads: tuple[int, int], rules: SelectRules
) -> dict[str, Tensor]:
    device, head_dim, num_lists = q.device, q.shape[-1], rules.num_lists(*heads)
    q_rows, rows = (1, heads[0], grid.num_q_blocks), (1, num_lists, grid.num_q_blocks)
    buffers = {
        "q_mean": torch.empty(*q_rows, head_dim, device=device),
        "q_energy": torch.empty(*q_rows, 3, device=device),
        "k_mean": torch.empty(1, heads[1], grid.num_k_blocks, head_dim, device=device),
        "k_energy": torch.empty(1, heads[1], grid.num_k_blocks, 3, device=device),
        "thresholds": torch.full((num_lists, 2), THRESHOLD, device=device),
        "block_indices": torch.full((*rows, grid.num_k_blocks), -1, dtype=torch.int32, device=device),
        "block_counts": torch.full(rows, -1, dtype=torch.int32, device=device),
        "out": torch.full_like(q, float("nan")),
        "lse": torch.full((1, heads[0], grid.seqlen_q), float("nan"), device=device),
        "tile_counter": torch.zeros(1, dtype=torch.int32, device=device),
    }
    sizes = (1, *heads, int(rules.share == "group"), grid.num_q_blocks, grid.num_k_blocks)
    floats = select.scratch_floats(*sizes) if select.scratch_floats else 0
    if floats:
        buffers["scratch"] = torch.empty(floats, device=device)
    return buffers


def _poison(pipeline: Pipeline) -> None:
    for output in pipeline.outputs:
        output.fill_(float("nan") if output.is_floating_point() else -1)


def _bits_differ(pipeline: Pipeline, expected: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(pipeline.outputs, expected, strict=True))


def check_repeats(pipeline: Pipeline) -> Findings:
    """REPEATS runs over poisoned outputs give the bits of the first."""
    found = Findings()
    pipeline.run()
    expected = [t.clone() for t in pipeline.outputs]
    found.require(not any(bool(t.isnan().any()) for t in expected), "an output holds NaN")
    differing = 0
    for _ in range(REPEATS):
        _poison(pipeline)
        pipeline.run()
        differing += _bits_differ(pipeline, expected)
    found.figures["differing_runs"] = differing
    found.require(differing == 0, f"{differing} of {REPEATS} runs gave other bits")
    return found


def check_replay(pipeline: Pipeline) -> Findings:
    """A captured graph gives the eager bits, also after its inputs changed in place."""
    found = Findings()
    replay = captured(pipeline.run)
    for change in range(2):
        if change:
            pipeline.q.neg_()
            pipeline.v.mul_(0.5)
        _poison(pipeline)
        pipeline.run()
        expected = [t.clone() for t in pipeline.outputs]
        _poison(pipeline)
        replay()
        found.require(not _bits_differ(pipeline, expected), "a replay gave other bits than the eager run")
    found.require(int(pipeline.buffers["tile_counter"]) == 0, "tile_counter is not zero after replays")
    return found


def check_side_stream(pipeline: Pipeline) -> Findings:
    """Launches go to the caller's current stream: outputs made on a busy side stream are ordered behind its work."""
    found = Findings()
    pipeline.run()
    expected = [t.clone() for t in pipeline.outputs]
    _poison(pipeline)
    torch.cuda.synchronize()
    right = pipeline.q.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    pipeline.q.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CLOCKS)  # type: ignore[no-untyped-call]
        pipeline.q.copy_(right)
        pipeline.run()
    side.synchronize()
    found.require(not _bits_differ(pipeline, expected), "the launch did not follow the current stream")
    return found


def run(kernels: list[Kernel], report: Report, *, quick: bool) -> None:
    """Repeatability everywhere; capture and side streams on a GPU."""
    seqlen = QUICK_SEQLEN_TOKENS if quick else SEQLEN_TOKENS
    checks: list[tuple[str, Callable[[Pipeline], Findings]]] = [("repeats", check_repeats)]
    if report.device.type == "cuda":
        checks += [("replay", check_replay), ("side-stream", check_side_stream)]
    for attend in of_family(kernels, "attend"):
        grid = BlockGrid(seqlen, seqlen, attend.problem.block_size_q, attend.problem.block_size_k)
        pipeline = make_pipeline(kernels, attend, grid, (NUM_Q_HEADS, NUM_KV_HEADS), report.device)
        if pipeline is None:
            report.add(attend.name, "pipeline", ok=None, show=True, skipped="the bundle lacks its pool or select")
            continue
        group = Group(report, attend.name)
        for name, check in checks:
            group.case(name, partial(check, pipeline))
        group.close()
