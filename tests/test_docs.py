"""README and docs: the reference is that of the code, every command is told of, links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kto_sweep.cli import COMMANDS
from kto_sweep.env_vars import VARIABLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INNER = {"KTO_SWEEP_DEVICES", "KTO_SWEEP_MESSAGE_FD"}
"""Set by an agent for its workers."""


def test_the_reference_is_that_of_the_code():
    code = "import make_reference; print(make_reference.reference(), end='')"
    written = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'docs'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    kept = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert kept == written, "the code has changed: make reference"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_in_the_readme_and_in_the_reference(name):
    for page in ("README.md", "docs/reference.md"):
        assert f"kto-sweep {name}" in (ROOT / page).read_text(encoding="utf-8"), page


def test_every_variable_of_our_own_is_told_of():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "kto_sweep").rglob("*.py"))
    assert set(re.findall(r"KTO_SWEEP_[A-Z_]+", sources)) - INNER <= set(VARIABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
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


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"(docs/{page.name}" in readme, page.name
