"""The addresses of pages that commands print: on a terminal links that log a browser in, elsewhere plain."""

import ast
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fake_worker import CLI
from machine import ROOT, Machine

from kto_sweep.cli import main
from kto_sweep.local_server.login_tokens import login_link

SWEEP = """
method: grid
metric: {name: loss, goal: minimize}
parameters:
  learning_rate: {values: [1.0e-3, 2.0e-3]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  max_steps: {value: 3}
"""
PRINTERS = ("cli", "agent", "train_command")
"""Packages that print."""


def pages(output: str, server: str) -> list[str]:
    """The addresses of the server's pages in an output; that of the server itself is no page."""
    return re.findall(rf"{re.escape(server)}/\S+", output)


@pytest.mark.slow  # test_no_address_is_printed_in_another_way covers every command
def test_commands_print_new_links_on_a_terminal_alone(tmp_path: Path) -> None:
    machine, there = Machine(tmp_path / "here", cli=CLI), Machine(tmp_path / "there", cli=CLI)
    for each in (machine, there):
        each.folder.mkdir()
    (machine.folder / "my.yaml").write_text(SWEEP)
    try:
        links = []
        for command in (("create", "my.yaml"), ("agent", "--cpu"), ("view",)):
            [link] = pages(machine.on_terminal(*command), machine.address.url)
            links.append(link)
        # A command on another box has the server's key, so it makes links, too.
        sweep = urlsplit(links[0]).path.replace("/sweeps/", "/").strip("/")
        remote = machine.server_environment()
        links += pages(there.on_terminal("view", sweep, **remote), machine.address.url)
        assert len(links) == len(set(links)) == 4
        for link in links:
            assert httpx.get(link).headers["location"] == urlsplit(link).path
            assert httpx.get(link).status_code == 401
        [page] = pages(machine.run("view"), machine.address.url)
        assert machine.http.get(page).status_code == 200
        written = [
            path for path in machine.folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"
        ]
        assert written
        assert not [path for path in written if b"?login=" in path.read_bytes()]
    finally:
        machine.close()


def test_no_address_is_printed_in_another_way() -> None:
    """A command puts `.url` or `.run_url()` into a text only through `page_link`."""
    plain = []
    for path in (path for package in PRINTERS for path in (ROOT / "kto_sweep" / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.FormattedValue) else None
            value = value.func if isinstance(value, ast.Call) else value
            if isinstance(value, ast.Attribute) and value.attr in {"url", "run_url"}:
                plain.append(f"{path.name}:{node.lineno}")
    assert plain == []


def test_a_pasted_link_loses_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "http://127.0.0.1:8642/local/kto-sweep/sweeps/ab12"
    monkeypatch.setattr("sys.argv", ["kto-sweep", "view", login_link(page, "key"), "--help"])
    with pytest.raises(SystemExit):
        main()
    assert sys.argv[1:] == ["view", page, "--help"]


def test_serve_refuses_open_for_a_running_server(tmp_path: Path) -> None:
    said = Machine(tmp_path).run("serve", "--open", "--login", code=2)
    assert "--open is for a server that starts" in said
    assert not (tmp_path / "home" / "server").exists()
