"""benchmarks/accuracy on a tiny Llama in a GGUF file: the forward pass, the two ways to attend, the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.documents import load_documents
from benchmarks.accuracy.evaluate import evaluate
from benchmarks.accuracy.settings import Setting, parse_setting
from benchmarks.accuracy.smollm2 import SmolLM2
from prism_gen.errors import ConfigError
from prism_gen.model import SelectionSpec
from prism_gen.runtime.masked import dense_attention

HEADS, KV_HEADS, LAYERS, EMBEDDING, VOCAB, TOKENS = 6, 2, 2, 192, 96, 200
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=EMBEDDING,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCAB,
        rope_theta=1000.0,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def weights(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as llama.cpp stores it: q and k rows with the two dims of a pair beside each other."""
    path: Path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(EMBEDDING)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(llama.config.rms_norm_eps)
    writer.add_rope_freq_base(1000.0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = llama.state_dict()

    def add(name: str, value: Tensor) -> None:
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(value.float().numpy()))

    add("token_embd", state["model.embed_tokens.weight"])
    add("output_norm", state["model.norm.weight"])
    for layer in range(LAYERS):
        for theirs, ours in names.items():
            value = state[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours)
            if heads:
                rows, columns = value.shape
                value = value.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
            add(f"blk.{layer}.{ours}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    answers = np.zeros(TOKENS, dtype=bool)
    answers[150:160] = True
    np.savez(tmp_path / "needle.npz", ids=random.integers(0, VOCAB, TOKENS), answer_mask=answers)
    np.savez(tmp_path / "prose.npz", ids=np.tile(random.integers(0, VOCAB, TOKENS // 2), 2))
    return tmp_path


def dense(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention(q, k, v, softmax_scale=32**-0.5)


def test_the_forward_pass_is_that_of_transformers(llama: LlamaForCausalLM, weights: Path) -> None:
    """transformers computes in fp32 here, so with bf16 linear layers only the rounding differs."""
    ids = torch.randint(0, VOCAB, (2, 150), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = llama(input_ids=ids).logits[:, :-1].log_softmax(-1)
        expected = -logits.gather(2, ids[:, 1:, None])[..., 0]
        exact = SmolLM2(weights, CPU, linear_dtype=torch.float32).nll(ids, dense)
        rounded = SmolLM2(weights, CPU).nll(ids, dense)
    torch.testing.assert_close(exact, expected, atol=2e-4, rtol=1e-4)
    assert 1e-6 < float((rounded - expected).abs().mean()) < 0.05


SETTINGS = [
    Setting("paper", (SelectionSpec(block_sizes=((16, 16),), high_freq_threshold=0.5, low_freq_threshold=0.5),)),
    Setting("fine", (SelectionSpec(block_sizes=((16, 16),), estimator="subblock", sub_block_q=4, threshold=0.5),)),
    Setting("group", (SelectionSpec(block_sizes=((16, 16),), estimator="subblock", share="group", threshold=0.5),)),
    parse_setting("mixed", {"layers": [{"block_size": "16x16"}, None]}),
    Setting("all", (SelectionSpec(block_sizes=((16, 16),), estimator="subblock", threshold=1.0),)),
]


def test_both_ways_to_attend_record_the_same(weights: Path, docs: Path) -> None:
    model = SmolLM2(weights, CPU, linear_dtype=torch.float32)
    documents = load_documents(docs, [])
    records: dict[str, list[dict[str, Any]]] = {"reference": [], "masked": []}
    for backend, found in records.items():
        evaluate(model, documents, SETTINGS, backend=backend, bundle=None, at_once=2, emit=found.append)
    for one, other in zip(*records.values(), strict=True):
        for key in ("density_of_layers", "mass_of_layers", "increase_percent", "perplexity", "needle_nll"):
            if key in one:
                tolerance = 0.03 if key == "mass_of_layers" else 2e-3  # mass: sampled rows against all rows
                assert one[key] == pytest.approx(other[key], abs=tolerance, rel=1e-3)
    by_name = {(row["setting"], row["document"]): row for row in records["masked"] if row["what"] == "sparse"}
    assert by_name["all", "prose"]["density"] == 1
    assert by_name["all", "prose"]["mass"] == 1
    assert abs(by_name["all", "prose"]["increase_percent"]) < 1e-3
    first, second = by_name["mixed", "prose"]["density_of_layers"]
    assert first < second == 1
    assert by_name["mixed", "prose"]["selections"][1] is None
    assert by_name["fine", "needle"]["density"] < 0.9
    assert by_name["fine", "needle"]["mass"] < 1
    assert "needle_nll" in by_name["fine", "needle"]
    assert "needle_nll" not in by_name["fine", "prose"]


def test_the_command_appends_records_with_their_provenance(weights: Path, docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"paper": {"block_size": "16x16"}}))
    command = ["--weights", str(weights), "--docs", str(docs), "--doc", "prose", "--out", str(out)]
    fine = 'fine={"estimator": "subblock", "block_size": "16x16"}'
    assert main([*command, "--settings", str(settings), "--setting", fine, "--tokens", "100", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["section"] for line in lines] == ["environment", "accuracy", "accuracy", "accuracy"]
    assert [line.get("setting") for line in lines[1:]] == [None, "paper", "fine"]
    assert lines[0]["commit"]
    assert lines[3]["selection"]["estimator"] == "subblock"
    assert len(lines[3]["density_of_layers"]) == LAYERS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--doc": "novel"}, "no document novel"),
        ({"--tokens": "1000"}, "has 200 tokens"),
        ({"--weights": "missing.gguf"}, "does not exist"),
        ({"--setting": "x={"}, "a setting cannot be read"),
        ({"--setting": 'x={"estimator": "best"}'}, "x: estimator is"),
        ({"--setting": 'x={"layers": [null, null, null]}'}, "'x' has 3 layers"),
    ],
)
def test_mistakes_are_told(
    weights: Path, docs: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], words: str
) -> None:
    given = {"--weights": str(weights), "--docs": str(docs), "--out": str(docs / "out.jsonl"), "--device": "cpu"}
    given |= changes
    assert main([part for pair in given.items() for part in pair]) == 2
    assert words in capsys.readouterr().err


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma3")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"has no llama\.attention"):
        SmolLM2(tmp_path / "other.gguf", CPU)
