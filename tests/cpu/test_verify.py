"""`prism_gen verify`: what passes, what is found, and what outlives a kernel that hangs or crashes."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prism_gen.errors import ConfigError, DeviceError
from prism_gen.verify import command, supervise
from prism_gen.verify.job import BEGIN, END, OPEN, Job
from prism_gen.verify.summary import NOT_EXAMINED, Row, summarize, write_junit
from tests.cpu import verify_workers

REPOSITORY = Path(__file__).parents[2]


def job(folder: Path, bundle: Path = Path("none")) -> Job:
    return Job(bundle, "reference", "cpu", "sm90", folder / "records.jsonl", quick=True, only="")


def rows_of(folder: Path, worker: Callable[[Job], None], *, timeout_s: float = 30.0) -> list[Row]:
    records = supervise.examine(job(folder), case_timeout_s=timeout_s, on_record=lambda record: None, worker=worker)
    assert records == [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return summarize(records)


def test_a_right_bundle_passes_with_a_table_junit_and_records(make_bundle, tmp_path):
    bundle = make_bundle()
    words = ["verify", str(bundle), "--backend", "reference", "--quick", "--junit", "v.xml", "--json", "v.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "prism_gen", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ["pool-bf16-d64-h32-l48", "select-d64-h32-l48", "attend-bf16-d64-b64x64", "attend-bf16-d64-b128x64"]
    table = {
        line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(" ") and line.strip()
    }
    for name in names[2:]:
        cases, answer, *rest = table[name]
        assert int(cases) >= 8
        assert 0 < int(answer.rstrip("%")) <= 100
        assert rest == ["ok", "ok", "ok", "-"]
    assert {"smollm2-64x64", "smollm2-128x64"} < table.keys()
    suites = ET.parse(tmp_path / "v.xml").getroot()
    assert {suite.get("name") for suite in suites} >= set(names)
    assert not list(suites.iter("failure"))
    records = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    judged = [record for record in records if record["ok"] is not None]
    assert len(judged) == len(list(suites.iter("testcase")))
    assert all(record["ok"] for record in judged)


def test_a_wrong_kernel_fails_the_bundle_and_is_named(make_bundle, tmp_path, monkeypatch, capsys):
    examine = supervise.examine
    monkeypatch.setattr(command, "examine", lambda *a, **k: examine(*a, **k, worker=verify_workers.wrong_attend))
    passed = command.verify(
        make_bundle(), backend="reference", quick=True, only="attend-bf16-d64-b64x64", junit=tmp_path / "v.xml",
        case_timeout_s=60.0, console=Console(width=120),
    )  # fmt: skip
    assert not passed
    shown = capsys.readouterr().out
    assert "FAILED attend-bf16-d64-b64x64" in shown
    assert "1 of 1 failed" in shown
    failures = list(ET.parse(tmp_path / "v.xml").getroot().iter("failure"))
    assert any("torch's own" in str(failure.get("message")) for failure in failures)


def test_a_kernel_that_hangs_is_killed_and_the_next_ones_are_examined(tmp_path):
    first, second, third = rows_of(tmp_path, verify_workers.hangs, timeout_s=1.0)
    assert first.ok
    assert third.ok
    assert not second.ok
    assert second.problems == ["process: the process hung for 1 s and was killed in or after verify second q17k17"]


def test_a_kernel_that_crashes_is_said_and_the_next_ones_are_examined(tmp_path):
    first, second, third = rows_of(tmp_path, verify_workers.crashes)
    assert (first.ok, second.ok, third.ok) == (True, False, True)
    assert "ended with status 139" in second.problems[0]


def test_a_worker_that_never_starts_is_not_started_again(tmp_path):
    (row,) = rows_of(tmp_path, verify_workers.never_starts)
    assert not row.ok
    assert "ended with status 5" in row.problems[0]


def records_of(*cases: dict[str, Any]) -> list[dict[str, Any]]:
    inside = [{"what": "k", "case": "c", "ok": True, **case} for case in cases]
    return [{"what": "k", "case": BEGIN, "ok": None}, *inside, {"what": "k", "case": END, "ok": None, "seconds": 1.0}]


def test_a_kernel_without_any_check_fails(tmp_path):
    records = records_of({"case": OPEN, "trials": 0})
    (row,) = summarize(records)
    assert not row.ok
    assert row.problems == [NOT_EXAMINED]
    write_junit(tmp_path / "v.xml", [row], records)
    assert next(ET.parse(tmp_path / "v.xml").getroot().iter("failure")).get("message") == NOT_EXAMINED


def test_a_row_counts_each_aspect_and_the_ties_that_are_explained():
    (row,) = summarize(
        records_of(
            {"case": OPEN, "trials": 2},
            {"aspects": {"answer": True, "bounds": True}, "share_of_limit": 0.25, "rows": 10},
            {"ok": False, "aspects": {"answer": True, "bounds": False}, "problems": ["wrote outside out"]},
            {"float64_differing_rows": 3, "unexplained_rows": 1, "rows": 20, "share_of_limit": 0.5},
        )
    )
    assert (row.cases, row.failed, row.seconds) == (3, 1, 1.0)
    assert [row.cell(aspect) for aspect in ("answer", "bounds", "dense")] == ["ok", "1 of 2", "-"]
    assert (row.share_of_limit, row.ties, row.rows) == (0.5, 2, 20)
    assert row.problems == ["c: wrote outside out"]


def test_a_machine_without_a_gpu_is_told_what_to_do(make_bundle):
    with pytest.raises(DeviceError, match="no CUDA device"):
        command.verify(make_bundle(), backend="cuda", case_timeout_s=1.0, console=Console())


def test_a_name_that_nothing_has_is_said(make_bundle):
    with pytest.raises(ConfigError, match="attend-bf16-d64-b64x64"):
        command.verify(make_bundle(), backend="reference", only="d512", case_timeout_s=60.0, console=Console())
