"""Terminal, JSON, report, picture and page say the same about the same sweep."""

import json
import re
from dataclasses import replace

import httpx
import pytest
from seeded_sweeps import LOSS, PROJECT, cases, seed

from kto_sweep.cli.compare import show
from kto_sweep.compare.as_data import trial_data, verdict_data
from kto_sweep.compare.comparison import compare
from kto_sweep.report.picture import MAX_RANKED, draw_picture
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.connection import Target, connect
from kto_sweep.wandb_client.reader import read_sweep

CERTAINTY = {
    "grid": "unknown",
    "clear": "clear",
    "tie": "tie",
    "equal": "tie",
    "earlier-noise": "clear",
    "two-sets": "unknown",
    "none": "unknown",
    "one": "unknown",
}
SHARED = ("run_id", "rank", "value", "standing", "progress", "judged_on", "state", "failure", "message")
"""What JSON, report and page say about each trial."""
CASES = cases()
ALIKE = {"equal", "one", "all-running", "preempted", "maximize", "objects", "stopped", "important"}
"""Cases that take the same paths as others here; they run with the slow tests."""


def report_data(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_there_are_twenty_cases():
    assert len(CASES) == 20


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in CASES]
)
def test_all_faces_say_the_same(name, seeded, machine, tmp_path, capsys):
    sweep_id = seed(seeded, CASES[name])  # seeded here: a run without heartbeats is soon no longer "running"
    sweep = f"local/{PROJECT}/{sweep_id}"
    as_json = machine.json("compare", sweep, "--html", "r.html")
    report = report_data((tmp_path / "r.html").read_text(encoding="utf-8"))
    auth = ("api", seeded.address.key)
    path = f"{seeded.url}/-/data/local/{PROJECT}/sweeps/{sweep_id}"
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
    target = Target(seeded.url, seeded.url, local=True, key=seeded.address.key)
    api = connect(target)
    ref = SweepRef("local", PROJECT, sweep_id)
    comparison = compare(read_sweep(api, target, ref))
    as_wandb = compare(read_sweep(api, replace(target, local=False, is_embedded=False), ref))
    for read in (comparison, as_wandb):
        assert json.loads(json.dumps(verdict_data(read))) == as_json["verdict"]
        assert [{key: trial_data(item)[key] for key in SHARED} for item in read.trials] == trials
    show(api, target, comparison)
    lines = capsys.readouterr().out.splitlines()
    for part in as_json["verdict"]["sentences"]:
        for index, sentence in enumerate(part["sentences"]):
            heading = part["heading"] if index == 0 else ""
            assert f"{heading:<14} {sentence}" in lines

    # Stars: on the winner's runs, in the table and on the picture.
    winners = [trial["name"] for trial in as_json["trials"] if trial["rank"] == 1]
    stars = [line for line in lines if re.match(r"\s*\* 1\s+(?!learning_rate|dataset|beta)\S", line)]
    assert len(stars) >= len(winners)
    ranking = next(
        axes for axes in draw_picture(comparison, {}).axes if axes.get_title().startswith(comparison.metric)
    )
    ranked = [item for item in comparison.trials if item.rank is not None]
    labels = [text.get_text() for text in ranking.get_yticklabels()] if ranked else []
    assert [label.startswith("★ 1  ") for label in labels] == [item.rank == 1 for item in ranked[:MAX_RANKED]]

    # What the case was seeded for: its certainty, and only finished trials with a value rank.
    verdict = as_json["verdict"]
    assert verdict["certainty"] == CERTAINTY.get(name, verdict["certainty"])
    assert (verdict["winner"] is None) == (not winners or name == "two-sets")
    ranks = {trial["run_id"]: trial["rank"] for trial in as_json["trials"]}
    for number, run in enumerate(CASES[name].runs):
        loss = run.summary.get(LOSS)
        whole = run.state == "finished" and loss is not None and "trial/health" not in run.summary
        if name in {"infinite", "failures", "running", "preempted", "stopped", "all-running"}:
            assert (ranks[f"{name}-{number:02}"] is not None) == (whole and isinstance(loss, float))
