"""The record of finished trials on a box, and the spread between seeds that it shows to later sweeps."""

import json
import statistics
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kto_sweep.compare.confidence import DEGREES, DEVIATION
from kto_sweep.home import Home
from kto_sweep.sweep import seed_spread
from kto_sweep.sweep.seed_spread import FILE, MAX_LINES, FinishedTrial, finished_trial, record, spread
from kto_sweep.trial import Trial

METRIC = "eval/common_loss"
SUMMARY = {METRIC: 0.4, "trial/model": "float32:m", "trial/data": "d"}
TRIAL = Trial(model_size="tiny", dataset="rows.jsonl", seed=1)


def line(run: str = "new", sweep: str = "later", trial: Trial = TRIAL, **summary: object) -> FinishedTrial:
    made = finished_trial(run, sweep, trial, METRIC, False, {**SUMMARY, **summary})
    assert made is not None
    return made


def replicates(*values: float, sweep: str = "earlier", beta: float = 0.1) -> list[FinishedTrial]:
    """Trials of one configuration, with seeds 1, 2, ..."""
    return [
        line(f"{sweep} {beta} {seed}", sweep, replace(TRIAL, beta=beta, seed=seed), **{METRIC: value})
        for seed, value in enumerate(values, start=1)
    ]


def test_variances_are_pooled_over_the_configurations_with_several_seeds():
    """Squares (0.1^2 + 0.1^2) and (0.3^2 + 0 + 0.3^2) over 1 + 2 degrees of freedom: 0.2 / 3."""
    trials = [
        *replicates(0.3, 0.5),
        *replicates(0.4, 0.7, 1.0, beta=0.2),
        *replicates(9.0, beta=0.3),
    ]
    assert spread(line(), trials) == {DEVIATION: pytest.approx((0.2 / 3) ** 0.5), DEGREES: 3.0}


def test_seeds_of_one_configuration_may_be_of_different_sweeps():
    one, other = replicates(0.3, 0.5)
    assert spread(line(), [one, replace(other, sweep="another")])[DEVIATION] == pytest.approx(
        statistics.stdev([0.3, 0.5])
    )


def test_nothing_is_known_without_other_sweeps_that_repeated_a_configuration():
    assert spread(line(), []) == {}
    assert spread(line(), replicates(0.3)) == {}
    assert spread(line(), replicates(0.3, 0.5, sweep="later")) == {}
    assert spread(line(), replicates(0.4, 0.4)) == {}


@pytest.mark.parametrize(
    ("field", "value"), [("model", "other"), ("data", "other"), ("budget", "steps 9"), ("metric", "eval/auc")]
)
def test_only_trials_of_the_same_model_data_budget_and_metric_count(field, value):
    trials = [replace(trial, **{field: value}) for trial in replicates(0.3, 0.5)]
    assert spread(line(), trials) == {}


def test_a_run_and_a_seed_count_once_with_their_last_value():
    one, two = replicates(0.1, 0.5)
    resumed = replace(one, value=0.3)
    assert spread(line(), [one, two, resumed]) == spread(line(), [resumed, two])
    # The same seed trained again, in another sweep, is no other seed.
    again = replace(one, run="again", sweep="another", value=0.2)
    assert spread(line(), [one, again]) == {}
    assert spread(line(), [one, two, again]) == spread(line(), [again, two])


def test_a_configuration_is_the_same_whatever_its_data_is_called_and_however_long_it_trains():
    named = replace(TRIAL, dataset="elsewhere/rows.jsonl", model="tiny", model_size=None, seed=2)
    assert line(trial=named).configuration == line().configuration
    assert line(trial=replace(TRIAL, beta=0.2)).configuration != line().configuration
    assert [
        line(trial=replace(TRIAL, **budget)).budget for budget in ({"epochs": 2.0}, {"max_steps": 7})
    ] == [
        "epochs 2",
        "steps 7",
    ]


@pytest.mark.parametrize(
    "summary",
    [{METRIC: float("nan")}, {"trial/model": None}, {"trial/data": 3}, {"trial/health": "unstable"}],
)
def test_a_trial_without_a_sound_value_is_not_recorded(summary):
    assert finished_trial("a", "s", TRIAL, METRIC, False, {**SUMMARY, **summary}) is None


def test_the_file_is_private_skips_damaged_lines_and_survives_half_a_line(tmp_path: Path):
    home = Home(tmp_path / "home")
    one, two = replicates(0.3, 0.5)
    assert record(home, one) == {}
    path = home.root / FILE
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write('[1]\n{"run": 3}\nnot JSON\n\xff\n')
        file.write(json.dumps({**vars(two), "value": "0.5"}) + "\n")
        file.write(json.dumps(vars(two))[:40])  # a crash in the middle of a line
    record(home, two)
    assert record(home, line())[DEGREES] == 1.0


def test_the_file_stays_bounded_and_keeps_the_newest_lines(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(seed_spread, "MAX_LINES", 10)
    home = Home(tmp_path)
    for number in range(25):
        record(home, line(f"run{number}"))
    lines = (home.root / FILE).read_text().splitlines()
    assert len(lines) <= 10 < MAX_LINES
    assert json.loads(lines[-1])["run"] == "run24"
    assert (home.root / FILE).stat().st_mode & 0o777 == 0o600


def test_trials_that_finish_at_once_are_all_recorded(tmp_path: Path):
    home = Home(tmp_path)
    threads = [threading.Thread(target=record, args=(home, line(f"run{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = {json.loads(text)["run"] for text in (home.root / FILE).read_text().splitlines()}
    assert runs == {f"run{n}" for n in range(8)}


def test_a_file_that_cannot_be_written_is_an_error_that_the_caller_reports(tmp_path: Path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match=FILE):
        record(Home(tmp_path), line())
