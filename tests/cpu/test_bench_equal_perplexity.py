"""The comparison at equal perplexity as far as a CPU can try it: densities, the plan, the picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.equal_perplexity import __main__ as command
from benchmarks.equal_perplexity import computed, parts, plot
from benchmarks.equal_perplexity.layer_times import attention_of, make_layer, thresholds_for
from benchmarks.equal_perplexity.ways import Way, mixture_ways, single_ways
from prism_gen.errors import ConfigError
from prism_gen.model import SelectionSpec
from prism_gen.model_config import selection_spec

CPU = torch.device("cpu")
FINE = {"block_size": "16x16", "estimator": "subblock", "sub_block_q": 4, "sub_block_k": 8}
DENSITIES = {"paper, 16x16": {"at_percent": {"2": 0.6}}, "sub-blocks 4x8 max, 16x16": {"at_percent": {"2": 0.3}}}
PRISMS = ({"block_size": "16x16"}, FINE)


@pytest.fixture
def densities(tmp_path: Path) -> Path:
    path = tmp_path / "equal.json"
    path.write_text(json.dumps(DENSITIES))
    return path


@pytest.fixture
def small(model):
    rope = msgspec.structs.replace(model.rope, rotary_dim=32)
    selection = msgspec.structs.replace(model.selection, high_freq_dim=None, low_freq_dim=None)
    heads = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    return msgspec.structs.replace(model, rope=rope, selection=selection, **heads)


def test_each_way_has_its_density_at_the_percentage(densities):
    ways = single_ways(densities, 2.0, PRISMS)
    assert [(way.name, way.of, way.density) for way in ways] == [
        ("paper, 16x16", "paper, 16x16", 0.6),
        ("sub-blocks 4x8 max, 16x16", "sub-blocks 4x8 max, 16x16", 0.3),
    ]
    with pytest.raises(ConfigError, match=r"no density of 'paper, 16x16' at \+4 %"):
        single_ways(densities, 4.0, PRISMS)


@pytest.mark.parametrize("prism", PRISMS, ids=["paper", "subblock"])
def test_thresholds_are_tuned_to_the_density(small, prism):
    way = Way("x", selection_spec(prism), 0.4, "x")
    attention = attention_of(None, small, way, CPU)
    layer = make_layer(small, 512, CPU)
    thresholds, found = thresholds_for(attention, layer, 0.4)
    assert found == pytest.approx(0.4, abs=0.02)
    density = attention(*layer, thresholds=thresholds, return_stats=True).stats.density.mean()
    assert float(density) == pytest.approx(found)


def test_the_whole_plan_runs_and_is_drawn(small, densities, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "DENSE", SelectionSpec(block_sizes=((16, 16),)))
    fine = msgspec.to_builtins(selection_spec(FINE))
    judged = {"what": "sparse", "setting": "x", "selections": [fine, fine, None, fine]}
    lines = [{**judged, "density_of_layers": densities} for densities in ([0.1, 0.2, 1, 0.3], [0.3, 0.2, 1, 0.1])]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert parts.main([str(tmp_path / "judged.jsonl"), "--out", str(tmp_path)]) == 0
    ways = [*single_ways(densities, 2.0, PRISMS), *mixture_ways(tmp_path / "x.parts.json")]
    records = [record for tokens in (256, 384) for record in command.compare(None, small, ways, tokens, CPU)]
    names = ["dense", "paper, 16x16", "sub-blocks 4x8 max, 16x16", "sub-blocks 4x8 max, 16x16", "mixture x"]
    assert [record["way"] for record in records] == names * 2
    dense, paper, fine_alone, part, mixture = records[:5]
    assert set(dense["dense"]) == {"math", "attend"}
    assert mixture["ms"] == pytest.approx((3 * part["ms"] + dense["ms"]) / 4, abs=1e-4)
    assert mixture["density"] == pytest.approx(0.4)
    assert set(paper["stages_ms"]) == {"pool", "select", "attend"}
    out = tmp_path / "found.jsonl"
    out.write_text(
        "".join(json.dumps(record) + "\n" for record in [{"section": "environment", "percent": 2}, *records])
    )
    shutil.copy(tmp_path / "x.parts.json", tmp_path / "y.parts.json")
    again = ["--mixture", str(tmp_path / "y.parts.json"), "--out", str(tmp_path / "computed.jsonl")]
    assert computed.main([str(out), *again]) == 0
    first = json.loads((tmp_path / "computed.jsonl").read_text().splitlines()[1])
    stages = fine_alone["stages_ms"]
    fine_ms = stages["pool"] + stages["select"] + 0.2 * stages["attend"] / fine_alone["density"]
    assert first["ms"] == pytest.approx((3 * fine_ms + dense["ms"]) / 4, abs=1e-4)
    assert first["computed"]
    drawn = ["--picture", str(tmp_path / "equal.png"), "--title", "mixture y=mixture, computed"]
    drawn += ["--without", "paper, 16x16"]
    assert plot.main([str(out), str(tmp_path / "computed.jsonl"), *drawn]) == 0
    assert (tmp_path / "equal.png").read_bytes()[:4] == b"\x89PNG"
    table = capsys.readouterr().out
    assert "| sub-blocks 4x8 max, 16x16 |" in table
    assert "paper" not in table
    assert "| **mixture x** |" in table
    assert "| **mixture, computed** |" in table
