"""The end-to-end benchmark as far as a CPU can try it: its model, the density it sets, the ratios it reports."""

from __future__ import annotations

import io
import json
import time

import msgspec
import pytest
import torch

pytest.importorskip("transformers", minversion="5.4")
from torch.nn.attention import SDPBackend

import prism_gen
from benchmarks import prefill, prefill_figures
from benchmarks.prefill import Bench
from benchmarks.prefill_figures import Figure, share_for
from benchmarks.prefill_model import random_model, torch_dense
from prism_gen.model import SelectionSpec
from prism_gen.runtime import PrismAttention
from tests.cpu.small_cases import tensors
from tests.cpu.tiny_transformers import tiny


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


class HostEvent:
    """torch.cuda.Event on the host's clock."""

    def __init__(self, enable_timing):
        self.at_s = None

    def record(self):
        self.at_s = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at_s - self.at_s)


def test_the_whole_plan_runs(monkeypatch, capsys):
    """On a CPU: torch's plain attention under the names of the GPU's kernels, and the reference in place of ours."""
    model = tiny("qwen3").bfloat16()
    for name, stand_in in {"Event": HostEvent, "synchronize": lambda *_: None}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 30)
    plain = torch_dense(SDPBackend.MATH)
    # The second differs from the first by more than rounding does, as two kernels in bf16 may.
    kernels = {"cudnn": plain, "flash2": lambda qkv, scale: plain(qkv, scale) * 1.01}
    for module in (prefill, prefill_figures):
        monkeypatch.setattr(module, "dense_kernels", lambda: kernels)
    monkeypatch.setattr(prefill, "CHOOSING_TOKENS", 128)
    monkeypatch.setattr(prefill, "load_bundle", lambda path: None)
    enable = prism_gen.enable

    def by_reference(model, bundle, *, selection, min_keys):
        selection = msgspec.structs.replace(selection, block_sizes=((16, 8),))
        return enable(model, backend="reference", selection=selection, min_keys=min_keys)

    monkeypatch.setattr(prism_gen, "enable", by_reference)
    out = io.StringIO()
    bench = Bench(model, None, out, {"model": "tiny"}, estimator="paper", seconds=0.01)
    bench.run([96, 128], [0.5])
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [record["what"] for record in records] == ["dense_choice", "all_selected_against_dense", *["prefill"] * 4]
    assert [record["variant"].split()[0] for record in records[2:]] == [records[0]["chosen"], "sparse"] * 2
    for record in records[2:]:
        assert 0 < record["attention_ms"] < record["ttft_ms"]
    assert records[3]["density"] == pytest.approx(0.5, abs=0.1)
    assert set(records[3]["stages"]) == {"pool", "select", "attend"}
    assert len(capsys.readouterr().out.splitlines()) == 5
