"""The command line as users and scripts see it, without a server."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from machine import Machine

from kto_sweep.cli import COMMANDS, cli, run
from kto_sweep.text import number

ROOT = Path(__file__).parents[2]


def test_help_loads_neither_torch_nor_wandb(tmp_path):
    code = (
        "import sys; from kto_sweep.cli import run; run(['--help']);"
        "heavy = {'torch', 'wandb', 'transformers', 'rich', 'starlette', 'numpy', 'yaml'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("value", "shown"), [(2.3e-6, "2.3e-06"), (0.25, "0.25"), (None, "-"), (["a", "b"], "[a, b]"), ("a", "a")]
)
def test_values_in_tables(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_reference(name):
    command = cli.get_command(click.Context(cli), name)
    assert f"kto-sweep {name}" in command.help
    assert f"kto-sweep {name}" in (ROOT / "docs" / "reference.md").read_text()


@pytest.mark.parametrize(("name", "summary"), [(name, text) for name, (_, text) in COMMANDS.items()])
def test_summaries_are_short(name, summary):
    assert len(summary) <= 45, name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?"),
        (["staus"], "No such command 'staus'. (Did you mean one of: 'pause', 'status'?)"),
        (["zzzz"], "No such command 'zzzz'."),
        (["status", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (["--debg", "status"], "No such option '--debg'. Did you mean '--debug'?"),
    ],
)
def test_an_unknown_name_exits_2_with_the_nearest(capsys, args, message):
    assert run(args) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"Error: {message}"
    assert hint.endswith("--help")


def test_every_path_of_a_command_is_read_in_one_way():
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}
    paths = {
        (name, parameter.name)
        for name, command in commands.items()
        for parameter in command.params
        if isinstance(parameter.type, click.Path)
    }
    others = {
        (name, parameter.name)
        for name, command in commands.items()
        for parameter in command.params
        if type(parameter.type) is click.Path or isinstance(parameter.type, click.File)
    }
    assert len(paths) > 10
    assert not others


@pytest.mark.parametrize(
    "args",
    [
        ["merge", "abc", "--output", "PATH"],
        ["lint", "PATH"],
        ["train", "--from", "PATH"],
        ["train", "--dataset", "PATH", "--model-size", "tiny", "--dry-run"],
    ],
)
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("~nosuch/x", "no such user"),
        ("/a" * 2000, "a path of 4,000 bytes from the root"),
        ("/" + "x" * 300, "a name of more than 255 bytes"),
    ],
)
def test_what_cannot_be_a_path_exits_2(capsys, monkeypatch, tmp_path, args, path, why):
    monkeypatch.setenv("KTO_SWEEP_HOME", str(tmp_path))
    assert run([path if word == "PATH" else word for word in args]) == 2
    assert why in capsys.readouterr().err


def test_completion_after_an_unknown_command_is_no_error():
    completing = ShellComplete(cli, {}, "kto-sweep", "_KTO_SWEEP_COMPLETE")
    assert {item.value for item in completing.get_completions(["zzzz"], "st")} == {"stop", "status"}


def test_a_missing_argument_exits_2_with_one_message(capsys):
    assert run(["create"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: Missing argument 'FILE'")
    assert "Hint: kto-sweep create --help" in error


def test_errors_with_json_are_one_object_on_stderr(tmp_path):
    done = Machine(tmp_path).command("create", "absent.yaml", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert set(json.loads(done.stderr)) == {"error", "hint"}


def test_status_before_any_sweep_says_what_to_type(tmp_path):
    done = Machine(tmp_path).command("status")
    assert done.returncode == 2
    assert "no sweep has been created on this box yet" in done.stderr
    assert "kto-sweep create" in done.stderr


def test_a_name_that_cannot_be_a_sweep_exits_2(tmp_path):
    done = Machine(tmp_path).command("status", "a/b/c/d")
    assert done.returncode == 2
    assert "'a/b/c/d' is not the name of a sweep" in done.stderr


def test_an_unreachable_server_is_one_clear_message(tmp_path):
    done = Machine(tmp_path).command(
        "status",
        "me/kto/ab12cd34",
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="local-" + "0" * 40,
    )
    assert done.returncode == 1
    assert re.match(r"Error: could not reach W&B at http://127.0.0.1:9: .*refused", done.stderr)
    assert "Traceback" not in done.stderr


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (900_000_000, 900_000_000))
from kto_sweep.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["status", "e/p/abcd1234"], 2, "wandb needs 1.9 GB of address space, and this shell allows 0.9 GB"),
        (["merge", "abcd1234"], 2, "merging needs 1.0 GB of address space"),
        (["lint", "examples/support_replies.jsonl"], 0, ""),
    ],
)
def test_a_command_with_too_little_memory_says_so(tmp_path, args, code, message):
    machine = Machine(tmp_path)
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "local-" + "0" * 40}
    with machine.start_python("-c", LIMITED, *args, **unreachable) as process:
        output = process.communicate()[0]
    assert process.returncode == code, output
    assert message in output
    assert "Traceback" not in output


def test_a_base_url_without_a_key_says_how_to_log_in(tmp_path):
    done = Machine(tmp_path).command("status", "me/kto/ab12cd34", WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "there is no key for that server" in done.stderr
    assert "wandb login --host http://127.0.0.1:9" in done.stderr


def test_create_reads_the_data_before_anything_is_registered(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b", "label": true}\n{"prompt":\n')
    (tmp_path / "sweep.yaml").write_text(
        "method: grid\nparameters:\n  model_size: {value: tiny}\n  dataset: {value: rows.jsonl}\n"
    )
    done = Machine(tmp_path).command("create", "sweep.yaml")
    assert done.returncode == 2
    assert "rows.jsonl:2: broken JSON" in done.stderr
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("args", "env", "source"),
    [
        (("create", "sweep.yaml", "--project", "team/kto"), {}, "--project"),
        (("train", "--dataset", "no.jsonl", "--project", "team/kto"), {}, "--project"),
        (
            ("train", "--dataset", "no.jsonl"),
            {"WANDB_PROJECT": "team/kto"},
            "WANDB_PROJECT",
        ),
    ],
)
def test_a_project_that_wandb_forbids_is_refused_first(tmp_path, args, env, source):
    done = Machine(tmp_path).command(*args, **env)
    assert done.returncode == 2
    assert f"Error: {source}: team/kto is not the name of a project. W&B allows" in done.stderr
    assert "Hint: project kto, entity team" in done.stderr
    assert not (tmp_path / "home" / "server").exists()


def test_a_home_that_cannot_be_written_to_is_not_reported_as_a_bug(tmp_path):
    (tmp_path / "file").touch()
    done = Machine(tmp_path).command("serve", "--port", "0", KTO_SWEEP_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "Not a directory" in done.stderr or "File exists" in done.stderr
    assert "KTO_SWEEP_HOME sets" in done.stderr
    assert "bug in kto-sweep" not in done.stderr
