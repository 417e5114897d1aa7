"""The run command: what it prints, draws and refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor

from prism_gen.errors import ConfigError, DeviceError, TensorError, UnsupportedError
from prism_gen.model import ModelSpec
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.plot import CLASSES, classify
from prism_gen.runtime.qkv_file import read_qkv
from prism_gen.runtime.run_layer import run_layer


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    """A bundle whose libraries hold no kernels: enough for the reference."""
    return make_bundle()


@pytest.fixture
def small_file(sample: dict[str, Tensor], tmp_path: Path) -> Path:
    """The first 520 tokens of the sample, which says it is of layer 14."""
    path = tmp_path / "small.safetensors"
    safetensors.torch.save_file({n: x[:, :520].contiguous() for n, x in sample.items()}, path, {"layer": "14"})
    return path


def run(**arguments: object) -> tuple[str, object]:
    text = io.StringIO()
    report = run_layer(console=Console(file=text, width=120), **arguments)  # type: ignore[arg-type]
    return text.getvalue(), report


def test_report_holds_what_was_measured(bundle: Path, small_file: Path) -> None:
    text, report = run(bundle=bundle, qkv=small_file, backend="reference")
    assert "smollm2 layer 14" in text
    assert "520 queries, 520 keys, blocks of 64x64 (45 visible a head)" in text
    for density, mass, error in zip(
        report.density.tolist(), report.mean_mass.tolist(), report.error.tolist(), strict=True
    ):
        assert f"{density:.2%}" in text
        assert f"{mass:.2%}" in text
        assert f"{error:.2%}" in text
        assert 0 < density < 1
        assert 0.8 < mass < 1
        assert 0 < error < 0.5
    assert all(f"{report.stage_ms[stage]:.3f} ms" in text for stage in ("pool", "select", "attend", "dense"))


def test_default_backend_is_said_aloud(bundle: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text, _ = run(bundle=bundle, qkv=small_file)
    assert "reference, plain torch on the CPU (torch sees no CUDA device)" in text
    with pytest.raises(DeviceError, match="torch sees no CUDA device"):
        run(bundle=bundle, qkv=small_file, backend="cuda")


def test_block_size_and_layer_can_be_chosen(bundle: Path, small_file: Path) -> None:
    text, report = run(bundle=bundle, qkv=small_file, backend="reference", block_size="128x64", layer=2)
    assert "smollm2 layer 2" in text
    assert report.selection.grid.block_size_q == 128
    with pytest.raises(ConfigError, match="layer 30"):
        run(bundle=bundle, qkv=small_file, backend="reference", layer=30)


def test_both_layouts_are_one_layer(small_file: Path, tmp_path: Path) -> None:
    heads_first = read_qkv(small_file)
    other = tmp_path / "batched.safetensors"
    safetensors.torch.save_file({n: x.contiguous() for n, x in zip("qkv", heads_first[:3], strict=True)}, other)
    batched = read_qkv(other)
    assert heads_first.q.shape == (1, 520, 3, 64)
    assert all(a.equal(b) for a, b in zip(heads_first[:3], batched[:3], strict=True))
    assert (heads_first.layer, batched.layer) == (14, None)


def test_plot_is_a_picture_of_every_class(bundle: Path, small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "mask.png"
    text, _ = run(bundle=bundle, qkv=small_file, backend="reference", plot=path)
    picture = matplotlib.image.imread(path)
    assert str(path) in text.replace("\n", "")
    assert min(picture.shape[:2]) > 1000
    assert len({tuple(pixel) for pixel in picture[::7, ::7, :3].reshape(-1, 3).tolist()}) > 20


def test_plot_that_cannot_be_written(bundle: Path, small_file: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be written"):
        run(bundle=bundle, qkv=small_file, backend="reference", plot=small_file / "mask.png")


@pytest.mark.parametrize("name", ["mask", "mask.foo"])
def test_plot_that_is_no_png_is_refused_before_the_run(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"does not end in \.png"):
        run(bundle=bundle, qkv=tmp_path / "never read", backend="reference", plot=tmp_path / name)


def test_brackets_in_names_are_no_markup(bundle: Path, small_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[" / "x]"
    folder.mkdir(parents=True)
    text, _ = run(
        bundle=bundle,
        qkv=small_file.rename(tmp_path / "a[bold].safetensors"),
        backend="reference",
        plot=folder / "mask.png",
    )
    assert "a[bold].safetensors" in text
    assert "[/x]/mask.png" in text.replace("\n", "")


def test_classes_agree_with_the_selection(sample: dict[str, Tensor], model: ModelSpec) -> None:
    q, k = (sample[name][:, :1500].transpose(0, 1)[None] for name in "qk")
    attention = PrismAttention(None, model, backend="reference")
    selection = attention.select(attention.pool(q, k), with_probs=True)
    classes = classify(selection, attention.thresholds.rows(3, q.device))
    assert {CLASSES[x] for x in classes.unique().tolist()} == set(CLASSES) - {"most probable"}
    assert (classes >= CLASSES.index("high band only")).equal(selection.block_mask())
    assert int((classes != CLASSES.index("not visible"))[0, 0].sum()) == selection.grid.total_visible


BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, r"cannot be read as safetensors[\s\S]*examples/data"),
    "not safetensors": (lambda path: path.write_bytes(b"PK zip"), "cannot be read as safetensors"),
    "truncated": (
        lambda path: path.write_bytes(safetensors.torch.save({n: torch.ones(1, 9, 64) for n in "qkv"})[:-9]),
        "cannot be read as safetensors",
    ),
    "no v": (
        lambda path: safetensors.torch.save_file({n: torch.ones(1, 9, 64) for n in "qk"}, path),
        r"has no tensor v[\s\S]*k, q in the file",
    ),
    "two dims": (
        lambda path: safetensors.torch.save_file({n: torch.ones(9, 64) for n in "qkv"}, path),
        r"shapes \[9, 64\].*[\s\S]*\[heads, seqlen, head_dim\]",
    ),
    "mixed dims": (
        lambda path: safetensors.torch.save_file(
            {"q": torch.ones(1, 3, 9, 64), **{n: torch.ones(3, 9, 64) for n in "kv"}}, path
        ),
        "one layout",
    ),
    "other heads": (
        lambda path: safetensors.torch.save_file({n: torch.ones(5, 9, 64) for n in "qkv"}, path),
        "5 q heads with 5 kv heads",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(bundle: Path, tmp_path: Path, case: str) -> None:
    write, words = BAD_FILES[case]
    path = tmp_path / "bad.safetensors"
    write(path)
    with pytest.raises(TensorError, match=words):
        run(bundle=bundle, qkv=path, backend="reference")
