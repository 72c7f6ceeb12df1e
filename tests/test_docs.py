"""README, docs and docstrings: generated parts match their sources, examples are valid, links work."""

import doctest
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from printed_commands import check_command

from kto_sweep.cli import COMMANDS
from kto_sweep.env_vars import VARIABLES
from kto_sweep.sweep_file.validate import validate

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = [page for page in PAGES if page.name != "reference.md"]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "kto_sweep").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
"""Modules with doctests. To collect those of all modules, each test process would import every one."""
INNER = {"KTO_SWEEP_DEVICES", "KTO_SWEEP_MESSAGE_FD", "KTO_SWEEP_UMASK"}
"""Set by an agent for its workers."""


@pytest.mark.parametrize("page", ["reference.md", "data.md"])
def test_generated_pages_are_those_of_the_code(page):
    code = f"import make_reference; print(make_reference.PAGES[{page!r}](), end='')"
    written = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'docs'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    kept = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert kept == written, "the code has changed: make reference"


def test_the_chart_is_that_of_its_data():
    chart = runpy.run_path(str(ROOT / "docs" / "make_chart.py"))["chart"]
    drawn = (ROOT / "docs" / "pictures" / "rivals.svg").read_text(encoding="utf-8")
    assert drawn == chart(rivals()), "benchmarks/rivals.json has changed: python docs/make_chart.py"


def test_the_readme_states_the_lead_that_the_data_has():
    script = runpy.run_path(str(ROOT / "docs" / "make_chart.py"))
    panels = script["by_model"](rivals())
    leads = ", ".join(f"{script['lead'](results):.1f}x" for results in panels.values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"kto-sweep is ([^:]*) as\s+fast as the fastest", readme)
    assert stated is not None
    assert ", ".join(re.findall(r"[\d.]+x", stated[1])) == leads


def test_the_sweep_file_of_the_readme_is_valid_for_rows_as_it_shows_them(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    row = json.loads(next(text for _, text in code_blocks(readme) if text.startswith('{"messages"')))
    question, answer = row["messages"]
    rows = [
        {
            "messages": [{**question, "content": f"{number}. {question['content']}"}, answer],
            "label": number % 2 == 0,
        }
        for number in range(600)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = tmp_path / "my.yaml"
    file.write_text(next(text for kind, text in code_blocks(readme) if kind == "yaml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    checked = validate(file)
    assert [str(problem) for problem in (*checked.errors, *checked.warnings)] == []
    assert checked.sweep is not None
    assert len(file.read_text().splitlines()) == 10


def test_the_sweep_files_of_their_guide_are_valid(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "sweep-files.md").read_text(encoding="utf-8")
    texts = [text for kind, text in code_blocks(page) if kind == "yaml"]
    monkeypatch.chdir(tmp_path)
    sweeps = []
    for text in texts:
        Path("sweep.yaml").write_text(text, encoding="utf-8")
        checked = validate(Path("sweep.yaml"))
        assert checked.errors == ()
        sweeps.append(checked.checked())
    assert sweeps[0].config["parameters"]["lora_r"] == {"value": 8}
    assert [sweep.expected_trials for sweep in sweeps] == [6, 4, 2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_reference_and_in_a_guide(name):
    assert f"### kto-sweep {name}\n" in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert any(re.search(rf"kto-sweep {name}\b", page.read_text(encoding="utf-8")) for page in GUIDES)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_command_line_has_a_command_and_options_that_exist(page):
    for words in command_lines(page.read_text(encoding="utf-8")):
        check_command(words[1:])


def test_every_environment_variable_of_kto_sweep_is_documented():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "kto_sweep").rglob("*.py"))
    assert set(re.findall(r"KTO_SWEEP_[A-Z_]+", sources)) - INNER <= set(VARIABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_has_a_target(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, section = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        if section:
            assert section in anchors(found), target


def rivals():
    return json.loads((ROOT / "benchmarks" / "rivals.json").read_text(encoding="utf-8"))


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield block[1], block[2]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each `kto-sweep ...` in code, without its prompt and comment."""
    lines = [line for _, block in code_blocks(text) for line in block.splitlines()]
    for code in (*lines, *re.findall(r"`(kto-sweep [^`]*)`", text)):
        shown = re.match(r"(?:\w*[$] )?(kto-sweep [a-z].*)", code)
        if shown:
            yield shlex.split(shown[1], comments=True)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"(docs/{page.name}" in readme, page.name


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_worked_examples_of_docstrings_hold(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed


def test_every_dependency_is_explained_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    names = {
        re.split(r"[^\w-]", each)[0]
        for each in (*project["dependencies"], *extras["gguf"], *extras["wandb-views"])
    }
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert {name for name in names if f"`{name}`" not in architecture} == set()
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names |= {re.split(r"[^\w-]", each)[0].lower() for each in extras["dev"]}
    assert names - {line.partition("==")[0] for line in pins} == set()
