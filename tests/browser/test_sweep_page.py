"""The sweep page in a real browser."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect
from seeds import FAILED, HOSTILE, HOSTILE_RUN, STEPS, SeededServer, row
from strict_browser import StrictBrowser

CURVES = ["rewards/margins", "loss", "kl", "gpu/memory_peak_gb"]


def panel(page: Page, metric: str) -> Locator:
    return page.locator(f'.curve[data-metric="{metric}"]')


def rows(page: Page) -> Locator:
    return page.locator("table.runs tbody tr")


def test_shows_everything_without_a_click(page: Page, seeded: SeededServer) -> None:
    seeded.stream("kto", seeded.grid.runs[21])  # the heartbeat of the running run
    page.goto(seeded.grid.path)
    expect(page.get_by_role("heading", name="lr-batch-beta")).to_be_visible()
    expect(page.locator(".state-bar")).to_contain_text("20 of 24 finished · 1 running · 1 failed")
    expect(rows(page)).to_have_count(22)
    expect(rows(page).first).to_contain_text("★")
    for metric in CURVES:
        expect(panel(page, metric).locator(".scatterlayer .trace")).to_have_count(22)
        expect(panel(page, metric).locator(".summary")).to_contain_text(f"22 runs, up to step {STEPS - 1}")
    expect(page.locator("#grid .summary")).to_have_text(
        "24 cells: ● 20 finished, ▶ 1 running, ✕ 1 failed (out of memory 1), · 2 not started."
    )
    expect(page.locator("#parallel .run-line")).to_have_count(22)
    expect(page.locator("#scatter .scatterlayer .point")).to_have_count(21)
    expect(page.locator("#importance tbody tr")).to_have_count(3)
    expect(page.locator("#importance tbody tr").first).to_contain_text("learning_rate")
    expect(page.locator("#importance .summary")).to_contain_text("From 20 runs")
    expect(page.locator("#agents")).to_contain_text("gpu-box-1")
    expect(page.locator("#yaml pre")).to_contain_text("method: grid")
    assert page.evaluate("document.title") == "lr-batch-beta · kto-sweep"


def test_runs_judged_on_other_rows_have_rankings_of_their_own(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.two_datasets.path)
    best = page.locator(".fact").filter(has_text="best")
    expect(best).to_contain_text("★ 0.3: beta 0.2, dataset a.jsonl on dataset a.jsonl")
    expect(best).to_contain_text("★ 0.1: beta 0.1, dataset b.jsonl on dataset b.jsonl")
    expect(page.locator("#verdict")).to_contain_text("judged on 2 sets of rows (dataset a.jsonl; dataset b")
    names = rows(page).locator("th")
    expect(rows(page).locator("td:nth-child(2)")).to_have_text(["1", "2", "1", "2"])
    expect(names).to_have_text(["★ a0.2", "a0.1", "★ b0.1", "b0.2"])
    expect(rows(page).first).to_contain_text("dataset a.jsonl")
    expect(page.locator("#scatter .summary")).to_contain_text(
        "best configuration on \u2068dataset a.jsonl\u2069: \u2068a0.2\u2069 (0.3, number 2)"
    )
    expect(page.locator("#scatter .scatterlayer .trace")).to_have_count(3)
    page.goto("/local/datasets")
    expect(page.locator("tbody tr").first).to_contain_text("two-datasets")
    expect(page.locator("tbody tr b")).to_have_text("-")


def test_a_hostile_name_is_text_everywhere(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    link = page.get_by_role("link", name=HOSTILE)
    expect(link.first).to_be_visible()
    chart = panel(page, "loss").locator(".chart")
    expect(chart.locator(".scatterlayer .trace")).to_have_count(22)
    name = seeded.grid.runs[HOSTILE_RUN]
    # plotly reads markup in its labels: the label must show the name as it is.
    page.evaluate(
        """([chart, title]) => {
            const number = chart.data.findIndex((trace) => trace.meta.includes("onerror"));
            Plotly.Fx.hover(chart, [{ curveNumber: number, pointNumber: 10 }]);
        }""",
        [chart.element_handle(), HOSTILE],
    )
    expect(chart.locator(".hoverlayer")).to_contain_text(HOSTILE)
    link.first.click()
    page.wait_for_url(f"**/runs/{name}")
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert page.locator("img").count() == 0


def test_sorts_filters_hides_and_chooses_columns(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    expect(rows(page)).to_have_count(22)
    page.get_by_role("button", name="learning_rate").click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("learning_rate")
    expect(rows(page).first).to_contain_text("1e-06")
    page.get_by_role("button", name="learning_rate").click()
    expect(rows(page).first).to_contain_text("1e-04")
    page.get_by_label("Filter runs").fill("state=finished batch_size=8 learning_rate<5e-5")
    expect(rows(page)).to_have_count(6)
    expect(panel(page, "loss").locator(".scatterlayer .trace")).to_have_count(6)
    page.get_by_role("button", name=re.compile("^show .* in the charts")).first.click()
    expect(panel(page, "loss").locator(".scatterlayer .trace")).to_have_count(5)
    page.get_by_role("button", name="show 1 hidden").click()
    expect(panel(page, "loss").locator(".scatterlayer .trace")).to_have_count(6)
    page.get_by_label("Filter runs").fill("nothing-has-this-name")
    expect(page.locator("#runs .empty")).to_contain_text("state=failed")
    page.get_by_label("Filter runs").fill("")
    page.get_by_text("columns", exact=True).click()
    page.locator(".choices").get_by_label("lora_r", exact=True).check()
    expect(page.get_by_role("columnheader", name="lora_r")).to_be_visible()


def test_saves_the_table_as_csv(page: Page, seeded: SeededServer, tmp_path: Path) -> None:
    page.goto(seeded.grid.path)
    expect(rows(page)).to_have_count(22)
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV").click()
    started.value.save_as(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as stream:
        saved = list(csv.DictReader(stream))
    assert {line["run_id"] for line in saved} == set(seeded.grid.runs)
    assert HOSTILE in [line["name"] for line in saved]
    assert float(saved[0]["eval/common_loss"]) == min(
        float(line["eval/common_loss"]) for line in saved if line["eval/common_loss"]
    )


def test_everything_works_with_the_keyboard(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    expect(rows(page)).to_have_count(22)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    sort = page.get_by_role("button", name="batch_size")
    sort.focus()
    page.keyboard.press("Enter")
    header = page.locator("#runs").get_by_role("columnheader", name="batch_size")
    expect(header).to_have_attribute("aria-sort", "ascending")
    expect(sort).to_be_focused()
    handle = page.get_by_role("slider", name="upper bound of beta")
    expect(handle).to_have_attribute("aria-valuetext", "0.4")
    handle.focus()
    page.keyboard.press("ArrowDown")
    expect(handle).to_be_focused()
    expect(page.locator("#runs [role=status]")).to_have_text("18 of 22 runs")
    expect(panel(page, "kl").locator(".scatterlayer .trace")).to_have_count(18)
    page.keyboard.press("Escape")
    expect(page.locator("#runs [role=status]")).to_have_text("22 runs")
    page.get_by_label("Smoothing").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#curves output")).to_have_text("0.01")


def test_brushing_with_the_mouse_selects_runs(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    handle = page.get_by_role("slider", name="lower bound of learning_rate")
    expect(page.locator("#importance tbody tr")).to_have_count(3)  # the last part to be drawn
    handle.hover()
    box = handle.bounding_box()
    assert box
    page.mouse.move(box["x"] + 8, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(box["x"] + 8, box["y"] - 150, steps=4)
    page.mouse.up()
    expect(page.locator("#runs [role=status]")).to_have_text("7 of 22 runs")
    page.get_by_role("button", name="clear selection").click()
    expect(page.locator("#runs [role=status]")).to_have_text("22 runs")


def test_axes_and_smoothing_change_the_charts(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    chart = panel(page, "loss").locator(".chart")
    expect(chart.locator(".scatterlayer .trace")).to_have_count(22)
    page.get_by_label("Horizontal axis").select_option("time")
    expect(chart.locator(".xtitle")).to_have_text("seconds")
    page.get_by_label("log y").check()
    page.wait_for_function("chart => chart.layout.yaxis.type === 'log'", arg=chart.element_handle())


def test_non_numbers_sort_last_in_both_directions(page: Page, seeded: SeededServer) -> None:
    sweep = seeded.register("odd", parameters={"learning_rate": {"values": [1.0, 2.0, 3.0]}})
    for name, loss in (("good", 0.3), ("broken", math.nan), ("better", 0.2)):
        summary = json.dumps({"eval/common_loss": loss})
        fields = {"host": "box", "displayName": name, "state": "finished", "summaryMetrics": summary}
        seeded.upsert("odd", name, sweep=sweep, **fields)
    page.goto(f"/local/odd/sweeps/{sweep}")
    expect(rows(page)).to_contain_text(["better", "good", "broken"])
    page.get_by_role("button", name="eval/common_loss").click()
    expect(rows(page)).to_contain_text(["better", "good", "broken"])
    page.get_by_role("button", name="eval/common_loss").click()
    expect(rows(page)).to_contain_text(["good", "better", "broken"])


def test_a_smoothed_constant_stays_constant(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    smoothed = page.evaluate(
        """async () => {
            const script = document.querySelector("script[type=module]").src;
            const { smooth } = await import(script.replace("sweep_page", "curves"));
            return smooth(Array(50).fill(12), 0.6);
        }"""
    )
    assert set(smoothed) == {12}


def test_a_sweep_without_runs_shows_the_agent_command(page: Page, seeded: SeededServer) -> None:
    name = seeded.register("empty", parameters={"learning_rate": {"values": [1, 2]}})
    page.goto(f"/local/empty/sweeps/{name}")
    expect(page.locator("#curves .empty")).to_contain_text(f"kto-sweep agent local/empty/{name}")
    expect(page.locator("#agents .empty")).to_contain_text("No agents yet")
    expect(page.locator("#grid .summary")).to_have_text("2 cells: · 2 not started.")


def test_a_running_run_is_updated_without_a_reload(page: Page, seeded: SeededServer) -> None:
    name = seeded.register("live", parameters={"learning_rate": {"values": [1.0, 2.0]}})
    page.goto(f"/local/live/sweeps/{name}")
    expect(page.locator("#runs .empty")).to_be_visible()
    agent = seeded.agent("live", name)
    run, _ = seeded.next_trial(agent)
    seeded.upsert("live", run, host="gpu-box-1", jobProgram="x", sweep=name)
    expect(panel(page, "loss").locator(".chart")).to_have_text("no data")
    seeded.log("live", run, 0, [row(step, 1.0, 4) for step in range(20)])
    expect(panel(page, "loss").locator(".summary")).to_contain_text("at step 19")
    seeded.log("live", run, 20, [row(step, 1.0, 4) for step in range(20, 60)])
    expect(panel(page, "loss").locator(".summary")).to_contain_text("at step 59")
    seeded.stream("live", run, files={}, complete=True, exitcode=0)
    expect(rows(page).first).to_contain_text("finished")


def test_a_thousand_runs(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.thousand.path)
    expect(rows(page)).to_have_count(100)
    expect(rows(page).first).to_contain_text("★ trial-0")
    expect(page.locator("#runs [role=status]")).to_have_text("1,000 runs")
    page.get_by_label("Filter runs").fill("seed=2 eval/common_loss<0.21")
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#runs [role=status]")).to_have_text("3 of 1,000 runs")
    page.get_by_label("Filter runs").fill("trial-99")
    expect(rows(page)).to_have_count(11)
    page.get_by_role("button", name="time").first.click()  # the order of another column, on the server
    expect(page.locator("#runs [role=status]")).to_have_text("11 of 1,000 runs")
    page.get_by_role("button", name="rank").click()
    page.get_by_label("Filter runs").fill("")
    expect(page.locator("#charts, #curves")).to_contain_text("All charts show the first 500 runs of 1,000.")
    page.get_by_role("button", name="show all 500 loaded").click()
    expect(rows(page)).to_have_count(500)
    page.get_by_role("button", name="load more of 1,000 runs").click()
    expect(rows(page)).to_have_count(1000)


PAGES = ["sweep", "failed run", "list", "compare"]


def path_of(seeded: SeededServer, kind: str) -> str:
    runs = seeded.grid.runs
    return {
        "sweep": seeded.grid.path,
        "failed run": f"/local/kto/runs/{runs[FAILED]}",
        "list": "/",
        "compare": f"/local/kto/compare?runs={runs[HOSTILE_RUN]},{runs[1]}",
    }[kind]


@pytest.mark.parametrize("kind", PAGES)
def test_pages_fit_a_phone_without_horizontal_scrolling(
    strict_browser: StrictBrowser, seeded: SeededServer, kind: str
) -> None:
    page = strict_browser.page(viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    page.goto(path_of(seeded, kind))
    ready = page.locator("table").first if kind == "list" else page.locator(".main-svg").first
    expect(ready).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    if kind != "list":
        ink = page.evaluate("document.querySelector('.main-svg text').style.fill")
        assert ink == "rgb(152, 163, 179)"


def test_page_data_is_strict_json(page: Page, seeded: SeededServer) -> None:
    """The data of pages contains no NaN."""
    data = page.request.get(f"/-/data{seeded.grid.path}")
    assert json.loads(data.text())["sweep"]["name"] == seeded.grid.name
