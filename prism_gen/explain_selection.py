"""What `explain` says of how blocks are scored and chosen: the rule of either estimator, and the sizes of sub-blocks.

Owns that text. Must not decide anything: sizes and energies come from sub_blocks.py.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from prism_gen.model import SUB_BLOCK_SIZES, ModelSpec
from prism_gen.sub_blocks import LEAST_KEPT_K, LEAST_KEPT_Q, SubBlocks, kept_energy, sub_blocks


def print_selection(model: ModelSpec, console: Console) -> None:
    """The rule that chooses blocks. Raises: UnsupportedError as sub_blocks does."""
    selection = model.selection
    sizes = ", ".join(f"{q}x{k}" for q, k in selection.block_sizes)
    always = [
        *(["key block 0 (force_sink)"] if selection.force_sink else []),
        *(["the diagonal blocks (force_recent)"] if selection.force_recent else []),
    ]
    console.print("\n[bold]Selection[/bold]")
    kept = f"Always kept: {' and '.join(always) or 'nothing'}."
    if selection.estimator == "paper":
        console.print(
            f"Blocks of q x k tokens: {sizes}. Per row of q blocks and per band, the fewest key blocks whose"
            f" probabilities sum to {selection.high_freq_threshold:g} (high) and {selection.low_freq_threshold:g}"
            f" (low); the union of both is attended to. {kept}"
        )
        return
    of = "of what the always kept blocks leave" if selection.exclude_forced else "in all"
    console.print(
        f"Blocks of q x k tokens: {sizes}. Per row of q blocks, the fewest key blocks whose probabilities sum to"
        f" {selection.threshold:g} {of}. {kept}"
    )
    for pair in selection.block_sizes:
        fine = sub_blocks(selection, model.rope, model.head_dim, pair)
        if fine is not None:
            console.print(_rule(model, pair, fine))
    _print_kept_energy(model, console)


def _rule(model: ModelSpec, block_size: tuple[int, int], fine: SubBlocks) -> str:
    rows = block_size[0] // fine.q * model.heads_per_list
    over = f"the {rows} sub-rows" + (f" of the {model.heads_per_list} heads" if model.heads_per_list > 1 else "")
    return (
        f"Estimator {model.selection.estimator} at {block_size[0]}x{block_size[1]}: means of {fine.q} q tokens attend"
        f" to means of {fine.k} k tokens; a block's probability is the {fine.reduce} over {over} of a query block."
    )


def _print_kept_energy(model: ModelSpec, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("sub-block", "energy kept", 'fine enough for "auto"'):
        table.add_column(name, justify="right" if name != 'fine enough for "auto"' else "left")
    for tokens in SUB_BLOCK_SIZES:
        kept = kept_energy(model.rope, model.head_dim, tokens)
        sides = [side for side, least in (("q", LEAST_KEPT_Q), ("k", LEAST_KEPT_K)) if kept >= least]
        table.add_row(str(tokens), f"{kept:.3f}", " and ".join(sides) or "neither")
    console.print("\n[bold]Sub-blocks: what their mean keeps of the energy of this model's RoPE pairs[/bold]")
    console.print(table)
    console.print(f'"auto" takes the largest that keeps {LEAST_KEPT_Q:g} of q and {LEAST_KEPT_K:g} of k.')
