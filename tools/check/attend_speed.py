"""Speed of attend over lengths, densities and blocks, with spot checks and peers: the section `attend_speed`.

Owns which figures are taken. Must not own timing, masks or peers (prism_gen/bench/ does).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from prism_gen.bench.figures import OURS
from prism_gen.bench.peers import Peer, attend_peers, differs, distance
from prism_gen.bench.timing import REST_S, SETTLE_S, Timing, host_cost_us, measure, measure_each
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.masks import density_of
from prism_gen.verify.problem import Problem, make_problem, prepare_launch
from prism_gen.verify.report import Findings, Report
from prism_gen.verify.spots import spot_check
from tools.check.ceilings import report_ceilings
from tools.check.options import Options

# Host cost does not depend on the length, so it is taken where draining the queue of HOST_CALLS launches is quick.
HOST_CALLS, HOST_MAX_TOKENS = 100, 8192
# From this length on a launch is long enough for the power limit to slow the chip down, so it is timed behind a while
# of the same, as in a chain of its own, and rested as well.
LONG_TOKENS = 65536
UNEVEN_TOKENS = 32768  # the length at which one dense head is put beside sparse ones


def _host_us(launch: Callable[[], object], out: Tensor) -> float:
    return round(host_cost_us(launch, out.device, calls=HOST_CALLS), 2)


class Race:
    """The calls on one problem, ours and its peers', timed in turn: a clock that wanders slows all of them alike."""

    def __init__(self, problem: Problem, launch: Callable[[], object], out: Tensor) -> None:
        self.problem, self.out = problem, out
        self._calls: dict[str, Callable[[], object]] = {OURS: launch}
        self._outputs: dict[str, Tensor] = {}
        self._failed: dict[str, Exception] = {}
        self._times: dict[str, tuple[float, ...]] = {}

    def enter(self, peer: Peer) -> None:
        """Prepares a peer and calls it once; what it raises, there or when it is timed, costs its own record alone."""
        try:
            call = peer.prepare(self.problem)
            self._outputs[peer.name] = call()
            self._calls[peer.name] = partial(self._call_peer, peer.name, call)
        except Exception as error:  # every kind of failure of a peer is a finding
            self._failed[peer.name] = error

    def _call_peer(self, name: str, call: Callable[[], object]) -> None:
        """A call of a peer; nothing once it has failed, so that the others are timed to the end."""
        if name not in self._failed:
            try:
                call()
            except Exception as error:
                self._failed[name] = error

    def _require_alive(self, name: str) -> None:
        if name in self._failed:
            raise self._failed[name]

    def add_timing(self, found: Findings, name: str, flops: float) -> float:
        """Times of one of the calls: in turn, long ones in a chain and rested as well. Returns the first in TFLOP/s.

        Raises: what the peer of that name raised.
        """
        device, is_long = self.problem.q.device, self.problem.grid.seqlen_q >= LONG_TOKENS
        if not self._times:
            self._times = measure_each(self._calls, device, settle_s=SETTLE_S if is_long else 0.0)
        self._require_alive(name)
        timing = Timing.of(self._times[name])
        tflops = flops / timing.median_ms / 1e9
        found.figures.update(timing.record(), tflops=round(tflops, 1))
        if device.type == "cuda" and is_long:
            rested = measure(self._calls[name], device, rest_s=REST_S)
            self._require_alive(name)
            found.figures["rested_ms"] = round(rested.median_ms, 5)
            found.figures["rested_tflops"] = round(flops / rested.median_ms / 1e9, 1)
        return tflops

    def time_ours(self, ceiling_tflops: float) -> Findings:
        """Our figure and its spot check."""
        found, problem = Findings(), self.problem
        tflops = self.add_timing(found, OURS, problem.selected_flops)
        found.figures["of_ceiling"] = round(tflops / ceiling_tflops, 3)
        if self.out.is_cuda and problem.grid.seqlen_q <= HOST_MAX_TOKENS:
            # A host that others share slows at times: a launch of torch's own, beside ours, shows when.
            fill = partial(problem.q.new_empty(1).fill_, 0)
            found.figures["host_us"] = _host_us(self._calls[OURS], self.out)
            found.figures["fill_host_us"] = _host_us(fill, self.out)
        spot_check(found, problem, self.out)
        return found

    def time_peer(self, peer: Peer) -> Findings:
        """The figure of a peer that entered; a sparse peer's output must equal ours."""
        found, problem = Findings(), self.problem
        self.add_timing(found, peer.name, problem.selected_flops if peer.sparse else problem.dense_flops)
        if peer.sparse:
            found.figures["distance_to_ours"] = away = distance(self._outputs[peer.name], self.out)
            found.require(not differs(away), differs(away))
        return found


def run(kernels: list[Kernel], report: Report, options: Options) -> None:
    """Every attend kernel of the asked dtypes on every length and density, each with its peers."""
    ceiling = report_ceilings(report)["tflops"]
    known = attend_peers(options.prism_src, options.flashprefill_lib)
    asked = [known[name] for name in options.peers if name in known]  # the others are peers of select
    dense_timed: set[tuple[object, ...]] = set()
    for kernel in of_family(kernels, "attend"):
        if kernel.problem.dtype not in options.speed_dtypes:
            continue
        for seqlen in options.lengths:
            for density in options.densities:
                problem = make_problem(kernel, seqlen, density, options.heads, report.device)
                case = f"n{seqlen}-density{density_of(problem.block_mask, problem.grid):.4f}"
                peers = []
                for peer in asked:
                    once = (peer.name, seqlen, kernel.problem.dtype, kernel.problem.head_dim)
                    if peer.sparse or once not in dense_timed:
                        peers.append(peer)
                    dense_timed.add(once)
                _report_race(kernel, report, problem, case, ceiling, peers)
                del problem
        if UNEVEN_TOKENS in options.lengths:  # one dense head beside sparse ones: is the chip full to the end?
            density = min(options.densities)
            problem = make_problem(kernel, UNEVEN_TOKENS, density, options.heads, report.device, first_dense=True)
            _report_race(kernel, report, problem, f"n{UNEVEN_TOKENS}-one-list-dense", ceiling, [])
            del problem


def _report_race(
    kernel: Kernel, report: Report, problem: Problem, case: str, ceiling_tflops: float, peers: list[Peer]
) -> None:
    """A peer that cannot run here is a note, not a failure; a peer that runs and disagrees is one."""
    race = Race(problem, *prepare_launch(kernel, problem))
    runnable = []
    for peer in peers:
        reason = peer.unavailable(problem)
        if reason:
            report.add(f"peer-{peer.name}", f"{kernel.name}-{case}", show=True, skipped=reason)
        else:
            race.enter(peer)
            runnable.append(peer)
    report.case(kernel.name, case, partial(race.time_ours, ceiling_tflops), show=True)
    for peer in runnable:
        report.case(f"peer-{peer.name}", f"{kernel.name}-{case}", partial(race.time_peer, peer), show=True)
