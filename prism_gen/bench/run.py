"""The figures of one bundle: selection, attend and the whole layer, and its peers, on the same tensors in one process.

Owns which figures are taken. Must not print or draw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec
import torch
from torch import Tensor

from prism_gen.bench.directions import sharpen
from prism_gen.bench.figures import BENCH_SCHEMA_VERSION, OURS, BenchRun, Ceilings, Figure, Stage
from prism_gen.bench.peers import Peer, attend_peers, prism_estimate, prism_layer, prism_unavailable
from prism_gen.bench.peers.checked import failure, prepare_checked
from prism_gen.bench.real_data import RealData
from prism_gen.bench.timing import CEILING_COPY_BYTES, CEILING_MATMUL, MIN_RUNS, ceilings, measure_each
from prism_gen.bench.work import attend_bytes, selection_bytes, selection_flops
from prism_gen.bench.workloads import shared_heads
from prism_gen.model import ModelSpec
from prism_gen.runtime.attention import PrismAttention
from prism_gen.runtime.environment import environment
from prism_gen.runtime.load import Bundle
from prism_gen.runtime.selection import visible_blocks
from prism_gen.verify.kernels import Kernel, bundle_kernel
from prism_gen.verify.masks import density_of
from prism_gen.verify.problem import Problem, make_problem, prepare_launch
from prism_gen.verify.reference_kernels import reference_kernel

CPU_MATMUL, CPU_COPY_BYTES = 256, 1 << 20  # where the ceilings only have to exist for the figures that quote them
RUNS = 2 * MIN_RUNS  # of each figure: enough for quartiles that a comparison may trust
PRISM = "prism"  # the official one, where it is a whole layer or its selection

Backend = Literal["cuda", "reference"]
OnFigure = Callable[[Figure], None]


@dataclass(frozen=True)
class Plan:
    """What is measured. lengths: tokens. densities: of attend alone; the layer's is what its selection keeps.

    peers: names of attend_peers, all that run here by default. prism_src, flashprefill_lib: see attend_peers. data:
    real tensors in the place of random ones; then their length and the density that they select are what is measured.
    """

    backend: Backend
    device: torch.device
    lengths: tuple[int, ...]
    densities: tuple[float, ...]
    peers: tuple[str, ...] | None = None
    prism_src: str | None = None
    flashprefill_lib: str | None = None
    data: RealData | None = None

    def named_peers(self) -> list[Peer]:
        """The peers asked for."""
        known = attend_peers(self.prism_src, self.flashprefill_lib)
        return list(known.values()) if self.peers is None else [known[name] for name in self.peers if name in known]


def run_bench(bundle: Bundle, plan: Plan, on_figure: OnFigure) -> BenchRun:
    """Every figure of every model of the bundle, at each of its block sizes; interrupted, those taken by then."""
    figures: list[Figure] = []
    top, complete = measured_ceilings(plan.device), True
    dense: set[object] = set()  # problems of dense peers that are done
    try:
        for model in bundle.manifest.models:
            for size in model.selection.block_sizes:
                for figure in _figures(bundle, model, size, plan, dense):
                    figures.append(figure)
                    on_figure(figure)
    except KeyboardInterrupt:
        complete = False
    return BenchRun(
        schema_version=BENCH_SCHEMA_VERSION,
        machine=environment(plan.device),
        data=plan.data.digest if plan.data else "",
        ceilings=top,
        figures=tuple(figures),
        complete=complete,
    )


def measured_ceilings(device: torch.device) -> Ceilings:
    """Both ceilings of this process."""
    on_gpu = device.type == "cuda"
    size, copy_bytes = (CEILING_MATMUL, CEILING_COPY_BYTES) if on_gpu else (CPU_MATMUL, CPU_COPY_BYTES)
    product, copy = ceilings(device, size=size, copy_bytes=copy_bytes)
    return Ceilings(tflops=2 * size**3 / product["ms"] / 1e9, tbps=2 * copy_bytes / copy["ms"] / 1e9)


def _figures(
    bundle: Bundle, model: ModelSpec, size: tuple[int, int], plan: Plan, dense: set[object]
) -> Iterator[Figure]:
    """All figures of one model and block size; none on data of another model's heads. dense: see _timed."""
    if plan.data is None:
        attention, kernel = _open(bundle, model, size, model.layer_kinds.index("full"), plan)
        for seqlen in plan.lengths:
            yield from _length(attention, kernel, seqlen, plan, dense)
    elif plan.data.fits(model):
        attention, kernel = _open(bundle, model, size, plan.data.layer(model), plan)
        problem = _selected(attention, *plan.data.tensors(model, plan.device))
        yield from _attend(kernel, problem, _timed(plan, problem, dense), plan.device, with_dense=True)
        yield from _layer(attention, kernel, problem, plan)


def _open(
    bundle: Bundle, model: ModelSpec, size: tuple[int, int], layer: int, plan: Plan
) -> tuple[PrismAttention, Kernel]:
    """One layer, and its attend kernel alone."""
    device = plan.device if plan.backend == "cuda" else None
    attention = PrismAttention(bundle, model.name, layer, block_size=size, backend=plan.backend, device=device)
    return attention, _attend_kernel(bundle, attention, plan.backend)


def _length(attention: PrismAttention, kernel: Kernel, seqlen: int, plan: Plan, dense: set[object]) -> Iterator[Figure]:
    """All figures of one length on random inputs."""
    heads = shared_heads(kernel, (attention.model.num_q_heads, attention.model.num_kv_heads))
    for i, density in enumerate(plan.densities):
        problem = make_problem(kernel, seqlen, density, heads, plan.device)
        yield from _attend(kernel, problem, _timed(plan, problem, dense), plan.device, with_dense=i == 0)
    problem = make_problem(kernel, seqlen, 1.0, heads, plan.device)
    sharpen(problem.q, problem.k, attention.block_size)  # a tenth to a quarter of the blocks is selected
    yield from _layer(attention, kernel, _selected(attention, problem.q, problem.k, problem.v), plan)


def _timed(plan: Plan, problem: Problem, dense: set[object]) -> list[Peer]:
    """The peers to time on a problem. dense: shapes on which the dense ones were timed, whatever the block size."""
    case = (problem.q.dtype, tuple(problem.q.shape), problem.k.shape[2])
    peers = [peer for peer in plan.named_peers() if peer.sparse or case not in dense]
    dense.add(case)
    return peers


def _selected(attention: PrismAttention, q: Tensor, k: Tensor, v: Tensor) -> Problem:
    """The attend call on the blocks that the layer selects of these tensors, batch 1."""
    selection = attention.select(attention.pool(q, k))
    return Problem(q, k, v, selection.block_mask()[0], selection.grid, attention.softmax_scale)


def _attend_kernel(bundle: Bundle, attention: PrismAttention, backend: Backend) -> Kernel:
    """The attend kernel of the layer, or plain torch in its place."""
    sizes = attention.block_size
    for entry in bundle.manifest.kernels:
        problem = entry.spec.problem
        if entry.spec.family == "attend" and (problem.block_size_q, problem.block_size_k) == sizes:
            same = problem.head_dim == attention.model.head_dim and problem.dtype == attention.model.dtype
            if same and problem.heads_per_list == attention.model.heads_per_list:
                return reference_kernel(entry.spec) if backend == "reference" else bundle_kernel(bundle, entry)
    raise LookupError(f"no attend kernel for {sizes} in {bundle.path}")  # PrismAttention was resolved from this bundle


def _figure(
    stage: Stage, who: str, kernel: Kernel, problem: Problem, ms: Sequence[float], density: float, flops: float
) -> Figure:
    return Figure(
        stage=stage,
        who=who,
        label=kernel.problem.label(),
        seqlen=problem.grid.seqlen_q,
        density=round(density, 4),
        heads=(problem.q.shape[2], problem.k.shape[2]),
        ms=tuple(ms),
        flops=flops,
        bytes_moved=selection_bytes(problem) if stage == "selection" else attend_bytes(problem),
    )


def _attend(
    kernel: Kernel, problem: Problem, peers: Sequence[Peer], device: torch.device, *, with_dense: bool
) -> Iterator[Figure]:
    """Ours and the peers on one mask, runs in turn. with_dense: ours on every block too, and peers that are dense."""
    whole = _every_block(problem)
    masked = {True: problem, False: whole}  # by whether only the selected blocks are visited
    launches = {sparse: prepare_launch(kernel, which) for sparse, which in masked.items() if sparse or with_dense}
    for launch, _ in launches.values():
        launch()
    calls: dict[tuple[str, bool], Callable[[], object]] = {(OURS, True): launches[True][0]}
    if with_dense and not torch.equal(problem.block_mask, whole.block_mask):
        calls[OURS, False] = launches[False][0]
    distances: dict[tuple[str, bool], float] = {}

    def figure(who: str, sparse: bool, ms: Sequence[float]) -> Figure:
        which = masked[sparse]
        density = density_of(which.block_mask, which.grid)
        return _figure("attend", who, kernel, which, ms, density, which.selected_flops)

    for peer in peers:
        if peer.sparse in launches:
            checked = prepare_checked(peer, problem, launches[peer.sparse][1])
            distances[peer.name, peer.sparse] = round(checked.distance, 6)
            if checked.call is None:
                yield msgspec.structs.replace(figure(peer.name, peer.sparse, ()), skipped=checked.skipped)
            else:
                calls[peer.name, peer.sparse] = checked.call
    for (who, sparse), ms in measure_each(calls, device, runs=RUNS).items():
        yield msgspec.structs.replace(figure(who, sparse, ms), distance=distances.get((who, sparse), 0.0))


def _every_block(problem: Problem) -> Problem:
    """The same inputs with every visible block selected."""
    visible = visible_blocks(problem.grid, problem.q.device)
    return dataclasses.replace(problem, block_mask=visible.expand_as(problem.block_mask))


def _layer(attention: PrismAttention, kernel: Kernel, problem: Problem, plan: Plan) -> Iterator[Figure]:
    """Selection alone and the whole call. problem: with the blocks that they select.

    The official Prism chooses its own blocks, so its layer is not compared with ours.
    """
    q, k, v, grid = problem.q, problem.k, problem.v, problem.grid
    chosen = {OURS: problem}
    calls: dict[tuple[Stage, str], Callable[[], object]] = {
        ("selection", OURS): lambda: attention.select(attention.pool(q, k)),
        ("layer", OURS): partial(attention, q, k, v),
    }
    if not prism_unavailable(plan.prism_src, attention.block_size):
        size = attention.block_size[0]
        try:
            calls["selection", PRISM] = estimate = prism_estimate(plan.prism_src, q, k, size)[0]
            calls["layer", PRISM] = layer = prism_layer(plan.prism_src, q, k, v, size)
            chosen[PRISM] = dataclasses.replace(problem, block_mask=estimate()[0])
            layer()
        except Exception as error:
            calls = {key: call for key, call in calls.items() if key[1] == OURS}
            figure = _figure("layer", PRISM, kernel, problem, (), 1.0, 0.0)
            yield msgspec.structs.replace(figure, skipped=failure(error))
    for (stage, who), ms in measure_each(calls, plan.device, runs=RUNS).items():
        mask = chosen[who].block_mask
        flops = selection_flops(attention.model, problem) if stage == "selection" else chosen[who].selected_flops
        figure = _figure(stage, who, kernel, chosen[who], ms, density_of(mask, grid), flops)
        densities = tuple(round(density_of(rows, grid), 4) for rows in mask) if stage == "layer" else ()
        yield msgspec.structs.replace(figure, list_densities=densities)
