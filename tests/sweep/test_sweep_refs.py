"""The forms of a sweep's name, and the record of the last sweep used."""

import shlex
import time

import pytest

from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.sweep.ref import SweepRef, load_sweep_record, parse_ref, save_sweep_record


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ab12cd34", (None, None, "ab12cd34")),
        ("kto/ab12cd34", (None, "kto", "ab12cd34")),
        ("me/kto/ab12cd34", ("me", "kto", "ab12cd34")),
        ("https://wandb.ai/me/kto/sweeps/ab12cd34", ("me", "kto", "ab12cd34")),
        ("team/kto (v2)/ab12cd34", ("team", "kto (v2)", "ab12cd34")),
        ("höhe+1/ab12cd34", (None, "höhe+1", "ab12cd34")),
        ("https://wandb.ai/me/kto%20%28v2%29/sweeps/ab12cd34", ("me", "kto (v2)", "ab12cd34")),
        ("https://wandb.ai/me/h%C3%B6he+1/sweeps/ab12cd34", ("me", "höhe+1", "ab12cd34")),
        ("http://127.0.0.1:8642/local/my%20kto/sweeps/ab12cd34?nw=x", ("local", "my kto", "ab12cd34")),
        ("https://wandb.ai/me/kto/sweeps/ab12cd34/workspace?nw=me#tab", ("me", "kto", "ab12cd34")),
        ("127.0.0.1:8642/local/kto/sweeps/ab12cd34", ("local", "kto", "ab12cd34")),
        ("wandb.ai/me/sweeps/sweeps/ab12cd34", ("me", "sweeps", "ab12cd34")),
        ("https://lab.example/wandb/me/kto/sweeps/ab12cd34", ("me", "kto", "ab12cd34")),
    ],
)
def test_a_sweep_has_several_names(text, parts):
    assert parse_ref(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b/c/d",
        "a//b",
        "https://wandb.ai/",
        "x" * 200,
        "../../etc",
        "a\nb",
        "a\nb/c",
        "k:1/c",
        "me/kto/sweeps/x",
    ],
)
def test_an_invalid_name_is_rejected(text):
    with pytest.raises(UsageError, match="is not the name of a sweep"):
        parse_ref(text if text != "../../etc" else "..//etc")


@pytest.mark.parametrize("project", ["kto", "kto (v2)", "höhe+1"])
def test_the_url_of_a_sweep_is_a_name_of_it(project):
    address = SweepRef("me", project, "ab12cd34").url("https://wandb.ai")
    assert parse_ref(address) == ("me", project, "ab12cd34")
    assert not set(address) & set(" ()ö")


def test_the_sweep_used_last_is_loaded(tmp_path):
    home = Home(tmp_path)
    save_sweep_record(home, SweepRef("me", "kto", "first"), local=True, base_url="http://a", file="a.yaml")
    save_sweep_record(home, SweepRef("me", "kto", "second"), local=True, base_url="http://a")
    assert load_sweep_record(home).id == "second"
    save_sweep_record(home, SweepRef("me", "kto", "first"), local=True, base_url="http://a")
    assert load_sweep_record(home).id == "first"
    assert load_sweep_record(home).file == "a.yaml"


def test_the_sweep_used_last_is_loaded_when_the_clock_was_set_back(tmp_path, monkeypatch):
    home = Home(tmp_path)
    save_sweep_record(home, SweepRef("me", "kto", "first"), local=True, base_url="http://a")
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    save_sweep_record(home, SweepRef("me", "kto", "second"), local=True, base_url="http://a")
    assert load_sweep_record(home).id == "second"


def test_a_damaged_record_is_skipped(tmp_path):
    home = Home(tmp_path)
    save_sweep_record(home, SweepRef("me", "kto", "good"), local=False, base_url="http://a")
    (home.sweeps / "bad.json").write_text("{")
    assert load_sweep_record(home).id == "good"
    assert load_sweep_record(home, "bad") is None


@pytest.mark.parametrize(
    ("ref", "argument"),
    [
        (SweepRef("local", "kto-sweep", "ab12"), "ab12"),
        (SweepRef("local", "faces", "ab12"), "local/faces/ab12"),
        (SweepRef("me", "kto-sweep", "ab12"), "me/kto-sweep/ab12"),
        (SweepRef("me", "my project", "ab12"), "'me/my project/ab12'"),
    ],
)
def test_a_printed_command_names_the_sweep_so_that_it_works_on_any_box(ref, argument):
    assert ref.argument == argument
    entity, project, sweep_id = parse_ref(*shlex.split(argument))
    assert SweepRef(entity or "local", project or "kto-sweep", sweep_id) == ref
