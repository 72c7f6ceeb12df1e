"""The page and the report say what the terminal says about the same sweep."""

import csv
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import python_forkserver
from playwright.sync_api import Locator, Page, Request, Route, expect
from seeds import SeededServer, SeededSweep, row
from strict_browser import StrictBrowser

FILES = SimpleNamespace(url="file://")
ORDER = ["good-2", "good-1", "good-3", "low-1", "low-2", "low-3", "halfway", "cut", "blown-up", "shaky"]
INTERVAL = 5000
"""Milliseconds between two comparisons."""


def rows(page: Page) -> Locator:
    return page.locator("table.runs tbody tr")


def names(page: Page) -> Locator:
    return rows(page).locator("th a")


def summary(page: Page, metric: str) -> Locator:
    return page.locator(f'.curve[data-metric="{metric}"] .summary')


@pytest.fixture
def noisy(seeded: SeededServer) -> SeededSweep:
    sweep = seeded.noisy
    seeded.stream("noise", "id-halfway")  # a heartbeat: it is running
    return sweep


@pytest.fixture(scope="module")
def terminal(
    seeded: SeededServer, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """What `compare --csv --html r.html` of the noisy sweep prints; `args` is the report's path."""
    folder = tmp_path_factory.mktemp("terminal")
    env = seeded.environ(folder)
    sweep = f"local/noise/{seeded.noisy.name}"
    command = ("-m", "kto_sweep", "compare", sweep, "--csv", "--html", "r.html")
    done = python_forkserver.run(command, folder, env)
    assert done.returncode == 0, done.stderr
    return subprocess.CompletedProcess(str(folder / "r.html"), 0, done.stdout, done.stderr)


def test_runs_stand_in_the_order_of_their_configurations(page: Page, noisy: SeededSweep) -> None:
    page.goto(noisy.path)
    expect(names(page)).to_have_text(ORDER)
    expect(rows(page).locator("td:nth-child(2)")).to_have_text(["1"] * 3 + ["2"] * 3 + ["-"] * 4)
    expect(rows(page).locator(".star")).to_have_count(3)
    expect(rows(page).locator(".state")).to_have_text(
        ["finished"] * 6
        + ["running (step 58 of 200)", "stopped early (step 20 of 200)", "failed (diverged)"]
        + ["finished (unstable)"]
    )
    diverged = rows(page).nth(8).locator(".state")
    expect(diverged).to_have_attribute("title", "the loss is nan since step 31")
    best = page.locator(".fact").filter(has_text="best")
    expect(best).to_have_text(
        re.compile(r"^best★ 0\.401 \[0\.\d+, 0\.\d+\] over 3 seeds: learning_rate 1e-05$")
    )


def test_a_click_on_a_column_sorts_freely_and_one_on_rank_restores_the_order(
    page: Page, noisy: SeededSweep
) -> None:
    page.goto(noisy.path)
    expect(names(page)).to_have_text(ORDER)
    expect(page.locator("th[aria-sort]")).to_contain_text("rank")
    page.get_by_role("button", name="eval/common_loss").click()
    expect(names(page).first).to_have_text("blown-up")
    expect(rows(page).first.locator(".star")).to_have_count(0)
    page.get_by_role("button", name="rank").click()
    expect(names(page)).to_have_text(ORDER)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("diverged", ["blown-up"]),
        ("unstable", ["shaky"]),
        ("gradients were inf", ["shaky"]),
        ("failed", ["blown-up", "shaky"]),
        ("ranked", ORDER[:6]),
        ("unfinished", ["halfway"]),
        ("step", ["halfway", "cut", "blown-up"]),  # the message of blown-up has the word
        ("stopped early", ["cut"]),
        ("failure=diverged", ["blown-up"]),
        ("rank=1 seed=2", ["good-2"]),
        ("eval/common_loss<0.395", ["low-1", "halfway", "cut", "blown-up", "shaky"]),
    ],
)
def test_a_search_finds_states_causes_and_messages(
    page: Page, noisy: SeededSweep, query: str, found: list[str]
) -> None:
    page.goto(noisy.path)
    page.get_by_label("Filter runs").fill(query)
    expect(names(page)).to_have_text(found)


def test_the_table_has_the_columns_and_rows_of_the_terminal(
    page: Page, noisy: SeededSweep, terminal: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    page.goto(noisy.path)
    expect(names(page)).to_have_text(ORDER)
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV").click()
    started.value.save_as(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as stream:
        saved = list(csv.DictReader(stream))
    printed = list(csv.DictReader(terminal.stdout.splitlines()))
    shared = ["rank", "run_id", "name", "state", "failure", "progress", "minutes", "eval/common_loss", "seed"]
    assert set(saved[0]) == {*shared, "learning_rate", "tags"}
    assert [[cells(line[name]) for name in shared] for line in saved] == [
        [cells(line[name]) for name in shared] for line in printed
    ]


def cells(text: str) -> float | str:
    """A number in any notation, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def test_verdict_and_numbering_are_those_of_the_report(
    page: Page,
    strict_browser: StrictBrowser,
    noisy: SeededSweep,
    terminal: subprocess.CompletedProcess[str],
) -> None:
    page.goto(noisy.path)
    expect(page.locator("#verdict dt").first).to_have_text("Best")
    report: Any = strict_browser.page(FILES, logged_in=False)  # type: ignore[arg-type]
    report.goto(Path(terminal.args).as_uri())
    expect(names(report)).to_have_text(ORDER)
    for part in (
        "#verdict dt",
        "#verdict dd",
        "#importance",
        "#scatter .summary",
        ".state-bar",
        "#runs thead",
    ):
        assert page.locator(part).all_inner_texts() == report.locator(part).all_inner_texts(), part
    text = page.locator("#scatter .summary").inner_text()
    # By creation: `good-1` is the fourth of the ten that were created within a second or two.
    assert "best configuration: \u2068good-1\u2069 (0.401, number " in text
    best = page.locator(".fact").filter(has_text="best").inner_text()
    assert report.locator(".fact").filter(has_text="best").inner_text() == best


def test_the_seed_is_a_column_and_no_parameter(page: Page, noisy: SeededSweep) -> None:
    page.goto(noisy.path)
    expect(page.locator("#parallel .axis-name")).to_have_text(
        ["learning_ratelearning_rate", "eval/common_losseval/common_loss"]
    )
    expect(page.locator("#importance")).not_to_contain_text("seed:")
    expect(page.locator("#runs").get_by_role("columnheader", name="seed")).to_be_visible()


def test_the_verdict_follows_the_sweep_and_moves_nothing(page: Page, seeded: SeededServer) -> None:
    others = {f"parameter_with_a_long_name_{letter}": {"values": [1, 2]} for letter in "abc"}
    sweep = seeded.register("follow", parameters={"beta": {"values": [0.1, 0.2, 0.3]}, **others})

    def finish(name: str, beta: float, loss: float) -> None:
        config = {"beta": {"value": beta}, **{other: {"value": 1} for other in others}}
        metrics = {"eval/common_loss": loss}
        values = {"host": "box", "sweep": sweep, "displayName": name, "state": "finished"}
        seeded.upsert("follow", name, **values, config=json.dumps(config), summaryMetrics=json.dumps(metrics))

    finish("first", 0.1, 0.4)
    held: list[Route] = []
    requests: list[Request] = []
    page.route("**/comparison", lambda route: route.continue_() if held else held.append(route))
    page.on("request", lambda request: requests.append(request) if "comparison" in request.url else None)
    page.clock.install(time=0)
    page.clock.pause_at(1)  # from here on, only run_for moves it
    page.goto(f"/local/follow/sweeps/{sweep}")
    while not held:
        page.clock.run_for(10)
    page.clock.run_for(300)  # the page waits no longer for the comparison
    expect(page.locator("#verdict")).to_contain_text("Loading")
    top = height_above_curves(page)
    held[0].continue_()
    expect(page.locator("#verdict")).to_contain_text("has the best eval/common_loss: 0.4;")
    assert height_above_curves(page) == top

    finish("second", 0.2, 0.3)
    page.clock.run_for(2100)
    expect(rows(page)).to_have_count(2)
    finish("third", 0.3, 0.2)
    page.clock.run_for(2100)
    expect(rows(page)).to_have_count(3)
    assert len(requests) == 1  # two changes within five seconds
    page.clock.run_for(INTERVAL)
    expect(page.locator("#verdict")).to_contain_text("has the best eval/common_loss: 0.2;")
    expect(page.locator(".fact").filter(has_text="best")).to_contain_text("★ 0.2: beta 0.3")
    assert len(requests) == 2
    assert height_above_curves(page) == top


def height_above_curves(page: Page) -> float:
    box = page.locator("#curves").bounding_box()
    assert box
    return box["y"]


@pytest.fixture(scope="module")
def crowd(seeded: SeededServer) -> str:
    """70 finished runs without curves, and two running ones with curves that rank below them; its path."""
    sweep = seeded.register("crowd", name="crowd", method="random", parameters={"beta": {"min": 0, "max": 1}})
    for number in range(70):
        config, metrics = {"beta": {"value": number / 70}}, {"eval/common_loss": 0.3 + number / 1000}
        values = {"host": "box", "sweep": sweep, "state": "finished", "displayName": f"done-{number}"}
        texts = {"config": json.dumps(config), "summaryMetrics": json.dumps(metrics)}
        seeded.upsert("crowd", f"done{number:02}", **values, **texts)
    for name in ("live-1", "live-2"):
        seeded.upsert("crowd", name, host="box", sweep=sweep, config='{"beta": {"value": 0.5}}')
        seeded.log("crowd", name, 0, [row(step, 1.0, 4) for step in range(20)])
    return f"/local/crowd/sweeps/{sweep}"


def test_running_runs_are_drawn_among_many(page: Page, seeded: SeededServer, crowd: str) -> None:
    for name in ("live-1", "live-2"):
        seeded.stream("crowd", name)  # a heartbeat
    page.goto(crowd)
    expect(page.locator('.curve[data-metric="loss"] .scatterlayer .trace')).to_have_count(2)
    expect(page.locator("#curves > .quiet")).to_contain_text("60 of 72 runs: running and selected ones")
    expect(summary(page, "logps/chosen")).to_have_count(0)


def test_an_empty_chart_says_why(page: Page, seeded: SeededServer, noisy: SeededSweep, crowd: str) -> None:
    for name in ("live-1", "live-2"):
        seeded.stream("crowd", name)
    page.goto(crowd)
    expect(summary(page, "loss")).to_contain_text("2 runs, up to step 19")
    page.get_by_label("Filter runs").fill("done-1")
    expect(summary(page, "loss")).to_have_text("loss: no visible run has logged it; 2 others have.")
    page.get_by_label("Filter runs").fill("done-")
    expect(summary(page, "loss")).to_have_text(
        "loss: none of the 60 drawn runs has logged it; 2 others have."
    )
    page.get_by_label("Filter runs").fill("nothing-has-this-name")
    expect(summary(page, "loss")).to_have_text("loss: no run matches the filter.")
    expect(page.locator("#scatter .summary")).to_have_text("eval/common_loss: no run matches the filter.")
    page.goto(noisy.path)
    expect(summary(page, "loss")).to_have_text("loss: no run has logged it yet.")
    expect(summary(page, "gpu/memory_peak_gb")).to_contain_text("not available on CPU")


def test_a_selected_run_is_drawn_although_others_are_better(
    page: Page, seeded: SeededServer, crowd: str
) -> None:
    page.goto(crowd)
    page.get_by_label("Filter runs").fill("state=finished")
    notice = page.locator("#curves > .quiet")
    expect(notice).to_contain_text("60 of 70 runs")
    with page.expect_request(re.compile("/curves.*run=done69")):
        page.get_by_role("checkbox", name="select done-69 to compare").check()
    expect(notice).to_contain_text("60 of 70 runs")


def test_curves_are_drawn_as_logged_and_evaluations_always(page: Page, seeded: SeededServer) -> None:
    run = seeded.grid.runs[0]
    page.goto(f"/local/kto/runs/{run}")
    expect(page.locator("#curves output")).to_have_text("0.00")
    drawn = (
        """metric => document.querySelector(`.curve[data-metric="${metric}"] .chart`).data.map(t => t.y)"""
    )
    curves = [page.locator(f'.curve[data-metric="{name}"] .trace') for name in ("loss", "eval/common_loss")]
    for curve in curves:
        expect(curve).to_have_count(1)
    [loss], [evaluated] = (page.evaluate(drawn, name) for name in ("loss", "eval/common_loss"))
    logged = page.request.get(f"/-/data/local/kto/curves?run={run}&key=loss&key=eval/common_loss&points=1000")
    values = logged.json()["curves"][run]
    assert (loss, evaluated) == (values["loss"]["value"], values["eval/common_loss"]["value"])
    page.get_by_label("Smoothing").fill("0.9")
    expect(curves[0]).to_have_count(2)  # the raw values, and the smoothed ones
    assert page.evaluate(drawn, "loss")[1] != loss
    assert page.evaluate(drawn, "eval/common_loss") == [evaluated]


def test_agents_are_listed_by_box_with_what_they_train(page: Page, seeded: SeededServer) -> None:
    sweep = seeded.register("boxes", parameters={"beta": {"values": [0.1, 0.2, 0.3]}})
    slots = [seeded.agent("boxes", sweep, f"gpu-box-1 gpu {number}") for number in range(2)]
    trials = [seeded.next_trial(slot)[0] for slot in slots]
    for trial, name in zip(trials, ("one", "two"), strict=True):
        seeded.upsert("boxes", trial, host="gpu-box-1", jobProgram="x", sweep=sweep, displayName=name)
        seeded.log("boxes", trial, 0, [row(step, 1.0, 4) for step in range(5)])
    page.goto(f"/local/boxes/sweeps/{sweep}")
    boxes = page.locator("#agents tbody tr")
    expect(boxes).to_have_count(1)
    cells = boxes.locator("th, td")
    expect(cells.nth(0)).to_have_text("gpu-box-1")
    expect(cells.nth(1)).to_have_text("online")
    expect(cells.nth(2)).to_have_text("gpu 0, gpu 1")
    expect(cells.nth(3)).to_have_text("2")
    expect(cells.nth(5).locator("a")).to_have_text(["one", "two"])
    seeded.stream("boxes", trials[0], preempting=True, complete=True, exitcode=1, files={})
    expect(cells.nth(5).locator("a")).to_have_text(["two"])
    seeded.stream("boxes", trials[1], complete=True, exitcode=0, files={})
    # Nobody takes the requeued trial: the agent has ended, though its heartbeats are recent.
    expect(cells.nth(1)).to_have_text("offline")
    expect(cells.nth(3)).to_have_text("0")
    expect(cells.nth(5).locator("a")).to_have_count(0)


def test_a_run_page_has_rank_value_and_cause(page: Page, noisy: SeededSweep) -> None:
    page.goto("/local/noise/runs/id-good-3")
    facts = page.locator(".facts")
    expect(facts).to_contain_text("rank★ 1")
    expect(facts).to_contain_text("eval/common_loss0.402")
    page.goto("/local/noise/runs/id-shaky")
    expect(facts).to_contain_text("statefinished (unstable)")
    expect(facts).not_to_contain_text("rank")
    expect(page.locator("p.warning")).to_contain_text("9 of the last 11 gradients were inf")


def test_the_list_has_the_value_of_the_best_configuration(page: Page, noisy: SeededSweep) -> None:
    path = noisy.path
    page.goto("/")
    line = page.locator("tr", has=page.locator(f'a[href="{path}"]'))
    expect(line.locator("b")).to_have_text("0.401")


def test_names_are_shown_and_ids_can_be(page: Page, noisy: SeededSweep) -> None:
    page.goto(noisy.path)
    expect(names(page)).to_have_text(ORDER)
    expect(page.locator("#runs")).not_to_contain_text("id-good-2")
    page.get_by_text("columns", exact=True).click()
    page.locator(".choices").get_by_label("id", exact=True).check()
    expect(rows(page).first).to_contain_text("id-good-2")
