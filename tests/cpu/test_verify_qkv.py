"""`verify --qkv`: layers tried on a file of real tensors, and files that fit no model."""

from __future__ import annotations

import pytest
import torch

from prism_gen.errors import ConfigError
from prism_gen.runtime import PrismAttention
from prism_gen.runtime.qkv_file import QKV, write_qkv
from prism_gen.verify.command import verify
from prism_gen.verify.layers import file_trials

CPU = torch.device("cpu")


@pytest.fixture
def attention(model):
    return PrismAttention(None, model, backend="reference")


def test_the_sample_passes(attention, sample_path):
    (trial,) = file_trials(attention, sample_path, CPU)
    found = trial.check()
    assert (trial.case, found.problems) == ("smollm2_pycode_L14_4k.safetensors-kv0", [])


def test_a_wrong_answer_on_the_sample_is_found(attention, sample_path, monkeypatch):
    right = attention.backend.attend

    def wrong(*args, **options):
        out, lse = right(*args, **options)
        return out * 1.05, lse

    object.__setattr__(attention.backend, "attend", wrong)
    (trial,) = file_trials(attention, sample_path, CPU)
    assert trial.check().problems


def test_each_kv_head_is_a_trial(attention, tmp_path):
    shapes = ((2, 90, 6, 64), (2, 120, 2, 64), (2, 120, 2, 64))
    write_qkv(tmp_path / "two.safetensors", QKV(*(torch.randn(shape) for shape in shapes), 3))
    trials = list(file_trials(attention, tmp_path / "two.safetensors", CPU))
    assert [trial.case for trial in trials] == ["two.safetensors-kv0", "two.safetensors-kv1"]
    assert not any(trial.check().problems for trial in trials)


def test_a_file_of_another_model_is_refused(make_bundle, tmp_path):
    x = torch.randn(1, 64, 4, 32)
    write_qkv(tmp_path / "other.safetensors", QKV(x, x, x, None))
    with pytest.raises(ConfigError, match=r"4 q and 4 kv heads of 32 dims\n  available: smollm2: 9 and 3 of 64"):
        verify(make_bundle(), backend="reference", qkv=[tmp_path / "other.safetensors"], case_timeout_s=1, console=None)
