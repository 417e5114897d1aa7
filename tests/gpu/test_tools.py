"""bench and tune on a device: what they time is the device, peers agree, and a stand judges real libraries."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import pytest

torch = pytest.importorskip("torch")

from prism_gen.bench.compare import compare  # noqa: E402
from prism_gen.bench.figures import OURS  # noqa: E402
from prism_gen.bench.peers.problem import PEER_TOLERANCE  # noqa: E402
from prism_gen.bench.run import Plan, run_bench  # noqa: E402
from prism_gen.bench.timing import measure_each  # noqa: E402
from prism_gen.runtime import Bundle  # noqa: E402
from prism_gen.tune.device import OpenStand  # noqa: E402
from prism_gen.tuning_table import Shape  # noqa: E402

pytestmark = pytest.mark.gpu

TOKENS = 2048


def test_python_before_a_launch_is_not_timed() -> None:
    x = torch.zeros(1 << 20, device="cuda")

    def slow_to_launch() -> None:
        time.sleep(0.002)
        x.add_(1)

    (times,) = measure_each({"": slow_to_launch}, x.device).values()
    assert max(times) < 0.5  # milliseconds; the addition takes some microseconds


def test_peers_agree_and_a_run_is_no_regression_of_itself(bundle: Bundle) -> None:
    model = bundle.manifest.models[1]
    one = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, models=(model,)))
    plan = Plan("cuda", torch.device("cuda", 0), (TOKENS,), (0.3,), peers=("cudnn-dense", "flash2-dense"))
    run = run_bench(one, plan, lambda _figure: None)
    assert run.complete
    assert not [figure.skipped for figure in run.figures if figure.skipped]
    peers = [figure for figure in run.timed() if figure.who != OURS]
    assert {figure.who for figure in peers} == {"cudnn-dense", "flash2-dense"}
    assert all(0 < figure.distance <= PEER_TOLERANCE for figure in peers)
    assert not any(change.failed for change in compare(run, run, 0.0))


def test_a_stand_judges_times_and_crosses_the_kernels_of_a_bundle(bundle: Bundle) -> None:
    stand, heads = OpenStand("cuda:0")(bundle.path), (32, 8)
    specs = [entry.spec for entry in bundle.manifest.kernels if entry.spec.problem.head_dim == 128]
    for spec in specs:
        assert not stand.problems(spec), spec.name
        times = stand.time([spec], Shape(seqlen=TOKENS, density=0.3), heads, 7)
        assert len(times[spec.key]) == 7
        crossover = stand.crossover(spec, [TOKENS], heads)
        assert (crossover is None) == (spec.family != "attend")
        if crossover:
            (crossing,) = crossover.crossings
            assert crossing.selection_ms > 0
            assert crossing.dense_ms <= crossing.attend_ms[-1][1]
