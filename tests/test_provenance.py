"""What is recorded of a process: its git repository, packages and command, and no secret."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kto_sweep import provenance
from kto_sweep.provenance import CodeInfo, DataInfo, ModelInfo, Provenance, RowCounts, read_code

COUNTS = RowCounts(rows=2, desirable=1, undesirable=1, tokens=9)
MODEL = ModelInfo("tiny", "llama", "LlamaForCausalLM", 1000, None, 2, 8, "none", "float32", "m")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "sweep.yaml").write_text("method: grid\n")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_is_commit_branch_and_whether_tracked_files_changed(repository: Path) -> None:
    code = CodeInfo(git(repository, "rev-parse", "HEAD"), "main", dirty=False)
    (repository / "untracked.txt").touch()
    assert read_code(repository) == code
    (repository / "sub").mkdir()
    (repository / "sweep.yaml").write_text("method: random\n")
    assert read_code(repository / "sub") == replace(code, dirty=True)
    git(repository, "checkout", "--quiet", "--detach")
    assert read_code(repository) == replace(code, branch=None, dirty=True)


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://token@github.com/me/kto.git", "https://github.com/me/kto.git"),
        ("https://me:token@host/kto@2?access_token=token", "https://host/kto@2"),
        ("ssh://git:token@host:22/kto", "ssh://host:22/kto"),
        ("git@github.com:me/kto.git", "git@github.com:me/kto.git"),
        ("/home/me/kto", None),
        ("file:///home/me/kto", None),
    ],
)
def test_the_remote_has_no_credentials_and_is_no_folder(
    repository: Path, remote: str, shown: str | None
) -> None:
    git(repository, "remote", "add", "origin", remote)
    code = read_code(repository)
    assert code is not None
    assert code.remote == shown


def test_there_is_no_code_without_a_commit_or_a_repository_that_git_trusts(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_code(tmp_path) is None
    assert read_code(tmp_path / "removed") is None
    git(tmp_path, "init", "--quiet", "empty")
    assert read_code(tmp_path / "empty") is None
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert read_code(repository) is None


def test_there_is_no_code_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert read_code(repository) is None


def test_a_git_that_hangs_is_given_up(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `git status` that takes long leaves out only what it would tell."""
    commit = git(repository, "rev-parse", "HEAD")
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    fake.write_text(f'#!/bin/sh\ncase "$*" in *status*) exec sleep 600;; esac\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 2.0)
    assert read_code(repository) == CodeInfo(commit, "main", dirty=None)


def test_git_runs_no_program_of_the_repository(repository: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    git(repository, "config", "core.fsmonitor", f"touch {ran}; false")
    assert read_code(repository) is not None
    assert not ran.exists()


def test_git_is_not_read_if_wandb_shall_not_either(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Provenance.of_process([], repository).code is not None
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    assert Provenance.of_process([], repository).code is None


def test_the_command_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("WANDB_API_KEY", "")
    words = (
        "/opt/bin/kto-sweep",
        "train",
        "--hf-token=hf_abc",
        "--dataset",
        "https://me:pw@host/rows@1.jsonl",
    )
    assert Provenance.of_process(words, tmp_path).command == (
        "kto-sweep", "train", "--hf-token=***", "--dataset", "https://host/rows@1.jsonl",
    )  # fmt: skip


def test_json_has_what_is_known_and_is_read_back() -> None:
    assert Provenance().to_json() == {}
    agents = Provenance(code=CodeInfo("c", dirty=False), environment={"python": "3.11"}, command=("a", "b"))
    assert Provenance.from_json(json.loads(json.dumps(agents.to_json()))) == agents
    whole = agents.with_inputs(MODEL, DataInfo("rows.jsonl", "d", COUNTS, COUNTS), {"gpu": "H200"}).to_json()
    assert list(whole) == ["model", "data", "code", "environment", "command"]
    assert whole["code"] == {"commit": "c", "dirty": False}
    assert whole["environment"] == {"gpu": "H200", "python": "3.11"}
    assert "trainable_parameters" not in whole["model"]
    assert whole["data"]["held_out"] == {"rows": 2, "desirable": 1, "undesirable": 1, "tokens": 9}


def test_the_environment_names_versions_and_the_machine(tmp_path: Path) -> None:
    environment = Provenance.of_process([], tmp_path).environment
    assert {"python", "os", "machine", "cpus", "host", "kto_sweep", "torch", "wandb"} <= environment.keys()
