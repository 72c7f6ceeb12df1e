"""Generated sweep files: against golden files, and accepted by W&B's tools and ours."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import python_forkserver
import yaml

from kto_sweep.cli import run
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.local_server.start import LocalServer, ensure_server, stop_server
from kto_sweep.shipped_files import shipped_root
from kto_sweep.sweep.create import create_sweep
from kto_sweep.sweep_file.generate import Fixed, Listed, Range, parse_flag
from kto_sweep.sweep_file.validate import validate

HERE = Path(__file__).parent
DATA = "examples/support_replies.jsonl"
GENERATED = {
    "grid.yaml": "grid --lr 5e-7,2.5e-7,1e-7 --batch-size 6,8,10 --model-size 3b,7b",
    "bayes.yaml": "bayes --preset lora-0.5b",
    "random.yaml": (
        "random --model-size 1.5b --lr 5e-7..1e-4 --max-length 512..1024 --rho 0.8..1.6 "
        "--lora-targets q_proj,v_proj --warmup-ratio 0.05,0.1 --max-steps 100"
    ),
}


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def generate(name: str) -> str:
    method, *flags = GENERATED[name].split()
    assert run(["generate", method, name, "--data", DATA, *flags]) == 0
    return Path(name).read_text()


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_match_the_golden_files_and_have_no_errors(name: str) -> None:
    text = generate(name)
    golden = HERE / "generated" / name
    if os.environ.get("KTO_SWEEP_WRITE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()
    assert max(map(len, text.splitlines())) <= 110
    validation = validate(Path(name))
    assert validation.errors == ()
    assert validation.checked().config == yaml.safe_load(text)  # every number is one for YAML 1.1 too


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, LocalServer]]:
    home = Home(tmp_path_factory.mktemp("box") / "home")
    yield home, ensure_server(home)
    stop_server(home)


def test_create_and_the_stock_wandb_sweep_accept_them(
    server: tuple[Home, LocalServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, address = server
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in GENERATED:
        generate(name)
        registered = create_sweep(
            home, Path(name), project="kto", entity=None, local=True, say=lambda line: None
        )
        assert registered.expected_trials == {"grid.yaml": 18}.get(name, 30)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "WANDB_BASE_URL": address.url,
        "WANDB_API_KEY": address.key,
        "WANDB_DIR": str(tmp_path),
        "WANDB_ERROR_REPORTING": "false",
    }
    for name in ("grid.yaml", "random.yaml"):
        command = ("-m", "wandb", "sweep", "--project", "kto", "--entity", "local", name)
        done = python_forkserver.run(command, Path.cwd(), environment)
        assert done.returncode == 0, done.stderr
        assert "wandb agent local/kto/" in done.stdout + done.stderr


def test_an_existing_file_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("mine")
    assert run(["generate", "grid", "mine.yaml", "--data", DATA, "--model-size", "3b"]) == 2
    assert "mine.yaml already exists" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no data"),
        (["--data", DATA], "no base model"),
        (["--data", "absent.jsonl", "--model-size", "3b"], "absent.jsonl: no such data file"),
        (["--data", DATA, "--model-size", "3b", "--model", "x/y"], "set together with model"),
        (["--data", DATA, "--model-size", "3b", "--lr", "1e-7..1e-5"], "a grid needs a list of values"),
        (["--data", DATA, "--model-size", "3b", "--lr", "2"], "2 is not a learning rate"),
    ],
)
def test_invalid_flags_leave_no_file(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "grid", "new.yaml", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not Path("new.yaml").exists()


def test_flags_mean_values_lists_and_ranges() -> None:
    assert parse_flag("learning_rate", "5e-7", "grid") == Fixed(5e-7)
    assert parse_flag("batch_size", "6,8", "grid") == Listed((6, 8))
    assert parse_flag("beta", "0.02..0.5", "bayes") == Range(0.02, 0.5)
    assert parse_flag("lora_targets", "q_proj,v_proj", "grid") == Fixed(("q_proj", "v_proj"))
    assert parse_flag("dataset", "../data/rows.jsonl", "grid") == Fixed("../data/rows.jsonl")
    assert parse_flag("dataset", "a.jsonl, b.csv", "grid") == Fixed(("a.jsonl", "b.csv"))
    assert parse_flag("eval_steps", "null", "grid") == Fixed(None)
    with pytest.raises(UsageError, match="cannot have a range"):
        parse_flag("optimizer", "1..2", "bayes")
    with pytest.raises(UsageError, match="ends are in the wrong order"):
        parse_flag("beta", "0.5..0.02", "bayes")


def test_held_out_rows_of_ones_own_replace_eval_fraction() -> None:
    rows = (shipped_root() / DATA).read_text().splitlines(keepends=True)
    for name, part in {"a": rows[:90], "b": rows[90:]}.items():
        Path(f"{name}.jsonl").write_text("".join(part))
    flags = ("--data", "a.jsonl", "--eval-dataset", "b.jsonl", "--model-size", "tiny")
    assert run(["generate", "grid", "own.yaml", *flags]) == 0
    validation = validate(Path("own.yaml"))
    assert validation.errors == ()
    assert "eval_fraction" not in validation.checked().config["parameters"]
    assert validation.checked().config["parameters"]["eval_dataset"] == {"value": "b.jsonl"}
