"""`bench --qkv`: figures on a user's own tensors, with the blocks that the layer selects of them."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from prism_gen.bench import command
from prism_gen.bench.compare import compare
from prism_gen.bench.figures import OURS, read_run
from prism_gen.bench.real_data import RealData
from prism_gen.cli import app
from prism_gen.errors import ConfigError
from prism_gen.files import sha256
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.qkv_file import QKV, read_qkv, write_qkv

TOKENS = 520


@pytest.fixture
def small_file(sample_path, tmp_path):
    """The first tokens of the committed sample, three q heads and one kv head of layer 14."""
    q, k, v, layer = read_qkv(sample_path)
    path = tmp_path / "layer14.safetensors"
    write_qkv(path, QKV(q[:, :TOKENS], k[:, :TOKENS], v[:, :TOKENS], layer))
    return path


def bench(bundle, *arguments):
    return CliRunner().invoke(app, ["bench", str(bundle), "--backend", "reference", *map(str, arguments)])


def test_the_file_gives_length_heads_and_density(make_bundle, small_file, model, tmp_path):
    done = bench(make_bundle(), "--qkv", small_file, "--json", tmp_path / "run.json")
    assert done.exit_code == 0, done.output
    run = read_run(tmp_path / "run.json")
    assert run.data == sha256(small_file)
    ours = [figure for figure in run.timed() if figure.who == OURS and figure.label == "bf16-d64-b64x64"]
    assert [figure.stage for figure in ours] == ["attend", "attend", "selection", "layer"]
    assert ours.pop(1).density == 1.0  # the same kernel on every block
    attention = PrismAttention(None, model, 14, block_size=(64, 64), backend="reference")
    q, k, v, _ = read_qkv(small_file)
    stats = attention(q, k, v, return_stats=True).stats
    for figure in ours:
        assert (figure.seqlen, figure.heads) == (TOKENS, (3, 1))
        assert figure.density == pytest.approx(float(stats.density.mean()), abs=1e-4)
    assert ours[2].list_densities == pytest.approx(stats.density[0].tolist(), abs=1e-4)
    least, most = (f"{bound:.1%}" for bound in (stats.density.min(), stats.density.max()))
    assert f"layer n{TOKENS}: 3 lists of {least} to {most} of the blocks" in done.output
    dense = [figure for figure in run.figures if figure.who == "flash2-dense"]
    assert [figure.skipped for figure in dense] == ["needs a GPU"]  # whatever the block size


def test_a_chunk_behind_a_prefix_is_measured(make_bundle, small_file, tmp_path):
    q, k, v, layer = read_qkv(small_file)
    path = tmp_path / "chunk.safetensors"
    write_qkv(path, QKV(q[:, -70:], k, v, layer))
    assert bench(make_bundle(), "--qkv", path, "--json", tmp_path / "run.json").exit_code == 0
    run = read_run(tmp_path / "run.json")
    assert {figure.seqlen for figure in run.figures} == {70}
    assert "equal lengths of q and k" in next(figure.skipped for figure in run.figures if figure.who == "flash2-dense")


def test_the_first_sequence_counts_in_the_models_dtype(model, tmp_path):
    shapes = ((2, 90, 6, 64), (2, 120, 2, 64), (2, 120, 2, 64))
    write_qkv(tmp_path / "two.safetensors", QKV(*(torch.randn(shape) for shape in shapes), None))
    data = RealData.read(tmp_path / "two.safetensors", [model])
    q, k, v = data.tensors(model, torch.device("cpu"))
    assert ([*q.shape], [*k.shape], [*v.shape]) == ([1, 90, 6, 64], [1, 120, 2, 64], [1, 120, 2, 64])
    assert q.dtype == torch.bfloat16
    assert data.layer(model) == 0


def test_a_file_of_another_model_is_refused(make_bundle, tmp_path):
    x = torch.randn(1, 64, 4, 32)
    write_qkv(tmp_path / "other.safetensors", QKV(x, x, x, None))
    done = bench(make_bundle(), "--qkv", tmp_path / "other.safetensors")
    assert "4 q and 4 kv heads of 32 dims" in str(done.exception)


def test_lengths_beside_a_file_are_refused(make_bundle, small_file):
    done = bench(make_bundle(), "--qkv", small_file, "--lengths", "128")
    assert "--lengths and --densities are of random tensors" in str(done.exception)


def test_runs_on_other_data_are_not_compared(make_bundle, small_file, tmp_path):
    bundle = make_bundle()
    bench(bundle, "--qkv", small_file, "--json", tmp_path / "file.json", "--peers", "none")
    bench(bundle, "--lengths", TOKENS, "--json", tmp_path / "random.json", "--peers", "none")
    on_file, on_random = (read_run(tmp_path / name) for name in ("file.json", "random.json"))
    with pytest.raises(ConfigError, match=r"the old run is on the file [0-9a-f]{12}, the new one on random tensors"):
        compare(on_file, on_random, 0.05)
    assert command.guard(tmp_path / "file.json", on_file, 0.05, Console(width=100))
