"""Which variables of the shell and of a .env file a command takes over."""

import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from foreign_variables import IGNORED, SHELL
from machine import Machine

from kto_sweep.env_vars import KEYS, NEW_NAMES, OTHER_WANDB, VARIABLES, load_env_file, prepare
from kto_sweep.errors import UsageError
from kto_sweep.wandb_client.private_api import read_settings

KEPT = {*VARIABLES, *OTHER_WANDB}
SPECIAL = {"WANDB_SERVICE_TRANSPORT", "WANDB_CONFIG", "WANDB_ARTIFACTS", "WANDB__PROXIES"}
"""Variables that wandb reads where it needs them."""
UMASK_0 = "import os, sys; os.umask(0); from kto_sweep.cli import run; "


def names_that_wandb_reads() -> set[str]:
    fields = {f"WANDB_{name.upper()}" for name in wandb.Settings.model_fields}
    constants = {
        value for name, value in vars(wandb.env).items() if name.isupper() and isinstance(value, str)
    }
    return fields | SPECIAL | {name for name in constants if name.startswith("WANDB_")}


def test_each_variable_that_wandb_reads_is_kept_or_ignored_on_purpose() -> None:
    read = names_that_wandb_reads()
    assert len(read) > 150
    assert read - KEPT == IGNORED
    assert read >= OTHER_WANDB  # none that the installed wandb does not know


def test_variables_that_name_another_run_are_removed_and_named_once(tmp_path: Path) -> None:
    kept = {"WANDB_API_KEY": "k", "WANDB_TAGS": "a", "HOME": "/h", "PYTHONPATH": "/p"}
    environ = {**SHELL, **kept}
    (notice,) = prepare(environ, tmp_path / ".env")
    assert environ == kept
    assert set(re.findall(r"WANDB_\w+", notice)) == SHELL.keys()
    assert list(prepare(environ, tmp_path / ".env")) == []


@pytest.mark.parametrize("command", ["agent", "create", "train"])
def test_names_of_new_sweeps_and_runs_reach_only_what_creates_them(tmp_path: Path, command: str) -> None:
    names = {"WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_NAME": "n"}
    assert list(prepare(environ := dict(names), tmp_path / ".env", keep=NEW_NAMES.get(command, ()))) == []
    assert "".join(environ.values()) == {"agent": "", "create": "pe", "train": "pen"}[command]


def test_a_variable_that_only_seems_to_disable_wandb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="WANDB_DISABLED") as error:
        list(prepare({"WANDB_DISABLED": "true"}, tmp_path / ".env"))
    assert "unset WANDB_DISABLED" in error.value.hint
    assert list(prepare({"WANDB_DISABLED": "false"}, tmp_path / ".env"))


@pytest.mark.parametrize("name", ["WANDB_INIT_TIMEOUT", "WANDB_X_STATS_SAMPLING_INTERVAL", "WANDB_SAVE_CODE"])
def test_an_invalid_variable_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0.01s")
    with pytest.raises(UsageError, match=f"wandb rejects {name}: ") as error:
        read_settings()
    assert error.value.hint == f"unset {name}"
    assert "0.01s" not in error.value.message


@pytest.mark.parametrize(
    ("line", "key", "refused"),
    [
        ("base_url = http://10.0.0.1", "WANDB_API_KEY", True),
        ("base_url = http://10.0.0.1", "NO_KEY", False),  # keys of netrc are for one server each
        ("https_proxy = http://10.0.0.1", "NO_KEY", True),
        ("insecure_disable_ssl = true", "NO_KEY", True),
        ("x_executable = ./program", "NO_KEY", True),
        ("sweep_id = foreign", "NO_KEY", True),
        ("identity_token_file = /secret", "NO_KEY", True),
        ("mode = offline", "WANDB_API_KEY", False),
        ("project = kto\nentity = me", "WANDB_API_KEY", False),
    ],
)
def test_settings_of_the_folder_send_no_key_and_no_run_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, key: str, refused: bool
) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\n{line}\n")
    monkeypatch.chdir(tmp_path)
    for name in (*KEYS, "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(key, "k" * 40)
    if not refused:
        read_settings()
        return
    with pytest.raises(UsageError, match=f"wandb/settings sets {line.partition(' ')[0]}") as error:
        read_settings()
    assert "remove that line" in error.value.hint


def test_a_timeout_at_which_wandb_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="WANDB_HTTP_TIMEOUT"):
        list(prepare({"WANDB_HTTP_TIMEOUT": "0.5"}, tmp_path / ".env"))


def test_an_env_file_gives_documented_variables_alone(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "PATH=/evil\nPYTHONPATH=/evil\nLD_PRELOAD=/evil.so\nhttps_proxy=http://evil\nHF_ENDPOINT=http://evil\n"
        "WANDB_HTTP_PROXY=http://evil\nWANDB_SWEEP_ID=foreign\nHF_TOKEN=theirs\n"
        "WANDB_API_KEY=key\nWANDB_BASE_URL=http://10.0.0.1/${HOME}\n"
    )
    environ = {"HOME": "/secret", "HF_TOKEN": "mine"}
    (notice,) = load_env_file(environ, file)
    taken = {"WANDB_API_KEY": "key", "WANDB_BASE_URL": "http://10.0.0.1/${HOME}"}
    assert environ == {"HOME": "/secret", "HF_TOKEN": "mine", **taken}
    assert f"sets {', '.join(taken)}; ignored in" in notice
    assert {"LD_PRELOAD", "PATH", "https_proxy", "HF_ENDPOINT"} <= set(re.findall(r"\w+", notice))


@pytest.mark.parametrize("key", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_the_key_of_the_shell_is_not_for_a_server_that_an_env_file_names(tmp_path: Path, key: str) -> None:
    file = tmp_path / ".env"
    file.write_text("WANDB_BASE_URL=http://evil\nWANDB_API_KEY=theirs\nWANDB_IDENTITY_TOKEN_FILE=/secret\n")
    environ = {key: "mine"}
    (notice,) = load_env_file(environ, file)
    assert environ == {"WANDB_API_KEY": "theirs", key: "mine"}
    assert "ignored in" in notice


@pytest.mark.parametrize("content", [b"WANDB_API_KEY=\xff\xfe", b"\0=\0", b"=\n'", b""])
def test_a_damaged_env_file_stops_no_command(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    environ: dict[str, str] = {}
    list(prepare(environ, tmp_path / ".env"))
    assert environ == {}


SWEEP = """
method: grid
metric: {name: eval/common_loss, goal: minimize}
parameters:
  learning_rate: {values: [0.001, 0.003]}
  model_size: {value: tiny}
  dataset: {value: rows.jsonl}
  max_steps: {value: 2}
"""
ROW = '{"prompt": "Question %d?", "completion": "An answer", "label": %s}\n'
RUNS = """[(run.project, run.sweep and run.sweep.id, run.state, run.name, run.tags, run.group, run.notes)
    for project in ("kto-sweep", "alone") for run in api.runs(f"local/{project}")]"""


def test_runs_of_a_foreign_shell_are_those_of_the_sweep_and_private(fake_machine: Machine) -> None:
    rows = [ROW % (number, str(number % 2 == 0).lower()) for number in range(300)]
    (fake_machine.folder / "rows.jsonl").write_text("".join(rows))
    fake_machine.home.root.mkdir(mode=0o755)
    names = {"WANDB_NAME": "foreign", "WANDB_ENTITY": "foreign"}
    labels = {"WANDB_TAGS": "mine", "WANDB_RUN_GROUP": "mine", "WANDB_NOTES": "mine"}
    cli = ("-c", UMASK_0 + fake_machine.cli[1])
    machine = replace(fake_machine, environ={**SHELL, **names, **labels}, cli=cli)
    assert machine.create_sweep(SWEEP, WANDB_PROJECT="new")["path"].startswith("local/new/")
    sweep = machine.create_sweep(SWEEP)["id"]
    proxy = {"WANDB_HTTP_PROXY": "http://127.0.0.1:9"}  # where nothing answers
    done = machine.command("agent", "--json", WANDB_PROJECT="foreign", **proxy)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WANDB_SWEEP_ID") == 1

    options = ("--local-file", "rows.jsonl", "--model-size", "tiny", "--max-steps", "2", "--cpu")
    own = {"WANDB_MODE": "offline", "WANDB_PROJECT": "alone", "WANDB_NAME": "own", "WANDB_ENTITY": ""}
    run_id = machine.json("train", *options, **own)["run"]
    assert machine.json("sync", run_id, "--local")["sent"] == [f"local/alone/{run_id}"]

    *trials, single = fake_machine.api(RUNS)
    assert [trial[:3] for trial in trials] == [["kto-sweep", sweep, "finished"]] * 2
    assert {trial[3] for trial in trials}.isdisjoint({"foreign"})
    assert single[:4] == ["alone", None, "finished", "own"]
    assert [run[4:] for run in (*trials, single)] == [[["mine"], "mine", "mine"]] * 3

    machine.run("compare", sweep, "--html", "report.html")
    report = machine.folder / "report.html"  # asked for, and not in the home
    assert stat.S_IMODE(report.stat().st_mode) == 0o666
    assert not (machine.folder / "foreign").exists()
    paths = [machine.home.root, *machine.home.root.rglob("*")]
    assert len(paths) > 50
    modes = {str(path): stat.S_IMODE(path.lstat().st_mode) for path in paths if not path.is_symlink()}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
