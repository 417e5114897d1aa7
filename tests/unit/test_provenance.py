"""The commit that a bundle or a figure names."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from prism_gen.provenance import commit_of, short

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit: a template and a README."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "kernel.cuh").write_text("// one\n")
    (tmp_path / "README.md").write_text("one\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    return tmp_path


def git(folder, *command):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(
        ["git", *command], cwd=folder, check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def test_a_clean_checkout_is_its_commit(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == head
    (checkout / "README.md").write_text("two\n")  # no kernel is made of it
    assert commit_of(checkout) == head
    assert short(head) == head[:12]


@pytest.mark.parametrize("name", ["kernel.cuh", "new.cuh"], ids=["changed", "untracked"])
def test_a_changed_source_makes_it_dirty(checkout, name):
    (checkout / "templates" / name).write_text("// two\n")
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == f"{head}-dirty"
    assert short(commit_of(checkout)) == f"{head[:12]}-dirty"


def test_a_linked_worktree_is_a_checkout(checkout, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked") / "tree"
    git(checkout, "worktree", "add", "-q", str(linked))
    assert commit_of(linked) == git(checkout, "rev-parse", "HEAD")


def test_a_package_inside_another_repository_is_not_of_that_repository(checkout):
    assert commit_of(checkout / "templates") == ""


def test_another_repository_in_the_environment_is_not_asked(checkout, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))
    assert len(commit_of(checkout)) == 40


def test_without_git_the_commit_is_read_and_nothing_is_said_of_changes(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "templates" / "kernel.cuh").write_text("// two\n")
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout) == head
    (checkout / ".git" / "HEAD").unlink()
    assert commit_of(checkout) == ""
