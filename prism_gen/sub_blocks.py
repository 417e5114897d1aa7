"""The sub-blocks of the subblock estimator: their sizes, given or derived from the RoPE spectrum.

Owns the arithmetic behind estimator "auto" (method.md, The subblock estimator). Must not know tensors or kernels.
"""

from __future__ import annotations

import msgspec

from prism_gen.errors import UnsupportedError
from prism_gen.model import SUB_BLOCK_SIZES, Reduce, RopeSpec, SelectionSpec
from prism_gen.rope import attenuation, inv_freq, longest_seq_len

DEFAULT_TOKENS = 8  # of both sides of "subblock": the first that was measured, and cheaper than what "auto" may derive
# The energy that pooling must leave for "auto", halfway between the size that holds SmolLM2's perplexity and the next:
# of q 4 tokens (0.944) and 8 (0.884, half as much perplexity again), of k 8 (0.884; 4 gain nothing) and 16 (0.824).
LEAST_KEPT_Q, LEAST_KEPT_K = 0.91, 0.85


class SubBlocks(msgspec.Struct, frozen=True):
    """What the subblock estimator scores with. q, k: tokens a mean. reduce, exclude_forced: see SelectionSpec."""

    q: int
    k: int
    reduce: Reduce = "max"
    exclude_forced: bool = False


def sub_blocks(
    selection: SelectionSpec, rope: RopeSpec, head_dim: int, block_size: tuple[int, int]
) -> SubBlocks | None:
    """The sub-blocks of a selection at block_size (q, k) tokens; None for the paper's estimator.

    An explicit size wins. Estimator "auto" takes for each side the largest size that divides the block and of which
    pooling keeps enough energy, or the smallest.
    Raises: UnsupportedError where a size does not divide its block.
    """
    if selection.estimator == "paper":
        return None
    given = (selection.sub_block_q, selection.sub_block_k)
    sizes: list[int] = []
    for name, size, block, least in zip("qk", given, block_size, (LEAST_KEPT_Q, LEAST_KEPT_K), strict=True):
        if size is not None:
            chosen = size
        elif selection.estimator == "auto":
            chosen = _largest_that_keeps(rope, head_dim, block, least)
        else:
            chosen = DEFAULT_TOKENS
        if block % chosen:
            raise UnsupportedError(
                f"sub-blocks of {chosen} tokens in {name} blocks of {block}",
                exists=f"sub-blocks of {', '.join(map(str, SUB_BLOCK_SIZES))} tokens that divide the block",
                fix=f"give prism.sub_block_{name}, or choose another block size",
            )
        sizes.append(chosen)
    return SubBlocks(sizes[0], sizes[1], selection.reduce, selection.exclude_forced)


def estimator_label(scoring: SubBlocks | None) -> str:
    """What thresholds are found for: "paper", or "subblock 4x8 max" and the like."""
    if scoring is None:
        return "paper"
    excluded = ", forced excluded" if scoring.exclude_forced else ""
    return f"subblock {scoring.q}x{scoring.k} {scoring.reduce}{excluded}"


def kept_energy(rope: RopeSpec, head_dim: int, tokens: int) -> float:
    """The share of energy that the mean over `tokens` tokens keeps, all pairs being equally strong; 1 without RoPE.

    The mean of attenuation**2 over the dims of a head; dims that do not rotate keep theirs whole.
    """
    w = inv_freq(rope, seq_len=longest_seq_len(rope))
    kept = 2 * sum(left**2 for left in attenuation(w, tokens))
    return (kept + head_dim - 2 * len(w)) / head_dim


def _largest_that_keeps(rope: RopeSpec, head_dim: int, block: int, least: float) -> int:
    fitting = [size for size in SUB_BLOCK_SIZES if block % size == 0] or [SUB_BLOCK_SIZES[0]]
    return max((size for size in fitting if kept_energy(rope, head_dim, size) >= least), default=fitting[0])
