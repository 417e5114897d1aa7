"""calibrate on a tiny transformers model: the loss it sees, the harm it measures, the profile it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from prism_gen.calibrate import curves as curves_module
from prism_gen.calibrate.changes import directional_changes
from prism_gen.calibrate.curves import measure_curves
from prism_gen.calibrate.divergence import DensePredictions
from prism_gen.calibrate.measured import measured_curves
from prism_gen.calibrate.search import Target, calibrate, measure
from prism_gen.calibrate.sparse import SparseRun, open_layers
from prism_gen.cli import app
from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.integrations.calibration import parse_target
from prism_gen.integrations.text_model import TextModel
from prism_gen.model import SelectionSpec
from prism_gen.model_config import load_model_config
from prism_gen.profile import read_profile
from prism_gen.runtime import PrismAttention, Selection, reference
from prism_gen.runtime.grid import BlockGrid
from prism_gen.runtime.masked import dense_attention, masked_attention
from tests.cpu.small_cases import SHAPES, Shape, tensors
from tests.cpu.tiny_transformers import VOCAB, tiny

SELECTION = SelectionSpec(block_sizes=((16, 8),), estimator="subblock", sub_block_q=4, sub_block_k=4)
STEPS = (0.3, 0.6, 0.9, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and a tokenizer of words w3 .. w127, saved as published models are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path: Path = tmp_path_factory.mktemp("tiny")
    tiny("llama").save_pretrained(path)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> TextModel:
    return TextModel(folder, SELECTION, torch.device("cpu"))


def text(seed: int, words: int = 160) -> str:
    """Words that repeat, so that attention has something to find."""
    random = np.random.default_rng(seed)
    return " ".join(f"w{i}" for i in np.tile(random.integers(3, VOCAB, words // 2), 2))


def dense(model: TextModel) -> Any:
    scale = model.spec.head_dim**-0.5
    return lambda _layer, q, k, v: dense_attention(q, k, v, softmax_scale=scale)


def test_the_loss_is_that_of_transformers(folder: Path, model: TextModel) -> None:
    ids = model.ids(text(0), 100)[None]
    own = tiny("llama")(input_ids=ids).logits[0, :-1].log_softmax(-1)
    expected = -own.gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(model.nll(ids, dense(model))[0], expected, atol=1e-5, rtol=1e-5)


def test_harm_is_half_the_squared_change_along_the_gradient(model: TextModel) -> None:
    """Of one list, computed apart: its output's change against the gradient of the summed loss."""
    ids = model.ids(text(1), 120)
    layers = [PrismAttention(None, model.spec, layer, backend="reference") for layer in range(2)]
    found = measure_curves(model, layers, [ids], STEPS)
    seen: list[tuple[Tensor, ...]] = []

    def keep(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = dense(model)(0, q, k, v).detach().requires_grad_() if len(seen) == 1 else dense(model)(0, q, k, v)
        seen.append((q, k, v, out))
        return out

    model.nll(ids[None], keep).sum().backward()
    q, k, v, out = seen[1]
    assert out.grad is not None
    threshold = layers[1].make_thresholds(threshold=0.6)
    selection = layers[1].select(layers[1].pool(q, k), thresholds=threshold)
    change = masked_attention(q, k, v, selection, softmax_scale=32**-0.5).out - out
    per_token = (change * out.grad).sum(-1)[0].detach()
    expected = per_token.double().square().sum(0) / 2 / len(ids)
    np.testing.assert_allclose(found.harm[1, :, 1], expected.numpy(), rtol=1e-3)
    assert bool((found.harm[..., :3].sum(-1) > 0).all())
    np.testing.assert_allclose(found.harm[..., 3], 0.0, atol=1e-12)
    assert bool((np.diff(found.density) >= 0).all())
    np.testing.assert_allclose(found.density[..., 3], 1.0)


@pytest.mark.parametrize("shared", [False, True], ids=["head", "group"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_changes_along_a_direction_are_those_of_the_outputs(shape: Shape, shared: bool) -> None:
    q, k, v = (x.float() for x in tensors(shape, (1, 4, 2)))
    grid = BlockGrid(*shape)
    direction = torch.randn(grid.seqlen_q, 4, 32)
    everything = Selection.all_visible(grid, 1, 4, q.device)
    dense, _ = reference.attend(q, k, v, everything, softmax_scale=0.3)
    masks = [torch.rand(1, 2 if shared else 4, grid.num_q_blocks, grid.num_k_blocks) < 0.5 for _ in range(3)]
    selections = [Selection.from_mask(mask, grid) for mask in masks]
    found = directional_changes(q, k, v, direction, selections, softmax_scale=0.3)
    for index, selection in enumerate(selections):
        out, _ = reference.attend(q, k, v, selection, softmax_scale=0.3)
        expected = ((out - dense)[0] * direction).sum(-1).T
        torch.testing.assert_close(found[:, index], expected, atol=1e-5, rtol=1e-4)


def test_a_profile_for_a_density_measures_what_it_says_through_prism_attention(model: TextModel) -> None:
    texts = [model.ids(text(seed), 160) for seed in (2, 3)]
    result = calibrate(model, texts, Target("density", 0.6), provenance={"note": "x"}, say=lambda _: None)
    assert result.measured.density == pytest.approx(0.6, abs=0.06)
    assert result.profile.provenance["note"] == "x"
    assert result.profile.estimator == "subblock 4x4 max"
    with_profile = msgspec.structs.replace(
        model.spec, selection=msgspec.structs.replace(SELECTION, profile=result.profile)
    )
    assert measure(model, open_layers(with_profile, None), texts) == result.measured
    for layer in range(2):
        attention = PrismAttention(None, with_profile, layer, backend="reference")
        assert attention.thresholds.values[:, 0].tolist() == pytest.approx(list(result.profile.thresholds[layer]))


def test_measured_harm_is_what_one_list_changes_in_the_sparse_model(model: TextModel) -> None:
    ids = model.ids(text(4), 120)
    layers = open_layers(model.spec, None)
    found = measured_curves(model, layers, [ids], 0.6)
    assert found.thresholds.tolist() == [0.4, 0.6, 0.78, 0.89]  # four steps down would lie below the lowest
    dense_log, sparse_log = (
        torch.cat([logits for logits, _ in model.predictions(ids[None], run)], 1).log_softmax(-1)[0]
        for run in (dense(model), SparseRun(layers, np.array([[0.6] * 4, [0.6, 0.78, 0.6, 0.6]])))
    )
    base = SparseRun(layers, np.full((2, 4), 0.6))
    base_log = torch.cat([logits for logits, _ in model.predictions(ids[None], base)], 1).log_softmax(-1)[0]
    expected = (dense_log.exp() * (base_log - sparse_log)).sum(-1).mean()
    assert found.harm[1, 1, 2] == pytest.approx(float(expected), abs=1e-6)
    assert not found.harm[..., 1].any()
    assert found.density[1, :, 1].tolist() == pytest.approx(base.densities[1].tolist())


def test_divergence_of_the_dense_model_from_itself_is_nothing(model: TextModel) -> None:
    ids = model.ids(text(4), 120)[None]
    predictions = DensePredictions(model.predictions(ids, dense(model)))
    itself = predictions.distance(model.predictions(ids, dense(model)))
    assert itself.divergence == pytest.approx([0.0], abs=1e-6)
    assert itself.added_nll == (0.0,)


@pytest.mark.parametrize("target", [Target("density", 0.6), Target("ppl", 5.0)], ids=["density", "ppl"])
def test_measured_harm_reaches_targets_too(model: TextModel, target: Target) -> None:
    texts, said = [model.ids(text(2), 100)], list[str]()
    result = calibrate(model, texts, target, provenance={}, say=said.append, harm="measured")
    assert result.profile.provenance["harm"] == "measured"
    assert any("changes of one list" in words for words in said)
    if target.kind == "density":
        assert result.measured.density == pytest.approx(0.6, abs=0.1)
    else:
        assert result.measured.increase_percent <= 5.0


def test_a_perplexity_target_is_met_with_few_blocks(model: TextModel) -> None:
    texts = [model.ids(text(seed), 160) for seed in (2, 3)]
    said: list[str] = []
    result = calibrate(model, texts, Target("ppl", 5.0), provenance={}, say=said.append)
    assert result.measured.increase_percent <= 5.0
    assert result.measured.density < 1
    assert sum("perplexity" in words for words in said) == 6


def test_a_target_out_of_reach_is_an_error(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prism_gen.calibrate.search.THRESHOLDS", (0.1, 0.2))
    with pytest.raises(ConfigError, match=r"no profile found within 0\.001 %"):
        calibrate(model, [model.ids(text(2), 160)], Target("ppl", 0.001), provenance={}, say=lambda _: None)


def test_layers_that_do_not_see_everything_are_refused(model: TextModel) -> None:
    class Sliding:
        spec = msgspec.structs.replace(model.spec, layer_kinds=("full", "sliding"))
        nll = model.nll

    with pytest.raises(UnsupportedError, match="has sliding layers"):
        calibrate(Sliding(), [], Target("density", 0.5), provenance={}, say=lambda _: None)


def test_the_command_writes_a_profile_that_a_config_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(text(4))
    prism = {"estimator": "subblock", "sub_block_q": 4, "sub_block_k": 4, "block_size": "16x8"}
    (tmp_path / "prism.json").write_text(json.dumps(prism))
    out = tmp_path / "profile.json"
    arguments = ["--text", str(tmp_path / "a.txt"), "--selection", str(tmp_path / "prism.json"), "--out", str(out)]
    command = ["calibrate", "--model", str(folder), *arguments, "--target-density", "0.5", "--device", "cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "at density" in done.output
    found = read_profile(out)
    assert list(found.provenance["texts"]) == ["a.txt"]
    assert found.provenance["tokens"] == [160]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16", "prism": {**prism, "profile": "profile.json"}})
    )
    assert load_model_config(tmp_path / "config.json").selection.profile == found


@pytest.mark.parametrize(
    ("ppl", "density", "words"),
    [
        (None, None, "neither target"),
        ("1%", 0.2, "both targets"),
        ("one", None, "--target-ppl is 'one'"),
        ("-1", None, "--target-ppl is '-1'"),
        (None, 1.5, "--target-density is 1.5"),
    ],
)
def test_targets_that_mean_nothing_are_refused(ppl: str | None, density: float | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_target(ppl, density)


def test_targets() -> None:
    assert parse_target(" 1.5% ", None) == Target("ppl", 1.5)
    assert parse_target(None, 0.15) == Target("density", 0.15)
    assert curves_module.THRESHOLDS[-1] == 1.0
