"""examples/ci: every command of the two files runs, in their order, in one workspace; and both files hold the same.

GPU jobs run the reference (PRISM_GEN_BACKEND), compilers are the pretended one; nothing in the commands is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")

REPOSITORY = Path(__file__).parents[2]
CI = REPOSITORY / "examples" / "ci"
# Small enough for a CPU; the names are those that the files set.
SMALL = {
    "MODEL": "config.json",
    "BLOCKS": "64x64",
    "ONLY": "pool",
    "SHAPES": "shapes.json",
    "BUDGET": "5",
    "LENGTHS": "128",
    "VERIFY": "--quick",
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CI / name).read_text(encoding="utf-8"))


def github_jobs() -> dict[str, list[str]]:
    jobs = load("github.yml")["jobs"]
    return {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}


def gitlab_jobs() -> dict[str, list[str]]:
    file = load("gitlab.yml")
    return {name: file[name]["script"] for name in file["stages"]}


def without_installs(commands: list[str]) -> list[str]:
    return [command for command in commands if not command.startswith("pip install")]


def test_both_files_run_the_same_commands_with_the_same_settings():
    github = {name: without_installs(commands) for name, commands in github_jobs().items()}
    github["build"] = [command for command in github["build"] if "GITHUB_OUTPUT" not in command]
    assert github == {name: without_installs(commands) for name, commands in gitlab_jobs().items()}
    assert load("github.yml")["env"] == load("gitlab.yml")["variables"]
    assert load("github.yml")["env"].keys() == SMALL.keys()


def test_installs_ask_for_extras_that_exist():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [c for jobs in (github_jobs(), gitlab_jobs()) for job in jobs.values() for c in job]
    installs = [command for command in commands if command.startswith("pip install")]
    asked = {extra for command in installs for extra in re.findall(r"prism-gen\[(\w+)\]", command)}
    assert len(installs) == 10
    assert asked <= extras.keys()


def test_every_command_runs_as_it_stands(tmp_path, fake):
    shutil.copy(REPOSITORY / "tests" / "models" / "smollm2-135m-instruct.json", tmp_path / "config.json")
    (tmp_path / "shapes.json").write_text('[{"seqlen": 100, "density": 0.5}]')
    environment = {
        **os.environ,
        **SMALL,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "CUDA_HOME": str(fake.folder.parent),
        "PRISM_GEN_BACKEND": "reference",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
    }

    def run(command: str, **variables: str) -> None:
        shell = ["bash", "-euo", "pipefail", "-c", command]
        done = subprocess.run(
            shell, cwd=tmp_path, env={**environment, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    shards = load("github.yml")["jobs"]["tune"]["strategy"]["matrix"]["shard"]
    for name, commands in github_jobs().items():
        for command in without_installs(commands):
            if name == "bench" and "baseline.json" in command:
                run(command)  # without a baseline: nothing to compare
                shutil.copy(tmp_path / "bench.json", tmp_path / "baseline.json")
            for shard in shards if name == "tune" else (1,):
                run(command, SHARD=str(shard), SHARDS=str(len(shards)))
    assert re.fullmatch(r"digest=[0-9a-f]{64}\n", (tmp_path / "output").read_text())
    for path in ("dist", "verify.xml", "part-1.json", "part-2.json", "tuning.json", "tuned", "bench.json", "plots"):
        assert (tmp_path / path).exists(), path
