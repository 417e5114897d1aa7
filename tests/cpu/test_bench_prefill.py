"""The end-to-end benchmark as far as a CPU can try it: its model, the density it sets, the ratios it reports."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from benchmarks.prefill import Bench
from benchmarks.prefill_figures import Figure, share_for
from benchmarks.prefill_model import random_model
from prism_gen.model import SelectionSpec
from prism_gen.runtime import PrismAttention
from tests.cpu.small_cases import tensors


@pytest.mark.parametrize("density", [0.3, 0.6])
def test_a_layer_selects_the_density_that_is_asked_for(model, density):
    selection = SelectionSpec(density=1.0, block_sizes=((16, 8),), high_freq_dim=16, low_freq_dim=16)
    rope = msgspec.structs.replace(model.rope, rotary_dim=32)
    small = msgspec.structs.replace(model, num_q_heads=4, num_kv_heads=2, head_dim=32, rope=rope, selection=selection)
    attention = PrismAttention(None, small, backend="reference")
    qkv = tensors((512, 512, 16, 8), (1, 4, 2), dtype=torch.float32)
    thresholds, found = share_for(attention, qkv, density)
    assert found == pytest.approx(density, abs=0.03)
    selected = attention(*qkv, thresholds=thresholds, return_stats=True).stats.density.mean()
    assert float(selected) == pytest.approx(found)


def test_the_model_is_the_configs_in_bf16(tmp_path):
    config = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config.write_text(
        json.dumps({"model_type": "qwen3", "num_hidden_layers": 3, "vocab_size": 99, "head_dim": 16, **sizes})
    )
    made = random_model(config, torch.device("cpu"), num_layers=2)
    assert made.dtype == torch.bfloat16
    assert [len(made.model.layers), made.model.layers[0].self_attn.head_dim] == [2, 16]


def test_the_ceiling_is_what_free_attention_would_give(capsys):
    bench = Bench.__new__(Bench)
    bench.out, bench.facts = io.StringIO(), {}
    dense = Figure(ttft_ms=1000, attention_ms=800, layer_ms=80, passes=2, peak_gib=10)
    sparse = Figure(ttft_ms=300, attention_ms=100, layer_ms=10, passes=2, peak_gib=11)
    bench.line(4096, "sparse", sparse, dense)
    record = json.loads(bench.out.getvalue())
    assert (record["speedup"], record["attention_speedup"], record["ceiling"]) == (3.333, 8.0, 5.0)
    assert "   300.0     100.0     200   3.33   8.00   5.00" in capsys.readouterr().out
