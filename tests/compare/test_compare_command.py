"""The commands compare and view."""

import csv
import json
import re

from seeds import FAILED, HOSTILE_RUN
from views_proxy import views_proxy

GRID_TRIALS = 22


def sweep_of(seeded):
    return f"local/kto/{seeded.grid.name}"


def test_the_table_marks_the_best_draws_margins_and_ends_with_a_verdict(seeded, machine, tmp_path):
    with views_proxy(seeded.url) as proxy:
        done = machine.command(
            "compare", sweep_of(seeded), "--diff", "--png", "p.png", WANDB_BASE_URL=proxy.url
        )
        assert done.returncode == 0, done.stderr
        assert proxy.curves == 2  # one for the sparklines and one for the picture, not one per run
    lines = done.stdout.splitlines()
    heads = next(line for line in lines if "learning_rate" in line)
    assert heads.index("learning_rate") < heads.index("beta") < heads.index("batch_size")
    [best] = [line for line in lines if line.lstrip().startswith("* 1")]
    assert "▁" in best
    assert "█" in best
    assert re.search(r"^ learning_rate +█{15,} +\d\d% +-0\.9\d +\S", done.stdout, re.MULTILINE)
    assert re.search(
        r"^Best +batch_size \d+, beta [\d.]+, learning_rate 1e-04 has the best", done.stdout, re.MULTILINE
    )
    assert re.search(r"^Confidence +Unknown: each configuration ran once", done.stdout, re.MULTILINE)
    assert re.search(r"^Failures +1 trial failed: out of memory", done.stdout, re.MULTILINE)
    assert re.search(r"^Next +3 trials left\. ", done.stdout, re.MULTILINE)
    assert "Widen" not in done.stdout  # what is left may change the best value
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_with_all_data_of_the_table(seeded, machine, tmp_path):
    done = machine.command("compare", sweep_of(seeded), "--json", "--top", "3", "--html", "r.html")
    result = json.loads(done.stdout)
    assert [trial["rank"] for trial in result["trials"]] == [1, 2, 3]
    assert result["trials"][0]["config"]["learning_rate"] == 1e-4
    assert result["trials"][0]["pareto_memory"]
    assert result["importance"]["parameters"][0]["name"] == "learning_rate"
    verdict = result["verdict"]
    assert verdict["certainty"] == "unknown"
    assert verdict["winner"]["learning_rate"] == 1e-4
    assert verdict["interval"] is None
    assert verdict["next"][0]["command"].startswith("kto-sweep ")
    page = (tmp_path / "r.html").read_text()
    assert seeded.grid.runs[HOSTILE_RUN] in page
    assert "<img src=x" not in page


def test_csv_holds_every_trial(seeded, machine):
    rows = list(csv.DictReader(machine.command("compare", sweep_of(seeded), "--csv").stdout.splitlines()))
    assert len(rows) == GRID_TRIALS
    assert [row["failure"] for row in rows if row["failure"]] == ["out of memory"]
    assert rows[-1]["run_id"] == seeded.grid.runs[FAILED]


def test_view_saves_the_panels_in_order_for_this_sweep_alone(seeded, machine):
    with views_proxy(seeded.url) as proxy:
        done = machine.command("view", sweep_of(seeded), "--json", WANDB_BASE_URL=proxy.url)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["saved"]
    assert result["url"].startswith(f"{proxy.url}/local/kto?nw=")
    [sent] = proxy.views
    assert (sent["entityName"], sent["projectName"], sent["type"]) == ("local", "kto", "project-view")
    sections = json.loads(sent["spec"])["section"]["panelBankConfig"]["sections"]
    panels = [panel for section in sections[:2] for panel in section["panels"]]
    shown = [panel["config"].get("metrics") or panel["viewType"] for panel in panels]
    assert shown == [
        ["rewards/margins"],
        ["rewards/chosen", "rewards/rejected"],
        ["loss", "eval/common_loss"],
        ["kl", "kl_raw"],
        ["gpu/memory_peak_gb", "gpu/memory_allocated_gb"],
        "Parallel Coordinates Plot",
        "Parameter Importance",
    ]
    assert panels[-1]["config"]["targetKey"] == "eval/common_loss"
    assert seeded.grid.name in json.dumps(json.loads(sent["spec"])["section"]["runSets"])


def test_view_without_its_package_says_what_to_install(seeded, machine, tmp_path):
    (tmp_path / "wandb_workspaces.py").write_text("raise ImportError('as if it was not there')")
    with views_proxy(seeded.url) as proxy:
        done = machine.command("view", sweep_of(seeded), PYTHONPATH=str(tmp_path), WANDB_BASE_URL=proxy.url)
    assert done.returncode == 2
    assert "Hint: pip install 'kto-sweep[wandb-views]'" in done.stderr


def test_trials_judged_on_other_rows_have_a_ranking_each_everywhere(seeded, machine, tmp_path):
    sweep = f"local/datasets/{seeded.two_datasets.name}"
    shown = machine.run("compare", sweep, "--html", "r.html")
    first, second = (line for line in shown.splitlines() if line.lstrip().startswith("* 1"))
    assert "a0.2" in first
    assert "dataset a.jsonl" in first
    assert "b0.1" in second
    assert re.search(r"^Best +Judged on dataset a.jsonl: \S+ .* has the best", shown, re.MULTILINE)
    assert re.search(r"^Warning +eval/common_loss does not compare trials", shown, re.MULTILINE)
    assert '"judged_on": "dataset b.jsonl"' in (tmp_path / "r.html").read_text()

    compared = machine.json("compare", sweep)
    assert compared["verdict"]["winner"] is None
    assert [each["judged_on"] for each in compared["verdict"]["rankings"]] == [
        "dataset a.jsonl",
        "dataset b.jsonl",
    ]
    trials = compared["trials"]
    assert [(trial["run_id"], trial["rank"], trial["judged_on"]) for trial in trials] == [
        ("a0.2", 1, "dataset a.jsonl"),
        ("a0.1", 2, "dataset a.jsonl"),
        ("b0.1", 1, "dataset b.jsonl"),
        ("b0.2", 2, "dataset b.jsonl"),
    ]
    rows = csv.DictReader(machine.run("compare", sweep, "--csv").splitlines())
    assert [row["judged_on"] for row in rows] == ["dataset a.jsonl"] * 2 + ["dataset b.jsonl"] * 2
    done = machine.command("train", "--from", sweep, "--max-steps", "1")
    assert done.returncode == 2
    assert "has no single best trial: eval/common_loss does not compare trials" in done.stderr
    assert "Hint: name one of its runs: a0.2 (dataset a.jsonl), b0.1 (dataset b.jsonl)" in done.stderr
