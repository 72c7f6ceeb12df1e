"""The report of `compare`, opened as a local file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import python_forkserver
from playwright.sync_api import expect
from seeds import HOSTILE, SeededServer

FILES = SimpleNamespace(url="file://")


@pytest.fixture(scope="module")
def report(seeded: SeededServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    env = seeded.environ(folder)
    command = ("-m", "kto_sweep", "compare", f"local/kto/{seeded.grid.name}", "--html", "r.html")
    done = python_forkserver.run(command, folder, env)
    assert done.returncode == 0, done.stderr
    return folder / "r.html"


def test_a_report_shows_verdict_charts_and_hostile_names_without_any_request(
    report: Path, strict_browser: Any
):
    page = strict_browser.page(FILES, logged_in=False, viewport={"width": 1360, "height": 900})
    page.goto(report.as_uri())
    for metric in ("rewards/margins", "loss", "kl", "gpu/memory_peak_gb"):
        panel = page.locator(f"[data-metric='{metric}']")
        expect(panel.locator(".js-plotly-plot .scatterlayer .trace")).to_have_count(22)
    expect(page.locator("#verdict")).to_contain_text("learning_rate: 92% of the importance")
    expect(page.locator("#importance tbody tr")).to_have_count(3)
    expect(page.locator("#scatter .js-plotly-plot")).to_be_visible()
    expect(page.locator("svg.parallel .axis")).to_have_count(4)
    expect(page.locator("table.runs tbody tr")).to_have_count(22)
    expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
    page.get_by_label("Filter runs").fill("state=failed")
    expect(page.locator("table.runs tbody tr")).to_have_count(1)


def test_a_report_fits_a_phone_in_the_dark(report: Path, strict_browser: Any):
    page = strict_browser.page(
        FILES, logged_in=False, viewport={"width": 390, "height": 800}, color_scheme="dark"
    )
    page.goto(report.as_uri())
    expect(page.locator("[data-metric='loss'] .js-plotly-plot")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in background[4:-1].split(",")[:3]) < 200
