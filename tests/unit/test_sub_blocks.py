"""sub_blocks.py: given sizes win, "auto" follows the spectrum, and what a mean keeps."""

from __future__ import annotations

import cmath
from pathlib import Path
from typing import Any

import pytest

from prism_gen.errors import ConfigError, UnsupportedError
from prism_gen.model import RopeSpec, SelectionSpec
from prism_gen.model_config import load_model_config
from prism_gen.sub_blocks import LEAST_KEPT_K, LEAST_KEPT_Q, SubBlocks, kept_energy, sub_blocks

ROPE = RopeSpec(theta=100000.0, rotary_dim=64)


def chosen(head_dim: int = 64, rope: RopeSpec = ROPE, block: tuple[int, int] = (64, 64), **fields: Any) -> SubBlocks:
    found = sub_blocks(SelectionSpec(block_sizes=(block,), **fields), rope, head_dim, block)
    assert found is not None
    return found


def test_the_papers_estimator_has_none() -> None:
    assert sub_blocks(SelectionSpec(), ROPE, 64, (64, 64)) is None


def test_sizes_default_to_eight_and_those_given_win() -> None:
    assert chosen(estimator="subblock") == SubBlocks(8, 8)
    assert chosen(estimator="subblock", sub_block_q=4, sub_block_k=16) == SubBlocks(4, 16)
    assert chosen(estimator="auto", sub_block_q=16, sub_block_k=4) == SubBlocks(16, 4)
    assert chosen(estimator="subblock", reduce="mean", exclude_forced=True) == SubBlocks(8, 8, "mean", True)


@pytest.mark.parametrize("tokens", [4, 8, 16])
def test_kept_energy_is_that_of_a_turning_pair(tokens: int) -> None:
    """The mean of unit vectors that turn by w a token, squared, averaged over pairs and dims that do not turn."""
    rope = RopeSpec(theta=10000.0, rotary_dim=32)
    pairs = [abs(sum(cmath.exp(1j * t * 10000 ** (-p / 16)) for t in range(tokens)) / tokens) ** 2 for p in range(16)]
    assert kept_energy(rope, 48, tokens) == pytest.approx((2 * sum(pairs) + 16) / 48)


def test_a_model_without_rope_keeps_everything() -> None:
    rope = RopeSpec(variant="none", rotary_dim=0)
    assert kept_energy(rope, 64, 16) == 1
    assert chosen(rope=rope, estimator="auto") == SubBlocks(16, 16)


@pytest.mark.parametrize(("theta", "head_dim"), [(1e4, 128), (1e5, 64), (5e5, 128), (1e6, 128)])
def test_auto_takes_the_largest_sizes_that_keep_enough(theta: float, head_dim: int) -> None:
    rope = RopeSpec(theta=theta, rotary_dim=head_dim)
    found = chosen(head_dim, rope, estimator="auto")
    for size, least in ((found.q, LEAST_KEPT_Q), (found.k, LEAST_KEPT_K)):
        assert kept_energy(rope, head_dim, size) >= least
        assert size == 16 or kept_energy(rope, head_dim, 2 * size) < least


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("smollm2-135m-instruct", (4, 8)), ("llama-3.1-8b", (4, 16)), ("qwen3-8b", (4, 16)), ("qwen3-8b-yarn", (4, 16))],
)
def test_auto_of_published_models(name: str, sizes: tuple[int, int]) -> None:
    model = load_model_config(Path(__file__).parents[1] / "models" / f"{name}.json")
    assert chosen(model.head_dim, model.rope, (128, 128), estimator="auto") == SubBlocks(*sizes)


def test_auto_takes_sizes_that_divide_the_block() -> None:
    rope = RopeSpec(variant="none", rotary_dim=0)
    assert chosen(rope=rope, block=(24, 36), estimator="auto") == SubBlocks(8, 4)


def test_a_size_that_divides_no_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="sub_block_k is 16"):
        SelectionSpec(estimator="subblock", sub_block_k=16, block_sizes=((64, 64), (64, 24)))
    spec = SelectionSpec(estimator="auto")
    with pytest.raises(UnsupportedError, match="sub-blocks of 4 tokens in q blocks of 10"):
        sub_blocks(spec, ROPE, 64, (10, 64))
