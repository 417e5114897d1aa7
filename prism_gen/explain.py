"""What prism-gen will do for a model, in words, tables and bars: layers, bands and why, kernels and which exist.

Owns the text of `explain`. Must not decide anything: every fact comes from the specs, rope.py, or the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prism_gen.console import print_tuning
from prism_gen.errors import ConfigError
from prism_gen.explain_selection import print_selection
from prism_gen.manifest import Manifest
from prism_gen.model import ModelSpec, RopeSpec
from prism_gen.rope import (
    ATTENUATED_LOSS,
    Bands,
    attenuation,
    bands,
    governing_block_size,
    inv_freq,
    longest_seq_len,
    pair_dims,
)
from prism_gen.spec import KernelSpec

BAR_CELLS = 8  # an eighth block is 1/64 of full strength; bars of two block sizes fit 80 columns
_EIGHTHS = " ▏▎▍▌▋▊▉"
_BAND_STYLES = {"high": "red", "both": "yellow", "low": "green", "neither": "dim"}
MISSING = "missing"
_FAMILY_WORK = {
    "pool": "means and energies",
    "rotate": "RoPE and means",
    "select": "scores, chosen blocks",
    "subpool": "means of sub-blocks",
    "score": "attention among means, chosen blocks",
    "attend": "sparse attention",
}


def explain(
    model: ModelSpec,
    kernels: Sequence[KernelSpec],
    *,
    layer: int | None,
    bundle: Manifest | None,
    console: Console,
) -> None:
    """Prints what the model, or one layer of it, needs and why.

    layer: index from 0, or None for the whole model. bundle: whose kernels exist, or None where none was given.
    Raises: ConfigError if there is no such layer, UnsupportedError as rope.bands and sub_blocks do.
    """
    if layer is not None and not 0 <= layer < model.num_layers:
        asked = f"{model.name} has no layer {layer}"
        raise ConfigError(asked, exists=f"layers 0 to {model.num_layers - 1}", fix="choose one of these")
    _print_model(model, console)
    _print_layers(model, layer, console)
    if layer is not None and model.layer_kinds[layer] != "full":
        return
    print_selection(model, console)
    if model.selection.estimator == "paper":
        splits = {pair: _bands_of(model, pair) for pair in model.selection.block_sizes}
        _print_spectrum(model, splits, console)
        for pair, split in splits.items():
            _print_reasons(model, pair, split, console)
    _print_kernels(kernels, bundle, console)


def _bands_of(model: ModelSpec, block_sizes: tuple[int, int]) -> Bands:
    return bands(model.rope, model.head_dim, model.selection, governing_block_size(block_sizes))


def _frequencies(rope: RopeSpec) -> tuple[float, ...]:
    return inv_freq(rope, seq_len=longest_seq_len(rope))


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def _print_model(model: ModelSpec, console: Console) -> None:
    rope = model.rope
    scale = f"{model.softmax_scale:.6g}" if model.softmax_scale is not None else f"1/sqrt({model.head_dim})"
    console.print(
        f"[bold]{escape(model.name)}[/bold]: {model.num_q_heads} q heads, {model.num_kv_heads} kv heads "
        f"(group_size {model.group_size}), head_dim {model.head_dim}, {model.dtype}, softmax_scale {scale}"
    )
    layout = "(2p, 2p+1), interleaved" if rope.interleaved else f"(p, p+{rope.rotary_dim // 2}), half-split"
    scaling = f", factor {rope.factor:g}" if rope.factor is not None else ""
    console.print(
        f"RoPE: {rope.variant}, theta {rope.theta:g}{scaling}; {rope.rotary_dim} of {model.head_dim} dims rotate, "
        f"pair p is dims {layout}"
    )
    if (longest := longest_seq_len(rope)) is not None:
        console.print(f"Its frequencies depend on the length; those below are for {longest} tokens.")


def _print_layers(model: ModelSpec, layer: int | None, console: Console) -> None:
    meaning = {
        "full": "full attention: Prism selects blocks",
        "sliding": "sliding window: few keys to choose from, so Prism leaves it to the model's own attention",
    }
    if layer is not None:
        more = "" if (kind := model.layer_kinds[layer]) == "full" else " and needs no kernel"
        console.print(f"Layer {layer} of {model.num_layers}: {meaning[kind]}{more}.")
        return
    for name, text in meaning.items():
        layers = [i for i, kind in enumerate(model.layer_kinds) if kind == name]
        if layers:
            console.print(f"Layers {_ranges(layers)} ({len(layers)} of {model.num_layers}): {text}.")


def _print_spectrum(model: ModelSpec, splits: dict[tuple[int, int], Bands], console: Console) -> None:
    """One row per RoPE pair; neighbours that pooling leaves whole and that share their bands share a row."""
    ascii_only = console.options.ascii_only
    sizes = sorted({size for pair in splits for size in pair})
    same = len(set(splits.values())) == 1
    columns = {"band": next(iter(splits.values()))} if same else {f"band {_times(p)}": s for p, s in splits.items()}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("pair", "dims", "tokens a turn"):
        table.add_column(name, justify="right")
    for size in sizes:
        table.add_column(f"left after {size}")
    for name in columns:
        table.add_column(name)
    w = _frequencies(model.rope)
    left = list(zip(*(attenuation(w, size) for size in sizes), strict=True))
    members = [tuple(_member(split, pair_dims(model.rope, p)) for split in columns.values()) for p in range(len(w))]
    first = 0
    for p in range(len(w)):
        is_whole = p + 1 < len(w) and min(*left[p], *left[p + 1]) >= 0.9995  # both print as 1.000
        if is_whole and members[p] == members[p + 1]:
            continue
        dims = sorted(d for pair in range(first, p + 1) for d in pair_dims(model.rope, pair))
        bars = (_bar(x, ascii_only) for x in left[p])
        cells = (_span(first, p), _ranges(dims), _tokens(w[first], first < p))
        table.add_row(*cells, *bars, *(_styled(member) for member in members[p]))
        first = p + 1
    if model.rope.rotary_dim < model.head_dim:
        span = _span(model.rope.rotary_dim, model.head_dim - 1)
        member = [_styled(_member(split, (model.rope.rotary_dim,))) for split in columns.values()]
        table.add_row("-", span, "never", *(_bar(1.0, ascii_only) for _ in sizes), *member)
    _heading(console, "Spectrum: what the mean over a block of tokens leaves of each RoPE pair")
    console.print(table)


def _print_reasons(model: ModelSpec, block_sizes: tuple[int, int], split: Bands, console: Console) -> None:
    selection, size = model.selection, governing_block_size(block_sizes)
    w = _frequencies(model.rope)
    left = attenuation(w, size)
    nulls = [p for p, x in enumerate(w) if x * size >= 2 * math.pi]
    lost = [p for p, a in enumerate(left) if 1 - a > ATTENUATED_LOSS and p not in nulls]
    whole = [p for p in range(len(w)) if p not in nulls and p not in lost]
    _heading(console, f"Bands for blocks of {_times(block_sizes)}")
    if len(set(block_sizes)) > 1:
        console.print(f"The larger block governs: a pair is lost where either mean loses it, first at {size} tokens.")
    most = max((left[p] for p in nulls), default=0.0)
    texts = (
        (nulls, f"turn at least once in {size} tokens: pooling leaves at most {most:.2f} of each"),
        (lost, "are weakened by more than the rounding of bf16 (1/256)"),
        (whole, "come through whole"),
    )
    for pairs, text in texts:
        if pairs:
            console.print(f"  pairs {_ranges(pairs)} {text}")
    rules = {
        "paper": ("the paper's 1/2 of head_dim", "the paper's 3/4 of head_dim"),
        "spectrum": (
            "the spectrum: every weakened pair, rounded up to 16 dims",
            "the spectrum: every pair that turns less than once, rounded down to 16 dims",
        ),
    }[selection.bands]
    explicit = (selection.high_freq_dim, selection.low_freq_dim)
    dims_of = (split.high_dims, split.low_dims)
    for name, dims, given, rule in zip(("high", "low"), dims_of, explicit, rules, strict=True):
        source = f"prism.{name}_freq_dim" if given is not None else rule
        console.print(f"  [{_BAND_STYLES[name]}]{name} band[/]: {len(dims)} dims, {_ranges(dims)}; from {source}")


def _print_kernels(kernels: Sequence[KernelSpec], bundle: Manifest | None, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kernel", "exists", "what it computes"):
        table.add_column(name, no_wrap=name == "kernel")
    states = ["?" if bundle is None else _state(spec, bundle) for spec in kernels]
    for spec, state in zip(kernels, states, strict=True):
        shown = f"[red]{state}[/red]" if state == MISSING else state
        table.add_row(spec.name, shown, _FAMILY_WORK.get(spec.family, spec.family))
    _heading(console, f"Kernels: {len(kernels)}, the same for every full-attention layer")
    console.print(table)
    if bundle is None:
        console.print("Name a bundle with --bundle to see which of them exist.")
        return
    if missing := states.count(MISSING):
        command = "python -m prism_gen build --model-config CONFIG.json --out BUNDLE"
        console.print(f"[red]{missing} missing[/red]. Build them: {command}")
    else:
        console.print("[green]All of them exist.[/green]")
    print_tuning(console, bundle)


def _state(spec: KernelSpec, bundle: Manifest) -> str:
    """Whether a bundle holds a kernel for the same problem: with the default schedule, or one that was measured."""
    wanted = (spec.family, spec.arch, spec.problem)
    same = [entry.key for entry in bundle.kernels if (entry.spec.family, entry.arch, entry.spec.problem) == wanted]
    return MISSING if not same else "yes" if spec.key in same else "yes, tuned"


def _member(split: Bands, dims: Sequence[int]) -> str:
    in_high, in_low = set(dims) <= set(split.high_dims), set(dims) <= set(split.low_dims)
    return {(True, True): "both", (True, False): "high", (False, True): "low"}.get((in_high, in_low), "neither")


def _styled(member: str) -> str:
    return f"[{_BAND_STYLES[member]}]{member}[/]"


def _bar(value: float, ascii_only: bool) -> str:
    cells, eighths = divmod(round(value * BAR_CELLS * 8), 8)
    bar = "#" * cells if ascii_only else "█" * cells + _EIGHTHS[eighths].strip()
    return f"{value:.3f} {bar:<{BAR_CELLS}}"


def _tokens(w: float, is_run: bool) -> str:
    tokens = 2 * math.pi / w
    return (">= " if is_run else "") + (f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.1f}")


def _times(block_sizes: tuple[int, int]) -> str:
    return f"{block_sizes[0]}x{block_sizes[1]}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as runs: 0-3, 8."""
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i + 1 == len(numbers) or numbers[i + 1] != n + 1]
    return ", ".join(_span(a, b) for a, b in zip(starts, ends, strict=True))
