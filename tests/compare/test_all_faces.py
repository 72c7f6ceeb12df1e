"""Terminal, JSON, report, picture and page say the same about the same sweep."""

import json
import re

import httpx
import pytest
from seeded_sweeps import PROJECT, cases, seed

from kto_sweep.compare.comparison import compare
from kto_sweep.report.picture import MAX_RANKED, draw_picture
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.connection import Target, connect
from kto_sweep.wandb_client.reader import read_sweep

SHARED = ("run_id", "rank", "value", "standing", "progress", "judged_on", "state", "failure", "message")
"""What JSON, report and page say about each trial."""
CASES = cases()


@pytest.fixture(scope="module")
def sweeps(seeded):
    return {name: seed(seeded, case) for name, case in CASES.items()}


def report_data(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_there_are_twenty_cases():
    assert len(CASES) == 20


@pytest.mark.parametrize("name", CASES)
def test_all_faces_say_the_same(name, seeded, sweeps, machine, tmp_path):
    sweep = f"local/{PROJECT}/{sweeps[name]}"
    as_json = machine.json("compare", sweep)
    shown = machine.run("compare", sweep, "--html", "r.html")
    report = report_data((tmp_path / "r.html").read_text(encoding="utf-8"))
    auth = ("api", seeded.address.key)
    path = f"{seeded.url}/-/data/local/{PROJECT}/sweeps/{sweeps[name]}"
    page = httpx.get(path, auth=auth, timeout=60).json()
    compared = httpx.get(f"{path}/comparison", auth=auth, timeout=60).json()

    # Trials: order, ranks, states, causes.
    trials = [{key: trial[key] for key in SHARED} for trial in as_json["trials"]]
    assert [{key: row[key] for key in SHARED} for row in report["runs"]] == trials
    rows = {row["name"]: row for row in page["runs"]}
    assert [{key: rows[run][key] for key in SHARED} for run in page["order"]] == trials

    # Verdict, next steps, sentences and importance.
    assert report["verdict"] == compared["verdict"] == as_json["verdict"]
    assert report["importance"] == compared["importance"] == as_json["importance"]
    lines = shown.splitlines()
    for part in as_json["verdict"]["sentences"]:
        for index, sentence in enumerate(part["sentences"]):
            heading = part["heading"] if index == 0 else ""
            assert f"{heading:<14} {sentence}" in lines

    # Stars: on the winner's runs, in the table and on the picture.
    winners = [trial["name"] for trial in as_json["trials"] if trial["rank"] == 1]
    stars = [line for line in lines if re.match(r"\s*\* 1\s+(?!learning_rate|dataset|beta)\S", line)]
    assert len(stars) >= len(winners)
    target = Target(seeded.url, seeded.url, local=True, key=seeded.address.key)
    comparison = compare(read_sweep(connect(target), target, SweepRef("local", PROJECT, sweeps[name])))
    ranking = next(
        axes for axes in draw_picture(comparison, {}).axes if axes.get_title().startswith(comparison.metric)
    )
    ranked = [item for item in comparison.trials if item.rank is not None]
    labels = [text.get_text() for text in ranking.get_yticklabels()] if ranked else []
    assert [label.startswith("★ 1  ") for label in labels] == [item.rank == 1 for item in ranked[:MAX_RANKED]]


@pytest.mark.parametrize(
    ("name", "certainty"),
    [
        ("grid", "unknown"),
        ("clear", "clear"),
        ("tie", "tie"),
        ("equal", "tie"),
        ("earlier-noise", "clear"),
        ("two-sets", "unknown"),
        ("none", "unknown"),
        ("one", "unknown"),
    ],
)
def test_the_certainty_of_each_kind(name, certainty, sweeps, machine):
    verdict = machine.json("compare", f"local/{PROJECT}/{sweeps[name]}")["verdict"]
    assert verdict["certainty"] == certainty
    assert (verdict["winner"] is None) == (name in {"two-sets", "none"})


@pytest.mark.parametrize("name", ["failures", "running", "preempted", "infinite", "stopped", "all-running"])
def test_only_finished_trials_with_a_value_rank(name, sweeps, machine):
    trials = machine.json("compare", f"local/{PROJECT}/{sweeps[name]}")["trials"]
    for number, run in enumerate(CASES[name].runs):
        trial = next(each for each in trials if each["run_id"] == f"{name}-{number:02}")
        loss = run.summary.get("eval/common_loss")
        whole = run.state == "finished" and isinstance(loss, float) and "trial/health" not in run.summary
        assert (trial["rank"] is not None) == whole
