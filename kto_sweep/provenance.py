"""What a run was trained with: model, data, code, environment and command.

agent    command, code, environment    --StartTrial--> worker
worker   + model, data, GPU            --Loaded--> agent --> `record` in the run's configuration
         '--> lineage.json --> model card

Names no secret: credentials are removed from the command and from the repository's URL.
"""

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("kto-sweep", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "safetensors"),
    *("tokenizers", "numpy", "wandb"),
)
"""Distributions whose versions are recorded."""
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""Environment variables whose values are removed from the command."""
GIT_SECONDS = 5.0
"""Timeout of each git command: a large repository on a network disk can take minutes."""
_REMOTE = re.compile(r"(?!file:)[^/]+:")
"""A URL or host:path, unlike a local folder."""
_REDIRECTIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""Set in git's hooks; they name another repository than that of the current folder."""


@dataclass(frozen=True)
class ModelInfo:
    """The base model as loaded, and what of it is trained."""

    name: str
    """As in the trial."""
    type: str
    """transformers' model type: qwen2, llama."""
    architecture: str
    """The model's class."""
    parameters: int
    """Of the base model."""
    trainable_parameters: int | None
    """Of the adapters, or of all weights that full fine-tuning trains; None: unknown."""
    layers: int | None
    hidden_size: int | None
    quantization: str
    dtype: str
    """Of the weights that are not quantised."""
    fingerprint: str
    """Hash of the weights in memory: a folder or hub id can change what it holds."""


@dataclass(frozen=True)
class RowCounts:
    """Rows by label, and their tokens."""

    rows: int
    desirable: int
    undesirable: int
    tokens: int


@dataclass(frozen=True)
class DataInfo:
    """The rows of a trial."""

    path: str
    fingerprint: str
    """Hash of the token ids and labels of all rows."""
    train: RowCounts
    held_out: RowCounts


@dataclass(frozen=True)
class CodeInfo:
    """The git repository of the current folder."""

    commit: str
    branch: str | None = None
    """None: a detached HEAD."""
    dirty: bool | None = None
    """Whether tracked files differ from the commit; None: git took too long."""
    remote: str | None = None
    """URL of `origin` without credentials; None for a folder."""


@dataclass(frozen=True)
class Provenance:
    """What a run was trained with, as far as it is known."""

    model: ModelInfo | None = None
    data: DataInfo | None = None
    code: CodeInfo | None = None
    """None: no repository, no git, or WANDB_DISABLE_GIT."""
    environment: Mapping[str, str | int | float] = field(default_factory=dict)
    """Machine, GPU, driver, and versions of packages."""
    command: tuple[str, ...] = ()

    @classmethod
    def of_process(cls, argv: Sequence[str] | None = None, folder: Path | None = None) -> "Provenance":
        """Command, code and environment of this process, or of another `argv` and current folder."""
        words = sys.argv if argv is None else argv
        return cls(
            code=None if _is_git_disabled() else read_code(folder or Path.cwd()),
            environment=_environment(),
            command=without_secrets([Path(words[0]).name, *words[1:]]) if words else (),
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Provenance":
        """Command, code and environment that `to_json` wrote."""
        code = values.get("code")
        return cls(
            code=CodeInfo(**code) if code else None,
            environment=dict(values.get("environment", {})),
            command=tuple(values.get("command", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without what is not known."""
        known: dict[str, Any] = _without_none(asdict(self) | {"command": list(self.command)})
        return known

    def with_inputs(
        self, model: ModelInfo, data: DataInfo, device: Mapping[str, str | int | float]
    ) -> "Provenance":
        """With what a worker has loaded; `device`: further entries of the environment."""
        return replace(self, model=model, data=data, environment={**device, **self.environment})


def read_code(folder: Path) -> CodeInfo | None:
    """The commit of the repository around `folder`; None without one, without git, or if git rejects it.

    Runs no hook and writes nothing. Neither file contents nor differences are read.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    # Submodules by their commit alone: to look into each takes long. Untracked files do not count.
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    remote = _git(folder, "config", "--get", "remote.origin.url")
    return CodeInfo(
        commit=commit,
        branch=_git(folder, "symbolic-ref", "--short", "--quiet", "HEAD") or None,
        dirty=None if changes is None else bool(changes),
        remote=without_credentials(remote) if remote and _REMOTE.match(remote) else None,
    )


def without_credentials(url: str) -> str:
    """The URL without user, password and query, any of which may hold a token."""
    return re.sub(r"(//)[^/]*@", r"\1", url).partition("?")[0]


def without_secrets(words: Sequence[str]) -> tuple[str, ...]:
    """A command line without the values of SECRETS and without credentials in URLs."""
    secrets = [value for name in SECRETS if (value := os.environ.get(name))]
    shown = []
    for word in words:
        for secret in secrets:
            word = word.replace(secret, "***")  # noqa: PLW2901
        shown.append(re.sub(r"(://)[^/\s]*@", r"\1", word))
    return tuple(shown)


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command; None if it fails or takes too long."""
    environment = {name: value for name, value in os.environ.items() if name not in _REDIRECTIONS}
    # fsmonitor is a program that the repository's own configuration names.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
    except OSError:  # no git, or the folder was removed
        return None
    try:
        output, _ = process.communicate(timeout=GIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):  # it may hang in the kernel on a lost network disk
            process.wait(1)
        return None
    return output.strip() if process.returncode == 0 else None


def _is_git_disabled() -> bool:
    """Whether the user told wandb to disregard git, as wandb reads its variable."""
    return os.environ.get("WANDB_DISABLE_GIT", "false").lower() != "false"


def _environment() -> dict[str, str | int | float]:
    environment: dict[str, str | int | float] = {
        "python": platform.python_version(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 1,
        "host": socket.gethostname(),
    }
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # bitsandbytes, for one, is optional
            environment[name.replace("-", "_")] = metadata.version(name)
    return environment


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_none(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item not in ({}, [])}
    return value
