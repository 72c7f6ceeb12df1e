"""Writes docs/pictures from a real sweep of the tiny model, a few minutes on a CPU: `make pictures`.

dashboard.png   the page of the sweep on the embedded server, in Chromium, as far as its runs
compare.svg     what `kto-sweep compare` prints
curves.png      what `kto-sweep compare --png` writes
"""

import io
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server
from kto_sweep.sweep.ref import load_sweep_record

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = os.environ.get("KTO_SWEEP_CHROMIUM", "/usr/bin/chromium")
COLUMNS = 136
"""Of the terminal."""

SWEEP = """\
name: support-replies
program: agent.py
method: grid
metric: {name: eval/common_loss, goal: minimize}
parameters:
  learning_rate: {values: [1.0e-3, 3.0e-3, 1.0e-2]}
  batch_size: {values: [4, 8]}
  beta: {values: [0.1, 0.3]}
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  max_steps: {value: 20}
  max_length: {value: 192}
"""

SVG = """\
<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px;
    line-height: {line_height}px;
}}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#f6f8fa" stroke="#d0d7de" width="{terminal_width}" height="{terminal_height}" rx="6"/>
<g class="{unique_id}-matrix">{matrix}</g>
</svg>
"""
"""rich's own template loads a font from another host."""


def main() -> None:
    """Train the sweep in a temporary home and draw its pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch) / "home")
        file = Path(scratch) / "support-replies.yaml"
        file.write_text(SWEEP, encoding="utf-8")
        try:
            kto_sweep(home, "create", str(file), "--local")
            kto_sweep(home, "agent", "--cpu", "--trials-per-gpu", "4")
            draw(home)
        finally:
            stop_server(home)


def draw(home: Home) -> None:
    """Write the pictures of the sweep used last in a home."""
    kto_sweep(home, "compare", "--png", str(PICTURES / "curves.png"))
    draw_terminal(kto_sweep(home, "compare"), PICTURES / "compare.svg")
    record = load_sweep_record(home)
    assert record is not None
    server = ensure_server(home)
    save_screenshot(server.login_link(record.ref.url("")), PICTURES / "dashboard.png")
    for path in PICTURES.glob("*.png"):
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size


def kto_sweep(home: Home, *args: str) -> str:
    """The output of one command."""
    print("$ kto-sweep", *args, flush=True)
    return subprocess.run(
        [sys.executable, "-m", "kto_sweep", *args],
        cwd=ROOT,
        env=os.environ | {"KTO_SWEEP_HOME": str(home.root), "PYTHONUTF8": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def draw_terminal(text: str, path: Path) -> None:
    """Write the text as a terminal shows it."""
    wrapped = [part for line in text.splitlines() for part in wrap(line.rstrip())]
    lines = ["", *(f"  {line}" for line in wrapped), ""]
    width = max(map(len, lines)) + 2
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False, legacy_windows=False)
    for line in lines:
        console.print(Text(line, style="bold" if line.lstrip().startswith("* 1 ") else ""))
    console.save_svg(str(path), theme=DEFAULT_TERMINAL_THEME, code_format=SVG, unique_id="compare")


def wrap(line: str) -> list[str]:
    """A line in parts of at most COLUMNS, indented to its sentence's first word; a table's line unchanged."""
    sentence = re.match(r"(\S+ )*\S+ {2,}(?=\S+ \S+ \S)|\s+(?=\S+ \S+ \S)", line)
    if len(line) <= COLUMNS or sentence is None:
        return [line]
    return textwrap.wrap(line, COLUMNS, subsequent_indent=" " * sentence.end())


def save_screenshot(url: str, path: Path) -> None:
    """Write what a browser shows at `url` once its charts are drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1000})
        page.goto(url)
        page.locator(".curve .scatterlayer .trace").first.wait_for()
        page.locator("#verdict dl").wait_for()
        page.wait_for_load_state("networkidle")
        runs = page.locator("#runs").bounding_box()
        assert runs is not None
        clip = {"x": 0, "y": 0, "width": 1360, "height": runs["y"] + runs["height"] + 14}
        page.screenshot(path=path, full_page=True, clip=clip)
        browser.close()


if __name__ == "__main__":
    main()
