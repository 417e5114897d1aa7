"""prism_gen.capture: files that the run command reads, and every mistake in words."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import prism_gen
from prism_gen.cli import app
from prism_gen.errors import ConfigError, TensorError
from prism_gen.integrations.pretrained import capture_text
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.qkv_file import read_qkv
from tests.cpu.tiny_transformers import BLOCKS, tiny, token_ids


@torch.no_grad()
def test_replay_gives_the_attention_of_the_model(tmp_path):
    model, ids = tiny("qwen3"), token_ids(2, 70)
    outputs = {}
    projection = model.model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda module, inputs: outputs.update(out=inputs[0]))
    with prism_gen.capture(model, [1], tmp_path) as files:
        model(ids)
    q, k, v, layer = read_qkv(files[1])
    assert (files[1].name, layer) == ("layer1.safetensors", 1)
    assert (q.shape, k.shape, v.shape) == ((2, 70, 4, 32), (2, 70, 2, 32), (2, 70, 2, 32))
    spec = prism_gen.integrations.describe.describe(model, dtype="bf16", bundle=None, selection=None)
    attention = PrismAttention(
        None, spec, layer, backend="reference", block_size=BLOCKS, high_threshold=1.0, low_threshold=1.0
    )
    torch.testing.assert_close(attention(q, k, v).flatten(2), outputs["out"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_longest_pass_is_kept_and_the_model_is_as_before(tmp_path):
    model, ids = tiny(), token_ids(1, 64)
    exact = model(ids).logits
    with prism_gen.capture(model, [0, 1], tmp_path / "new", dtype=torch.bfloat16) as files:
        model.generate(ids, max_new_tokens=3, do_sample=False)
        model(ids[:, :10])
    assert [read_qkv(files[layer]).q.shape[1] for layer in (0, 1)] == [64, 64]
    assert read_qkv(files[0]).k.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert torch.equal(model(ids).logits, exact)


@torch.no_grad()
def test_a_static_cache_gives_only_its_real_keys(tmp_path):
    model, ids = tiny(), token_ids(1, 40)
    with prism_gen.capture(model, [0], tmp_path) as files:
        model.generate(ids, max_new_tokens=3, do_sample=False, cache_implementation="static")
    assert read_qkv(files[0]).k.shape[1] == 40


def test_padding_is_refused(tmp_path):
    model, ids = tiny(), token_ids(2, 40)
    padding = torch.ones_like(ids)
    padding[0, :5] = 0
    with (
        pytest.raises(TensorError, match=r"padding[\s\S]*one sequence at a time"),
        prism_gen.capture(model, [0], tmp_path),
    ):
        model(ids, attention_mask=padding)


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi3", "cohere", "gemma2", "gemma3_text", "smollm3"])
@torch.no_grad()
def test_any_architecture_is_captured_and_computes_as_before(tmp_path, model_type):
    """Whatever its softmax and its RoPE; layer 1 of each attends to everything."""
    model, ids = tiny(model_type), token_ids(1, 40)
    exact = model(ids).logits
    with prism_gen.capture(model, [1], tmp_path) as files:
        torch.testing.assert_close(model(ids).logits, exact, rtol=1e-4, atol=1e-4)
    q, k, v, layer = read_qkv(files[1])
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    assert (layer, q.shape[:3], k.shape[:3], v.shape) == (1, (1, 40, heads[0]), (1, 40, heads[1]), k.shape)


@torch.no_grad()
def test_a_window_is_refused(tmp_path):
    model = tiny("gemma3_text")
    with pytest.raises(TensorError, match=r"layer 0[\s\S]*a window's"), prism_gen.capture(model, [0], tmp_path):
        model(token_ids(1, 40))


@pytest.mark.parametrize("layers", [[0, 2, 3], []], ids=["beyond", "none"])
def test_layers_must_exist(tmp_path, layers):
    with (
        pytest.raises(ConfigError, match=r"available: layers 0-1"),
        prism_gen.capture(tiny(), layers, tmp_path),
    ):
        pass


def test_nothing_run_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="saw no prefill"), prism_gen.capture(tiny(), [0], tmp_path):
        pass


def test_the_command_reads_a_text(tmp_path):
    tiny("llama", vocab_size=260).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Long prompts are slow to read. " * 9, encoding="utf-8")
    arguments = ["capture", "--weights", tmp_path / "model", "--text", text, "--layer", "1", "--tokens", "100"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "qkv"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    found = read_qkv(tmp_path / "qkv" / "layer1.safetensors")
    assert (found.q.shape, found.q.dtype, found.layer) == ((1, 100, 4, 32), torch.bfloat16, 1)


def byte_tokenizer():
    """One token a byte, as few parts as transformers can save and load again."""
    vocabulary = {char: index for index, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_weights_that_cannot_be_loaded_are_an_error_in_words(tmp_path):
    text = tmp_path / "text.txt"
    text.touch()
    with pytest.raises(ConfigError, match=r"transformers cannot load .*nothing[\s\S]*fix: give a folder"):
        capture_text(str(tmp_path / "nothing"), text, [0], tmp_path, tokens=10, device="cpu")
