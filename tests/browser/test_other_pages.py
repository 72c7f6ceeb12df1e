"""The list of sweeps, a run, runs side by side; the login and what it allows."""

import json
import re
from pathlib import Path

import httpx
import pytest
import python_forkserver
from playwright.sync_api import Page, expect
from seeds import FAILED, HOSTILE, HOSTILE_RUN, SeededServer, row
from strict_browser import StrictBrowser

from kto_sweep.home import Home
from kto_sweep.local_server.start import ensure_server, stop_server

GROUPS = ["Hyper-parameters", "Model", "Data", "Code", "Environment", "Command"]


def test_list_shows_each_sweep_in_a_row(page: Page, seeded: SeededServer) -> None:
    path = seeded.grid.path
    seeded.stream("kto", seeded.grid.runs[21])  # a heartbeat: it is running
    page.goto("/")
    line = page.locator("tr", has=page.locator(f'a[href="{path}"]'))
    expect(line).to_contain_text("20 of 24 finished · 1 running · 1 failed")
    expect(line).to_contain_text("grid")
    expect(line).to_contain_text("eval/common_loss")
    line.get_by_role("link", name="local/kto").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("local/kto")
    page.get_by_role("link", name="lr-batch-beta").click()
    page.wait_for_url(f"**{path}")


def test_a_failed_run_shows_its_cause(page: Page, seeded: SeededServer) -> None:
    page.goto(f"/local/kto/runs/{seeded.grid.runs[FAILED]}")
    expect(page.locator(".facts")).to_contain_text("failed (out of memory)")
    expect(page.locator("#alerts")).to_contain_text("KL runs away kl_raw 12 > 10")
    expect(page.locator("#console .error")).to_have_text("no memory\n")
    expect(page.locator("#config")).to_contain_text("lora_r")
    expect(page.locator("#summary")).to_contain_text("failure/cause")
    expect(page.locator('.curve[data-metric="rewards/margins"] .trace')).to_have_count(1)
    expect(page.locator('#system .curve[data-metric="system.gpu.0.gpu"] .trace')).to_have_count(1)
    expect(page.locator("#files .empty")).to_be_visible()


def test_a_run_shows_what_it_was_trained_with_in_groups(page: Page, seeded: SeededServer) -> None:
    record = {
        "command": ["kto-sweep", "train", "--local-file", "my rows.jsonl"],
        "environment": {"gpu": "NVIDIA H200", "torch": "2.13.0"},
        "model": {"name": HOSTILE, "parameters": 494032768},
        "code": {"commit": "c0ffee", "dirty": False},
        "data": {"train": {"rows": 324}},
    }
    config = {"beta": {"value": 0.25}, "_device": {"value": "gpu 0"}, "record": {"value": record}}
    seeded.upsert("recorded", "run1", host="box", jobProgram="x", config=json.dumps(config))
    page.goto("/local/recorded/runs/run1")
    expect(page.locator("#config td")).to_have_text("0.25")
    titles = page.locator("main h2")
    expect(titles.filter(has_text="Model")).to_be_visible()
    shown = [title for title in titles.all_inner_texts() if title in GROUPS]
    assert shown == GROUPS
    table = page.get_by_role("region", name="Model", exact=True)
    expect(table).to_contain_text(HOSTILE)
    expect(page.get_by_role("region", name="Data", exact=True)).to_contain_text("train.rows")
    expect(page.get_by_role("region", name="Command", exact=True)).to_contain_text("'my rows.jsonl'")
    page.get_by_label("Filter Environment").fill("torch")
    expect(page.get_by_role("region", name="Environment", exact=True).locator("tr")).to_have_count(1)


def test_comparison_starts_with_differing_values(page: Page, seeded: SeededServer) -> None:
    page.goto(seeded.grid.path)
    boxes = page.get_by_role("checkbox", name=re.compile("^select"))
    boxes.nth(0).check()
    expect(page.get_by_text("compare 1")).to_have_attribute("aria-disabled", "true")
    boxes.nth(21).check()
    page.get_by_role("link", name="compare 2").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 runs side by side")
    expect(page.locator("#config table").first.locator("tbody tr")).to_have_count(
        page.locator("#config table").first.locator("tr.differs").count()
    )
    expect(page.locator("#config summary")).to_have_text(re.compile("the same in all runs"))
    # The raw values are drawn behind each smoothed line.
    expect(page.locator('.curve[data-metric="loss"] .trace')).to_have_count(2)


def test_comparison_keeps_focus_while_a_run_continues(page: Page, seeded: SeededServer) -> None:
    sweep = seeded.register("aside", parameters={"learning_rate": {"values": [1.0, 2.0]}})
    agent = seeded.agent("aside", sweep)
    runs = [seeded.next_trial(agent)[0] for _ in range(2)]
    for run in runs:
        seeded.upsert(
            "aside", run, host="box", jobProgram="x", sweep=sweep, config='{"lora_r": {"value": 16}}'
        )
        seeded.log("aside", run, 0, [row(step, 1.0, 4) for step in range(20)])
    page.goto(f"/local/aside/compare?runs={','.join(runs)}")
    fold = page.locator("#config details")
    fold.locator("summary").click()
    slider = page.get_by_label("Smoothing")
    slider.focus()
    seeded.log("aside", runs[0], 20, [row(step, 1.0, 4) for step in range(20, 60)])
    expect(page.locator('.curve[data-metric="loss"] .summary')).to_contain_text("up to step 59")
    expect(fold).to_have_attribute("open", "")
    expect(slider).to_be_focused()


def test_comparison_of_ten_runs_has_ten_colours_and_names_of_any_length(
    strict_browser: StrictBrowser, seeded: SeededServer
) -> None:
    names = seeded.grid.runs[6:16]
    seeded.upsert("kto", names[0], displayName="x" * 120)
    seeded.upsert("kto", names[1], displayName="שלום")
    page = strict_browser.page(viewport={"width": 390, "height": 844})
    page.goto(f"/local/kto/compare?runs={','.join(names)}")
    swatches = page.locator(".compared .swatch")
    expect(swatches).to_have_count(10)
    colours = swatches.evaluate_all("all => all.map((each) => getComputedStyle(each).backgroundColor)")
    assert len(set(colours)) == len(names)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # A right-to-left name does not reorder the text after it.
    line = page.locator(".compared li").nth(1)
    name, time = line.locator("a").bounding_box(), line.locator(".quiet").bounding_box()
    assert name
    assert time
    assert name["x"] + name["width"] <= time["x"]


def test_comparison_with_a_deleted_run_says_what_to_do(
    strict_browser: StrictBrowser, seeded: SeededServer
) -> None:
    page = strict_browser.page()
    page.goto(f"/local/kto/compare?runs={seeded.grid.runs[0]},nobody")
    expect(page.locator(".empty")).to_contain_text("there is no run nobody. Select 2 to 10 runs")
    strict_browser.errors = [error for error in strict_browser.errors if "404" not in error]


def test_comparison_without_runs_says_what_to_do(page: Page, seeded: SeededServer) -> None:
    seeded.grid  # noqa: B018  the project must be there
    page.goto("/local/kto/compare")
    expect(page.locator(".empty")).to_contain_text("Select 2 to 10 runs")


def test_pages_say_that_a_server_stopped_and_continue_when_it_is_back(
    strict_browser: StrictBrowser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(tmp_path_factory.mktemp("gone") / "home")
    gone = SeededServer(ensure_server(home))
    page, other = strict_browser.page(gone), strict_browser.page(gone)
    page.goto("/")
    expect(page.locator(".empty")).to_contain_text("kto-sweep create sweeps/demo.yaml --local")
    sweep = gone.register("first", parameters={"learning_rate": {"values": [1.0, 2.0]}})
    gone.agent("first", sweep)
    other.goto(gone.address.login_link(f"/local/first/sweeps/{sweep}"))
    expect(other.locator("#live")).to_have_text("live")
    expect(other.get_by_role("button", name="pause")).to_be_visible()
    stop_server(home)
    for one in (page, other):
        expect(one.locator("#live")).to_have_text("The server does not respond. Run: kto-sweep serve")
    back = SeededServer(ensure_server(home))
    assert back.url == gone.url
    expect(other.locator("#live")).to_have_text("live")
    expect(page.locator("body")).to_contain_text("first")
    other.get_by_role("button", name="pause").click()  # still logged in
    expect(other.locator(".facts .state")).to_have_text("paused")
    for one in (page, other):
        one.goto("about:blank")
    gone.close()
    back.close()
    stop_server(home)
    # The browser itself notes what it could not load.
    strict_browser.errors = [
        error for error in strict_browser.errors if "ERR_CONNECTION_REFUSED" not in error
    ]


def test_a_login_link_opens_its_page_and_works_once(
    strict_browser: StrictBrowser, seeded: SeededServer
) -> None:
    link = seeded.address.login_link(seeded.grid.path)
    page = strict_browser.page(logged_in=False)
    page.goto(link)
    expect(page).to_have_url(f"{seeded.url}{seeded.grid.path}")
    expect(page.get_by_role("button", name="pause")).to_be_visible()
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert seeded.address.key not in link + page.url + cookie["value"]
    page.goto(link)  # here the page is open to its browser already
    expect(page).to_have_url(f"{seeded.url}{seeded.grid.path}")
    other = strict_browser.page(logged_in=False)
    other.goto(link)
    expect(other.locator("#main")).to_contain_text("was used before")
    expect(other.locator("#main code")).to_have_text(f"kto-sweep view local/kto/{seeded.grid.name}")
    assert other.context.cookies() == []
    strict_browser.errors = [error for error in strict_browser.errors if "401" not in error]


def test_controls_change_the_sweep_and_stop_a_run(page: Page, seeded: SeededServer) -> None:
    sweep = seeded.register("moved", parameters={"learning_rate": {"values": [1.0, 2.0]}})
    agent = seeded.agent("moved", sweep)
    run, _ = seeded.next_trial(agent)
    seeded.upsert("moved", run, host="box", jobProgram="x", sweep=sweep)
    page.goto(f"/local/moved/sweeps/{sweep}")
    state = page.locator(".facts .state")
    page.get_by_role("button", name="pause").click()
    expect(state).to_have_text("paused")
    page.get_by_role("button", name="resume").click()
    expect(state).to_have_text("running")
    page.goto(f"/local/moved/runs/{run}")
    page.get_by_role("button", name="stop").click()
    page.get_by_role("button", name="stop: sure?").click()
    expect(page.locator(".facts .state")).to_have_text("stopping")
    page.goto(f"/local/moved/sweeps/{sweep}")
    page.get_by_role("button", name="cancel").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="cancel: sure?")).to_be_focused()
    page.keyboard.press("Enter")
    expect(state).to_have_text("canceling")
    seeded.stream("moved", run, complete=True, exitcode=1, files={})
    expect(state).to_have_text("canceled")


def test_tags_and_notes_are_kept_and_shown_in_the_table(page: Page, seeded: SeededServer) -> None:
    run = seeded.grid.runs[HOSTILE_RUN]
    page.goto(f"/local/kto/runs/{run}")
    page.get_by_label("Tags, separated by commas").fill("keep, <i>odd</i>")
    page.get_by_label("Notes").fill("=worth a second look")
    with page.expect_response(re.compile("/-/do/")) as sent:
        page.get_by_role("button", name="save").click()
    assert sent.value.ok
    page.goto(seeded.grid.path)
    line = page.locator(f'tr[data-run="{run}"]')
    expect(line.locator(".tag")).to_have_text(["keep", "<i>odd</i>"])
    page.get_by_label("Filter runs").fill("tags=keep")
    expect(page.locator("table.runs tbody tr")).to_have_count(1)


def test_an_action_from_a_foreign_page_is_rejected(page: Page, seeded: SeededServer) -> None:
    """The cookie alone is not enough: actions also need the CSRF token."""
    path = f"/-/do{seeded.grid.path}"
    assert page.request.post(path, data={"action": "pause"}).status == 403
    csrf = page.request.get("/-/data/sweeps").json()["csrf"]
    headers = {"x-kto-sweep-csrf": csrf}
    foreign = page.request.post(
        path, data={"action": "x"}, headers={**headers, "origin": "http://evil.example"}
    )
    assert foreign.status == 403
    assert page.request.post(path, data={"action": "x"}, headers=headers).status == 400


def test_files_need_a_login(page: Page, seeded: SeededServer) -> None:
    run = seeded.grid.runs[0]
    query = """mutation($run: String!) { createRunFiles(input: {entityName: "local", projectName: "kto",
        runName: $run, files: ["weights.txt"]}) { files { uploadUrl } } }"""
    url = seeded.graphql(query, run=run)["createRunFiles"]["files"][0]["uploadUrl"]
    assert httpx.put(url, content=b"bytes").status_code == 200
    page.goto(f"/local/kto/runs/{run}")
    link = page.locator("#files").get_by_role("link", name="weights.txt")
    with page.expect_download() as started:
        link.click()
    assert started.value.path().read_bytes() == b"bytes"
    assert httpx.get(f"{seeded.url}{link.get_attribute('href')}").status_code == 401


LOG_ARTIFACTS = """
import pathlib
import wandb

with wandb.init(entity="local", project="kto", id="logs-artifacts") as run:
    for text in ("first", "second"):
        artifact = wandb.Artifact("weights", type="model")
        pathlib.Path("b.txt").write_text(text)
        artifact.add_file("b.txt", name="a <b>.txt")
        artifact.add_file("b.txt", name="deep/b.txt")
        artifact.add_reference("https://example.com/far", name="far", checksum=False)
        run.log_artifact(artifact, aliases=["best"])
"""


def test_a_runs_artifacts_are_listed_and_downloaded(page: Page, seeded: SeededServer, tmp_path: Path) -> None:
    run = "logs-artifacts"
    done = python_forkserver.run(("-c", LOG_ARTIFACTS), tmp_path, seeded.environ(tmp_path))
    assert done.returncode == 0, done.stderr
    page.goto(f"/local/kto/runs/{run}")
    listed = page.locator("#artifacts details")
    expect(listed.locator(".name")).to_have_text(["weights:v1", "weights:v0"])
    expect(listed.nth(0).locator("summary")).to_contain_text("model, logged, 3 files")
    expect(listed.nth(0).locator(".tag")).to_have_text(["latest", "best"])
    listed.nth(0).locator("summary").click()
    files = listed.nth(0).locator("tbody tr")
    expect(files.locator("th")).to_have_text(
        ["a <b>.txt", "deep/b.txt", re.compile("^far .https://example.com/far.$")]
    )
    expect(listed.nth(0)).to_contain_text("wandb artifact get local/kto/weights:v1")
    with page.expect_download() as started:
        files.nth(0).get_by_role("link").click()
    assert started.value.path().read_bytes() == b"second"
    link = files.nth(1).get_by_role("link").get_attribute("href")
    assert httpx.get(f"{seeded.url}{link}").status_code == 401
