"""Pictures of a bench run: what is drawn where, from figures made up."""

from __future__ import annotations

import pytest
from matplotlib import pyplot as plt

from prism_gen.bench import plots
from prism_gen.bench.figures import BENCH_SCHEMA_VERSION, OURS, BenchRun, Ceilings, Figure
from prism_gen.bench.plot_style import by_density, everyone, name_of, problem_words


def figure(who=OURS, stage="attend", density=0.1, seqlen=8192, ms=1.0, label="bf16-d128-b128x128"):
    return Figure(
        stage=stage,
        who=who,
        label=label,
        seqlen=seqlen,
        density=density,
        heads=(32, 8),
        ms=(ms,) * 3,
        flops=1e11 * density,
        bytes_moved=1e8,
    )


FIGURES = (
    figure(),
    figure(density=0.23, ms=2.0),
    figure(seqlen=32768, density=0.12),
    figure(seqlen=32768, density=0.24),
    figure("fa4-sparse", ms=1.25),
    figure("cudnn-dense", density=1.0, ms=5.0),
    figure("fa4-dense", density=1.0, ms=4.0),
    figure("cudnn-dense", density=1.0, ms=80.0, seqlen=32768),
    figure(stage="layer", ms=1.6),
    figure("prism", stage="layer", ms=3.2),
    figure(stage="selection", ms=0.1),
)


def run_of(*figures):
    return BenchRun(
        schema_version=BENCH_SCHEMA_VERSION,
        machine={"gpu": "NVIDIA H200", "torch": "2.11"},
        ceilings=Ceilings(tflops=700.0, tbps=4.0),
        figures=figures,
    )


@pytest.fixture
def kept(monkeypatch):
    """The pictures of a run, by name, before they are closed."""
    found = {}

    def save(self, path, **_options):
        found[path.stem] = self

    monkeypatch.setattr(plt.Figure, "savefig", save)
    monkeypatch.setattr(plt, "close", lambda _figure: None)
    return found


def lines_of(ax):
    return {line.get_color(): list(line.get_ydata()) for line in ax.lines if line.get_marker() == "o"}


def test_speed_up_is_a_row_a_problem_a_column_a_density_and_one_for_the_layer(kept, tmp_path):
    plots.draw(run_of(*FIGURES), tmp_path)
    sparse, denser, layer = kept["speedup"].axes
    assert "density 0.10 to 0.12" in sparse.get_title(loc="left")
    assert "density 0.23 to 0.24" in denser.get_title(loc="left")
    assert "whole layer" in layer.get_title(loc="left")
    ours, fa4, official = ("#00795C", "#E69F00", "#CC79A7")
    assert lines_of(sparse) == {ours: [4.0, 80.0], fa4: [3.2]}  # over FlashAttention-4's 4 ms, then cuDNN's 80
    assert lines_of(denser) == {ours: [2.0, 80.0]}
    assert lines_of(layer) == {ours: [2.5], official: [1.25]}


def test_the_share_of_the_ceiling_has_a_bar_a_figure(kept, tmp_path):
    plots.draw(run_of(*FIGURES), tmp_path)
    heights = [[round(bar.get_height(), 5) for bar in ax.patches] for ax in kept["ceiling"].axes]
    assert [len(bars) for bars in heights] == [3, 2, 3]
    assert heights[0][0] == pytest.approx(1e10 / 1e-3 / 1e12 / 700.0, abs=1e-5)


def test_dense_peers_stand_beside_every_block_size(kept, tmp_path):
    other = [figure(label="bf16-d128-b128x64"), figure(label="bf16-d128-b128x64", density=1.0, ms=4.5)]
    plots.draw(run_of(*FIGURES, *other), tmp_path)
    by_title = {ax.get_title(loc="left"): ax for ax in kept["ceiling"].axes}
    assert len(by_title["blocks 128x64, head_dim 128\ndense"].patches) == 1 + 3


def test_the_roofline_holds_selection_and_attend(kept, tmp_path):
    plots.draw(run_of(*FIGURES), tmp_path)
    (ax,) = kept["roofline"].axes
    assert len(ax.collections) == sum(figure.stage != "layer" for figure in FIGURES)
    assert {"copy 4.00 TB/s", "matrix product 700 TFLOP/s"} <= {text.get_text() for text in ax.texts}


def test_what_a_run_has_no_figures_for_is_left_out(tmp_path):
    assert not plots.draw(run_of(), tmp_path)
    assert [path.name for path in plots.draw(run_of(figure(stage="selection")), tmp_path)] == ["roofline.png"]
    without_dense = plots.draw(run_of(figure()), tmp_path)
    assert [path.name for path in without_dense] == ["roofline.png", "ceiling.png"]


def test_names_are_for_people_and_ours_comes_first():
    assert everyone(FIGURES) == [OURS, "fa4-sparse", "prism", "fa4-dense", "cudnn-dense"]
    assert everyone([figure("prism"), figure("prism-sparse")]) == ["prism-sparse"]
    assert name_of("unheard-of") == "unheard-of"
    assert problem_words("fp16-d64-b32x64-g4") == "blocks 32x64, head_dim 64, g4"
    assert [len(group) for group in by_density([f for f in FIGURES if f.stage == "attend" and f.density < 1])] == [3, 2]
