"""The GPU check's own judgement: the reference passes, and each kind of wrong kernel is caught, on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prism_gen.runtime.reference_rotate import rotate
from prism_gen.verify import numerics, pooling, rotation, selection
from prism_gen.verify.cases import Case
from prism_gen.verify.kernels import Kernel, of_family
from prism_gen.verify.reference_kernels import reference_kernels
from prism_gen.verify.report import Report
from prism_gen.verify.select_cases import SelectCase
from tools.check import arguments, graph

CPU = torch.device("cpu")
KERNELS = reference_kernels()
POOL = next(kernel for kernel in KERNELS if kernel.name.startswith("pool-bf16-d64"))
ROTATE = of_family(KERNELS, "rotate")[0]
SELECT = of_family(KERNELS, "select")[0]
ATTEND = next(kernel for kernel in KERNELS if kernel.name == "attend-bf16-d64-b128x64")
ATTEND_CASE = Case(200, 333, batch=2, mask="scattered")
SELECT_CASE = SelectCase(1000, 1100, batch=2)

Defect = Callable[..., None]


def broken(kernel: Kernel, defect: Defect) -> Kernel:
    """The kernel, with `defect(*arguments)` run behind each launch."""

    def launch(*given: Any) -> None:
        kernel.launch(*given)
        defect(*given)

    return replace(kernel, launch=launch)


def around(view: Tensor) -> Tensor:
    """The whole storage behind a view: what a kernel with a wrong bound could touch."""
    return torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())


def write_past_the_end(view: Tensor) -> None:
    last = view.storage_offset() + sum((n - 1) * s for n, s in zip(view.shape, view.stride(), strict=True))
    around(view)[last + 1] = 0


def write_before_the_start(view: Tensor) -> None:
    around(view)[view.storage_offset() - 1] = 0


def attend_defect(change: Callable[[dict[str, Any]], None]) -> Defect:
    names = ("q", "k", "v", "out", "lse", "block_indices", "block_counts", "softmax_scale", "tile_counter")
    return lambda *given: change(dict(zip(names, given, strict=True)))


ATTEND_DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "scaled": (lambda a: a["out"].mul_(1.02), "error"),
    "one-value": (lambda a: a["out"][1, 150, 3, 63].add_(0.1), "error"),
    "nan": (lambda a: a["out"][0, 0, 0, 0].fill_(float("nan")), "error"),
    "rows-swapped": (lambda a: a["out"].copy_(a["out"].flip(2)), "error"),
    "past-the-end": (lambda a: write_past_the_end(a["out"]), "wrote outside out"),
    "before-the-start": (lambda a: write_before_the_start(a["out"]), "wrote outside out"),
    "lse-base-2": (lambda a: a["lse"].mul_(1.4427), "lse is off"),
    "lse-of-empty-rows": (lambda a: a["lse"].nan_to_num_(neginf=-1e30), "not -inf exactly"),
    "lse-past-the-end": (lambda a: write_past_the_end(a["lse"]), "wrote outside lse"),
    "counter-left": (lambda a: a["tile_counter"].fill_(7), "tile_counter was left at 7"),
}


@pytest.mark.parametrize("name", ATTEND_DEFECTS)
def test_a_wrong_attend_is_caught(name: str) -> None:
    change, problem = ATTEND_DEFECTS[name]
    found = numerics.check_attend(broken(ATTEND, attend_defect(change)), ATTEND_CASE, CPU)
    assert any(problem in text for text in found.problems), found.problems


def test_an_attend_whose_bits_change_is_caught() -> None:
    bits = iter(range(100))
    defect = attend_defect(lambda a: a["out"][0, 0, 0, 0].mul_(1.0 + 0.01 * next(bits)))
    found = numerics.check_attend(broken(ATTEND, defect), Case(65, 65), CPU)
    assert "two launches differ" in found.problems


def test_an_attend_that_ignores_the_causal_mask_is_caught() -> None:
    def without_mask(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *rest: Any) -> None:
        longer = torch.cat([q, torch.zeros_like(k[:, : k.shape[1] - q.shape[1]]).repeat_interleave(2, 2)], 1)
        ATTEND.launch(longer[:, :1].expand_as(q), k, v, out, *rest)

    found = numerics.check_attend(replace(ATTEND, launch=without_mask), Case(200, 333, mask="all"), CPU)
    assert found.problems


def test_a_missing_write_is_caught() -> None:
    def only_whole_blocks(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *rest: Any) -> None:
        whole = torch.full_like(out, float("nan"))
        ATTEND.launch(q, k, v, whole, *rest)
        out[:, :128] = whole[:, :128]

    found = numerics.check_attend(replace(ATTEND, launch=only_whole_blocks), Case(129, 129), CPU)
    assert any("error inf" in text for text in found.problems), found.problems


def test_reading_behind_the_last_key_is_caught() -> None:
    def reads_one_more(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> None:
        wider = (x.as_strided((x.shape[0], x.shape[1] + 1, *x.shape[2:]), x.stride()) for x in (q, k, v))
        q_more, k_more, v_more = wider
        out = torch.empty_like(q_more)
        ATTEND.launch(q_more, k_more, v_more.cumsum(1).to(v.dtype), out, None, *rest[2:])
        rest[0].copy_(out[:, : q.shape[1]] * v_more[:, -1:].repeat_interleave(2, 2))

    found = numerics.check_attend(replace(ATTEND, launch=reads_one_more), Case(65, 65, lse=False), CPU)
    assert any("error inf" in text for text in found.problems), found.problems


def pool_tail_by_block_size(q: Tensor, _k: Tensor, q_mean: Tensor, *_: Any) -> None:
    q_mean[:, :, -1] *= (q.shape[1] % 128) / 128


def pool_in_another_order(q: Tensor, k: Tensor, q_mean: Tensor, *_: Any) -> None:
    q_mean.copy_(torch.stack([block.float().mean(1) for block in q.split(128, dim=1)], dim=2))


POOL_DEFECTS: dict[str, tuple[Defect, str]] = {
    "tail-by-block-size": (pool_tail_by_block_size, "q_mean is off"),
    "another-order": (pool_in_another_order, "q_mean has other bits"),
    "bands-swapped": (lambda *a: a[5].copy_(a[5][..., [1, 0, 2]].clone()), "k_energy is off"),
    "energy-past-the-end": (lambda *a: write_past_the_end(a[3]), "wrote outside q_energy"),
    "mean-before-the-start": (lambda *a: write_before_the_start(a[4]), "wrote outside k_mean"),
    "unwritten": (lambda *a: a[4][..., -1].fill_(float("nan")), "k_mean is off"),
}


@pytest.mark.parametrize("name", POOL_DEFECTS)
def test_a_wrong_pool_is_caught(name: str) -> None:
    defect, problem = POOL_DEFECTS[name]
    found = pooling.check_pool(broken(POOL, defect), Case(300, 300), CPU)
    assert any(problem in text for text in found.problems), found.problems


def restart_at_each_chunk(*given: Any) -> None:
    k, k_mean, start = given[1], given[4], given[8]
    POOL.launch(*given[:8], start // 128 * 128, None, None)
    if start % 128:
        k_mean[:, :, start // 128] += float(k[0, 0, 0, 0])


CHUNK_DEFECTS: dict[str, tuple[Defect, str]] = {
    "forgets-the-tail": (restart_at_each_chunk, "mean differs from one launch"),
    "past-the-last-block": (lambda *a: a[4][:, :, -1].fill_(0.0), "mean was written past the last block"),
    "tail-past-the-end": (lambda *a: a[10] is not None and write_past_the_end(a[10]), "wrote outside a tail"),
}


@pytest.mark.parametrize("name", CHUNK_DEFECTS)
def test_a_wrong_append_is_caught(name: str) -> None:
    defect, problem = CHUNK_DEFECTS[name]
    found = pooling.check_chunks(broken(POOL, defect), Case(300, 300), CPU, block_size=128)
    assert any(problem in text for text in found.problems), found.problems


INDICES, COUNTS, PROBS = 14, 15, 17  # places among select's arguments


def drop_last_block(*given: Any) -> None:
    indices, counts = given[INDICES], given[COUNTS]
    row = tuple((counts > 1).nonzero()[-1].tolist())
    counts[row] -= 1
    indices[row][counts[row]] = 0x5A5A5A5A


def add_behind_the_count(*given: Any) -> None:
    given[INDICES][0, 0, 0, -1] = 3


def swap_two(*given: Any) -> None:
    indices, counts = given[INDICES], given[COUNTS]
    row = tuple((counts > 1).nonzero()[-1].tolist())
    indices[row][:2] = indices[row][:2].flip(0).clone()


def shift_probs(*given: Any) -> None:
    if given[PROBS] is not None:
        given[PROBS][..., 0].add_(1 << 20)


def only_with_probs(*given: Any) -> None:
    if given[PROBS] is None:
        drop_last_block(*given)


SELECT_DEFECTS: dict[str, tuple[Defect, str]] = {
    "a-block-too-few": (drop_last_block, "identical scores"),
    "behind-the-count": (add_behind_the_count, "behind a row's count"),
    "not-rising": (swap_two, "do not rise"),
    "probs-off": (shift_probs, "probs are off"),
    "depends-on-probs": (only_with_probs, "without probs"),
    "past-the-end": (lambda *a: write_past_the_end(a[COUNTS]), "wrote outside the lists"),
}


@pytest.mark.parametrize("name", SELECT_DEFECTS)
def test_a_wrong_select_is_caught(name: str) -> None:
    defect, problem = SELECT_DEFECTS[name]
    found = selection.check_select(broken(SELECT, defect), SELECT_CASE, CPU)
    assert any(problem in text for text in found.problems), found.problems


@pytest.mark.parametrize("bad", [-1, 1000], ids=str)
def test_indices_out_of_range_are_refused_before_they_are_used(bad: int) -> None:
    kernel = broken(SELECT, lambda *a: a[INDICES][0, 0, 0, :1].fill_(bad))
    with pytest.raises(ValueError, match="block_indices lie in"):
        selection.check_select(kernel, SELECT_CASE, CPU)


def test_a_selection_of_other_scores_is_caught_although_it_fits_its_own() -> None:
    def scores_of_scaled_means(*given: Any) -> None:
        q_mean, *rest = given
        SELECT.launch(q_mean * 1.1, *rest)

    found = selection.check_select(replace(SELECT, launch=scores_of_scaled_means), SelectCase(4096, 4096), CPU)
    assert any("probs are off" in text for text in found.problems)
    assert any("away from any cut-off" in text for text in found.problems)
    assert not any("identical scores" in text for text in found.problems)


def test_a_pipeline_that_does_not_repeat_is_caught(tmp_path: Path) -> None:
    def run(defect: Callable[[dict[str, Any]], None]) -> int:
        report = Report("graph", tmp_path / "out.jsonl", CPU)
        kernels = [k for k in KERNELS if k.spec.family != "attend"] + [broken(ATTEND, attend_defect(defect))]
        graph.run(kernels, report, quick=True)
        assert report.written == 1
        return report.failed

    late = iter(range(1000))
    assert run(lambda _: None) == 0
    assert run(lambda a: a["lse"][0, 0, 0].add_(float(next(late) == 9))) == 1


def test_an_export_that_accepts_wrong_arguments_or_names_none_is_caught(tmp_path: Path) -> None:
    """Stands in for a compiled pool: refuses other dtypes by name, everything else badly."""

    def launch(q: Tensor, k: Tensor, q_mean: Tensor, q_energy: Tensor, *_: Any) -> None:
        for name, tensor, dtype in (("q", q, torch.bfloat16), ("q_mean", q_mean, torch.float32)):
            if tensor.dtype != dtype:
                raise TypeError(f"{name} has another dtype")
        if q_energy.dim() != 4:
            raise ValueError("bad shape")

    kernel = replace(POOL, launch=launch)
    given = arguments.ARGUMENTS["pool"](kernel, CPU)
    problems = {
        f"{mistake.argument}-{mistake.label}": arguments.check_mistake(kernel, given, mistake).problems
        for mistake in arguments.MISTAKES["pool"]
    }
    assert problems["q-dtype"] == problems["q_mean-dtype"] == []
    assert problems["q_energy-dtype"] == ["was accepted"]
    assert problems["q_energy-dims"] == ["the error does not name q_energy: bad shape"]
    assert not arguments.check_valid(kernel, given).problems


def rotated_in_fp32(q: Tensor, _k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, *_: Any) -> None:
    q_out.copy_(rotate(q.float(), cos.float(), sin.float(), interleaved=False))


ROTATE_DEFECTS: dict[str, tuple[Defect, str]] = {
    "rounded-once": (rotated_in_fp32, "q_out has other bits"),
    "k-past-the-end": (lambda *a: write_past_the_end(a[5]), "wrote outside k_out"),
    "pools-before-rope": (lambda *a: POOL.launch(a[0], a[1], *a[6:]), "q_mean has other bits"),
    "forgets-the-tail": (lambda *a: a[-1].zero_(), "tail_out is not"),
}


@pytest.mark.parametrize("name", ROTATE_DEFECTS)
def test_a_wrong_rotation_is_caught(name: str) -> None:
    defect, problem = ROTATE_DEFECTS[name]
    found = rotation.check_rotate(broken(ROTATE, defect), Case(300, 300), CPU, start=100, block_sizes=(128, 64))
    assert any(problem in text for text in found.problems), found.problems


def test_a_rotation_in_place_that_reads_what_it_wrote_is_caught() -> None:
    def alone(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_out: Tensor, k_out: Tensor) -> None:
        q_out[..., :32] = rotate(q, cos, sin, interleaved=False)[..., :32]
        q_out[..., 32:] = rotate(q, cos, sin, interleaved=False)[..., 32:]
        k_out.copy_(rotate(k, cos, sin, interleaved=False))

    found = rotation.check_rotate(replace(ROTATE, alone=alone), Case(70, 70), CPU, start=0, block_sizes=(64, 64))
    assert any("q rotated in place" in text for text in found.problems), found.problems
