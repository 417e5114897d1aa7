"""tools/gpu_check.py as a script: options, watchdog, exit status; on a CPU, with the reference as kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prism_gen.verify import cases, oracle
from prism_gen.verify.kernels import of_family
from prism_gen.verify.reference_kernels import reference_kernels
from prism_gen.verify.report import DeviceLostError, Findings, Report, current_case
from prism_gen.verify.select_cases import FUSED_CASES, SANITIZER_SELECT_CASES, SELECT_CASES
from prism_gen.verify.subblock_cases import SANITIZER_SUB_BLOCK_CASES
from tools.check import sanitizer
from tools.check.options import DEFAULT_TIMEOUT_S, SECTIONS, parse
from tools.check.table import print_failures

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_check.py"
CPU = torch.device("cpu")


def run_script(out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, str(SCRIPT), "--backend", "reference", "--quick", "--out", str(out), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=out.parent)
    records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return done.returncode, records, done.stdout + done.stderr


@pytest.mark.slow
def test_the_reference_passes_every_section(tmp_path: Path) -> None:
    status, records, text = run_script(tmp_path / "out.jsonl", "--only", "bf16-d64-b128", "--num-q-heads", "4",
                                       "--num-kv-heads", "2", "--densities", "0.3")  # fmt: skip
    assert status == 0, text
    assert not (tmp_path / "out.current").exists()
    by_section = {record["section"] for record in records if record["what"] != "section"}
    assert by_section == {"environment", *SECTIONS} - {"build"}
    speed = [r for r in records if r["section"] == "attend_speed" and r["what"].startswith("attend")]
    assert {r["what"] for r in speed} == {"attend-bf16-d64-b128x128", "attend-bf16-d64-b128x64"}
    assert all(r["ok"] and r["ms"] > 0 and r["runs"] >= 7 and r["spot_share_of_limit"] <= 1 for r in speed)
    selection = [r for r in records if r["what"].startswith("selection")]
    assert all(r["total_ms"] > 0 and r["floor_ms"] > 0 for r in selection)
    assert all(r["identical_scores_differing_rows"] == 0 for r in selection)
    assert [r["case"] for r in selection] == ["n256", "n256-peaked"] * 2
    assert text.splitlines()[-1].endswith("passed, 0 failed")


def test_a_bundle_that_does_not_load_fails_the_run(tmp_path: Path) -> None:
    status, records, text = run_script(tmp_path / "o.jsonl", "--sections", "build", "--bundle", str(tmp_path / "none"))
    assert status == 1
    assert [r["ok"] for r in records if r["what"] == "bundle"] == [False]
    assert "\nFAILED build bundle" in text


def test_a_section_that_hangs_is_killed_and_fails(tmp_path: Path) -> None:
    status, records, _ = run_script(tmp_path / "o.jsonl", "--sections", "numerics", "--timeout", "0.05")
    assert status == 1
    assert records[-1]["problems"][0].startswith("killed after")


def test_the_case_that_hung_is_named(tmp_path: Path) -> None:
    report = Report("numerics", tmp_path / "o.jsonl", CPU)
    assert current_case(tmp_path / "o.jsonl") == "no case yet"
    report.case("attend", "q17k17", Findings)
    assert current_case(tmp_path / "o.jsonl") == "numerics attend q17k17"


def test_a_section_that_crashes_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import gpu_check

    out = tmp_path / "o.jsonl"
    arguments = ["--backend", "reference", "--out", str(out)]
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    gpu_check.supervise("numerics", parse(arguments), arguments)
    (record,) = (json.loads(line) for line in out.read_text().splitlines())
    assert record["ok"] is False
    assert record["problems"][0].startswith("ended with status 1")


def test_a_name_that_no_kernel_has_fails_and_names_those_there_are(tmp_path: Path) -> None:
    status, records, _ = run_script(tmp_path / "o.jsonl", "--sections", "numerics", "--only", "d512")
    assert status == 1
    (problem,) = records[1]["problems"]
    assert "d512" in problem
    assert "attend-" in problem


def test_defaults_and_lists_of_the_command_line() -> None:
    options = parse(["--bundle", "a", "--bundle", "b", "--out", "o.jsonl", "--peers", "fa4-sparse,cudnn-dense"])
    assert options.bundle == (Path("a"), Path("b"))
    assert options.sections == SECTIONS
    assert options.lengths == (8192, 32768, 131072)
    assert options.densities == (0.10, 0.25)
    assert options.timeout == DEFAULT_TIMEOUT_S
    assert options.peers == ("fa4-sparse", "cudnn-dense")
    assert parse(["--bundle", "a", "--out", "o", "--quick"]).lengths == (8192,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "--bundle DIR"),
        (["--bundle", "a"], "--out"),
        (["--bundle", "a", "--out", "o", "--sections", "numeric"], "no numeric; there are build, numerics"),
        (["--bundle", "a", "--out", "o", "--densities", "1.5"], "a density lies in"),
        (["--bundle", "a", "--out", "o", "--peers", "fa9"], "no fa9"),
        (["--bundle", "a", "--out", "o", "--num-q-heads", "9"], "multiple of --num-kv-heads"),
    ],
    ids=["no-bundle", "no-out", "section", "density", "peer", "heads"],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_cases_cover_what_the_issue_names() -> None:
    tried = cases.ATTEND_CASES
    assert {1, 17, 63, 129} <= {case.seqlen_q for case in tried}
    assert {1, 2, 3, 4, 5, 6, 7, 8} <= {case.num_q_heads // case.num_kv_heads for case in tried}
    assert any(case.seqlen_k > case.seqlen_q and (case.seqlen_k - case.seqlen_q) % 64 for case in tried)
    assert {case.batch for case in tried} >= {1, 2, 3}
    assert {case.layout for case in tried} == {"contiguous", "head_major", "fused"}
    assert {case.mask for case in tried} == {"sparse", "all", "scattered", "empty", "diagonal"}
    assert {case.lse for case in tried} == {True, False}
    shapes = {(128, 128), (128, 64), (64, 64)}
    assert {(c.block_size_q, c.block_size_k) for c in SELECT_CASES} == shapes
    assert {(c.block_size_q, c.block_size_k) for c in FUSED_CASES} == shapes


def test_scattered_cases_hold_empty_rows_and_rows_without_their_diagonal() -> None:
    case = next(c for c in cases.ATTEND_CASES if c.mask == "scattered" and c.batch == 3)
    grid = case.grid(128, 64)
    mask = case.block_mask(grid, CPU)
    assert not mask.any(-1).all()
    assert oracle.token_mask(mask, grid).any(-1).float().mean() < 1.0


@pytest.mark.parametrize("layout", ["contiguous", "head_major", "fused"])
def test_inputs_are_poisoned_around_the_tokens(layout: Any) -> None:
    q, k, v = cases.Case(5, 9, layout=layout, batch=2).qkv(64, torch.bfloat16, CPU)
    for x in (q, k, v):
        assert not x.isnan().any()
        assert x.stride(-1) == 1
        behind = x.as_strided((1, 1, 1, 64), x.stride(), x.storage_offset() + x.shape[1] * x.stride(1))
        assert behind.isnan().all()
    assert (q.shape[1], k.shape[1]) == (5, 9)


@pytest.mark.parametrize("layout", ["contiguous", "head_major", "fused"])
def test_a_copy_for_the_sanitizer_ends_with_its_last_element(layout: Any) -> None:
    for x in cases.Case(5, 9, layout=layout, batch=2).qkv(64, torch.bfloat16, CPU):
        copy = sanitizer.exact_copy(x, CPU)
        assert torch.equal(copy, x)
        assert copy.stride() == x.stride()
        last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        assert copy.untyped_storage().nbytes() == (last + 1) * 2


def test_the_sanitizer_s_worker_judges_what_comes_back(tmp_path: Path) -> None:
    report = Report("sanitized", tmp_path / "o.jsonl", CPU)
    sanitizer.run_sanitized(reference_kernels(), report, CPU)
    assert report.failed == 0
    every = len(cases.SANITIZER_CASES)
    runs = {"pool": 2 * every, "rotate": every, "attend": every, "subpool": every}  # a pool also runs in chunks
    runs |= {"select": len(SANITIZER_SELECT_CASES), "score": len(SANITIZER_SUB_BLOCK_CASES)}
    kernels = [kernel for kernel in reference_kernels() if kernel.dtype == torch.bfloat16]
    assert report.written == sum(runs[kernel.spec.family] for kernel in kernels)


STEP_READ_AND_WRITTEN = """
========= Error: Race reported between Read access at prism::attend::WarpGroup<prism::attend::Traits<Config>>::wait_step(const prism::Ring<(int)9> &) const+0x7d0 in warp_group.cuh:204
=========     and Write access at prism::attend::Loader<prism::attend::Traits<Config>>::run()+0xe120 in loader.cuh:42 [4 hazards]
"""  # noqa: E501
ONE_RACE = "========= RACECHECK SUMMARY: 1 hazards displayed (1 errors, 0 warnings)"


@pytest.mark.parametrize(
    ("printed", "status", "failed"),
    [
        (STEP_READ_AND_WRITTEN + ONE_RACE, 86, False),
        (STEP_READ_AND_WRITTEN.replace("wait_step", "await_tile") + ONE_RACE, 86, True),
        (STEP_READ_AND_WRITTEN + ONE_RACE.replace("1", "2"), 86, True),
        (STEP_READ_AND_WRITTEN + ONE_RACE, 3, True),
        ("========= ERROR SUMMARY: 0 errors", 0, False),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0, False),
        ("========= ERROR SUMMARY: 3 errors", 86, True),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)", 0, True),
        ("no device", 0, True),
        ("========= ERROR SUMMARY: 0 errors", 3, True),
    ],
)
def test_the_sanitizer_s_verdict_is_read(tmp_path: Path, printed: str, status: int, failed: bool) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{printed}'\nexit {status}\n")
    tool.chmod(0o755)
    found = sanitizer.check_tool("memcheck", str(tool), ["script"], tmp_path / "log.txt", timeout_s=10.0)
    assert bool(found.problems) == failed


def test_float64_attention_equals_torch_in_float64() -> None:
    case = cases.Case(100, 300, num_q_heads=6, num_kv_heads=2)
    grid = case.grid(64, 64)
    q, k, v = (x.double() for x in case.qkv(64, torch.bfloat16, CPU))
    mask = oracle.token_mask(case.block_mask(grid, CPU), grid)
    exact, lse = oracle.attend(q, k, v, mask, 0.125)
    assert oracle.max_abs(exact - oracle.torch_attend(q, k, v, mask, 0.125)) < 1e-12
    assert lse.shape == (1, 6, 100)


def test_an_exception_fails_its_case_alone_unless_the_device_is_lost(tmp_path: Path) -> None:
    def check(text: str) -> Findings:
        raise RuntimeError(text)

    report = Report("numerics", tmp_path / "o.jsonl", CPU)
    report.case("attend", "one", lambda: check("q.shape[1] is 3"))
    assert report.failed == 1
    for text in ("CUDA error: unspecified", "attend launch failed: an illegal memory access was encountered"):
        with pytest.raises(DeviceLostError):
            report.case("attend", "two", partial(check, text))


def test_failures_are_printed_last_with_their_problems(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"section": "select", "what": "select-d64", "case": "q1", "ok": False, "problems": ["rows differ"]}
    assert print_failures([{**record, "ok": True}, record, {**record, "ok": None}]) == 1
    assert capsys.readouterr().out.splitlines() == ["1 passed, 1 failed", "FAILED select select-d64 q1: rows differ"]


def test_the_reference_stands_in_for_every_family_and_block_shape() -> None:
    kernels = reference_kernels()
    problems = [k.problem for k in of_family(kernels, "attend")]
    shapes = {(p.block_size_q, p.block_size_k, p.heads_per_list) for p in problems}
    assert shapes == {(128, 128, 1), (128, 64, 1), (64, 64, 1), (32, 64, 4)}
    assert len(of_family(kernels, "pool")) == 2  # one a dtype, for every pair of block sizes
    assert len(of_family(kernels, "select")) == 1
