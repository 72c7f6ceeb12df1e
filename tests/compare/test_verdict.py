"""The sentences of a verdict, and the statistics behind them."""

import random

import pytest

from kto_sweep.alerts import SUMMARY, AlertLevel, RunAlert, alerts_for_summary
from kto_sweep.cli.ranking_table import BLOCKS, sparkline
from kto_sweep.compare.as_data import as_data
from kto_sweep.compare.comparison import compare, pareto_front
from kto_sweep.compare.confidence import seed_noise, seeds_to_settle
from kto_sweep.compare.ranking import rank
from kto_sweep.errors import UsageError
from kto_sweep.fingerprints import InputDrift, TrainedRun
from kto_sweep.search.objectives import Objective
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import HEALTH, UNSTABLE, SweepView, TrialRecord
from kto_sweep.text import number

LOSS = "eval/common_loss"
RATES = [1e-6, 1e-5, 1e-4]


def trial(run_id, loss=None, rate=1e-5, seed=1, state="finished", cause=None, seconds=60.0, **summary):
    values = {
        **({} if loss is None else {LOSS: loss}),
        **({"failure/cause": cause} if cause else {}),
        **summary,
    }
    config = {"learning_rate": rate, "seed": seed}
    return TrialRecord(run_id, run_id, state, config, values, seconds, device="home gpu 0")


def sweep(*trials, parameters=None, state="FINISHED", **facts):
    given = parameters or {"learning_rate": {"values": RATES}, "seed": {"values": [1, 2, 3]}}
    return SweepView(
        SweepRef("local", "kto-sweep", "s"),
        "",
        "s",
        state,
        "grid",
        LOSS,
        "minimize",
        parse_space(given)[0],
        9,
        trials,
        **facts,
    )


def said(*trials, metric=None, **sweep_facts):
    """The verdict's sentences by heading."""
    return dict(compare(sweep(*trials, **sweep_facts), metric).sentences)


def ranking(trials, metric=LOSS, goal="minimize"):
    return rank(sweep(*trials), metric, goal)


def seeds(rate, *losses):
    return [trial(f"{rate}-{i}", loss, rate, seed=i) for i, loss in enumerate(losses, start=1)]


def test_with_one_run_of_each_configuration_the_confidence_is_unknown():
    trials = trial("a", 0.3, 1e-6), trial("b", 0.1, 1e-5), trial("c", 0.2, 1e-4)
    result = said(*trials)
    assert result["Best"] == (
        "learning_rate 1e-05 has the best eval/common_loss: 0.1; lower is better (run b).",
    )
    assert result["Confidence"] == (
        "Unknown: each configuration ran once, so a lead of 0.1 may be seed noise.",
    )
    assert result["Next"] == (
        "Measure seed noise: train the best 3 with 3 seeds each (about 0.15 GPU-hours): "
        "kto-sweep replicate s --top 3 --seeds 3",
        "6 trials left. It was stopped; to train the rest (about 0.1 GPU-hours): kto-sweep resume s",
    )
    comparison = compare(sweep(*trials))
    assert comparison.verdict.certainty == "unknown"
    assert comparison.verdict.interval is None
    assert comparison.next_steps[0].gpu_hours == pytest.approx(9 * 60 / 3600)


def test_the_spread_of_earlier_sweeps_decides_where_each_configuration_ran_once():
    def ran(run_id, loss, rate):
        spread = {"seed_spread/deviation": 0.01, "seed_spread/degrees_of_freedom": 8}
        return trial(run_id, loss, rate, **spread)

    trials = ran("a", 0.1, 1e-6), ran("b", 0.2, 1e-5)
    assert said(*trials)["Confidence"][0].startswith(
        "Clear: the lead over the next configuration, 0.1, is more than seed noise: another seed changes a "
        "trial by 0.01 (standard deviation in earlier sweeps of this model, data and budget, 8 degrees of "
        "freedom)"
    )
    low, high = compare(sweep(*trials)).verdict.interval
    assert (low, high) == pytest.approx((0.1 - 2.306 * 0.01, 0.1 + 2.306 * 0.01), abs=1e-4)
    # The spread is that of the sweep's own metric.
    assert said(*trials, metric="loss", parameters=None) == said(*trials, metric="loss")
    own = [trial("a", 0.1, 1e-6, mine=1.0), ran("b", 0.2, 1e-5)]
    assert compare(sweep(*own), "mine").verdict.noise is None


def test_trials_of_changed_files_are_ranked_with_a_warning():
    """a, b and c had the same rows, d different ones; e requested other rows; f has another precision."""
    same = {"dataset": "d.jsonl", "model_size": "tiny"}

    def ran(run_id, data, model="float32:m", **config):
        summary = {LOSS: 0.1, "trial/data": data, "trial/eval_data": "h", "trial/model": model}
        return TrialRecord(run_id, run_id, "finished", same | config, summary, 60.0)

    alike = [ran(run_id, "r1") for run_id in "abc"]
    others = [ran("e", "r3", max_length=64), ran("f", "r1", "bfloat16:n"), trial("g", 0.1)]
    assert "Warning" not in said(*alike, *others)
    (warning,) = said(*alike, ran("d", "r2"), *others)["Warning"]
    assert warning.startswith(
        "the rows of d.jsonl changed during this sweep: d used different ones than a, b, c"
    )
    (warning,) = said(*alike, ran("d", "r1", "float32:n"))["Warning"]
    assert warning.startswith("the weights of tiny changed")


def judged(run_id, loss, rows, data="d", **config):
    """A trial whose held-out rows have the fingerprint `rows`; None: it is still training."""
    ended = {"trial/data": data, "trial/eval_data": rows, "objective/best": loss} if rows else {}
    config = {"model_size": "tiny", "dataset": "a.jsonl", "learning_rate": 1e-5, **config}
    state = "finished" if rows else "running"
    return TrialRecord(run_id, run_id, state, config, {LOSS: loss} | ended, 60.0)


DATASETS = {"dataset": {"values": ["a.jsonl", "b.jsonl"]}, "learning_rate": {"values": RATES}}


def test_trials_judged_on_other_rows_are_never_ranked_against_each_other():
    trials = (
        judged("a1", 0.3, "h1", learning_rate=1e-6),
        judged("b1", 0.1, "h2", dataset="b.jsonl", learning_rate=1e-6),
        judged("a2", 0.2, "h1"),
        judged("b2", 0.4, "h2", dataset="b.jsonl"),
        judged("b3", 0.5, None, dataset="b.jsonl", learning_rate=1e-4),
    )
    view = sweep(*trials, parameters=DATASETS)
    assert [(item.rank, item.trial.run_id, item.group) for item in rank(view, LOSS, "minimize").trials] == [
        (1, "a2", "dataset a.jsonl"),
        (2, "a1", "dataset a.jsonl"),
        (1, "b1", "dataset b.jsonl"),
        (2, "b2", "dataset b.jsonl"),
        (None, "b3", "dataset b.jsonl"),
    ]
    result = said(*trials, parameters=DATASETS)
    assert [text.partition(":")[0] for text in result["Best"]] == [
        "Judged on dataset a.jsonl",
        "Judged on dataset b.jsonl",
    ]
    assert "dataset a.jsonl, learning_rate 1e-05 has the best" in result["Best"][0]
    assert "dataset b.jsonl, learning_rate 1e-06 has the best" in result["Best"][1]
    assert "so a lead of 0.1 may be" in result["Confidence"][0]
    assert "so a lead of 0.3 may be" in result["Confidence"][1]
    assert compare(view).verdict is None
    (warning,) = result["Warning"]
    assert warning == (
        "eval/common_loss does not compare trials that were judged on different held-out rows. These trials "
        "were judged on 2 sets of rows (dataset a.jsonl; dataset b.jsonl), so each set has its own ranking. "
        "For one ranking, hold out the same rows for all trials: eval_dataset: FILE, and one max_length."
    )


def test_only_the_largest_group_counts_for_importance_and_fronts_are_per_group():
    trials = [
        judged(f"a{at}", at * 0.1, "h1", learning_rate=RATES[at // 4], beta=at * 0.1) for at in range(1, 9)
    ]
    trials += [judged("b1", 0.01, "h2", dataset="b.jsonl")]
    view = SweepView(
        SweepRef("local", "kto-sweep", "s"), "", "s", "FINISHED", "grid", LOSS, "minimize",
        parse_space(DATASETS)[0], 9, tuple(trials),
    )  # fmt: skip
    comparison = compare(view)
    assert [row.name for row in comparison.importance.rows] == ["learning_rate"]
    assert comparison.importance.note.startswith("Of the trials judged on dataset a.jsonl: From 8 runs")
    assert {front.key: front.run_ids for front in comparison.fronts}["pareto_time"] == {"a1", "b1"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"learning_rate": 1e-4}),
        ({"dataset": "a.jsonl"}, {"dataset": "b.jsonl", "data": "e"}),  # one eval_dataset for both
        ({"max_length": 512}, {"max_length": 1024}),  # neither cuts a held-out row
        ({"model_size": "tiny"}, {"model_size": "135m", "data": "e"}),  # other token ids, the same rows
    ],
)
def test_trials_judged_on_the_same_rows_have_one_ranking(one, other):
    view = sweep(judged("x", 0.2, "h", **one), judged("y", 0.1, "h", **other), parameters={})
    ranked = rank(view, LOSS, "minimize").trials
    assert [(item.trial.run_id, item.group) for item in ranked] == [("y", ""), ("x", "")]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([{"eval_fraction": 0.1}, {"eval_fraction": 0.3}], ["eval_fraction 0.1", "eval_fraction 0.3"]),
        ([{"max_length": 64}, {"max_length": 32}], ["max_length 64", "max_length 32"]),
        (
            [{"dataset": "b.jsonl", "eval_fraction": 0.3}, {"eval_fraction": 0.1}],
            ["dataset b.jsonl, eval_fraction 0.3", "dataset a.jsonl, eval_fraction 0.1"],
        ),
        ([{}, {}], ["held-out rows h0", "held-out rows h1"]),  # the file changed
    ],
)
def test_groups_are_named_by_what_sets_their_rows_apart(settings, names):
    trials = [judged(f"t{at}", 0.1, f"h{at}", **config) for at, config in enumerate(settings)]
    for metric in (LOSS, "objective/best"):
        assert [item.group for item in ranking(trials, metric).trials] == names
    assert [item.group for item in ranking(trials, "rewards/margins", "maximize").trials] == ["", ""]


def test_running_trials_belong_to_the_rows_that_their_settings_name():
    """Before any has ended, the settings alone decide."""
    running = [judged("a", 0.3, None), judged("b", 0.1, None, dataset="b.jsonl")]
    assert [item.group for item in ranking(running).trials] == ["dataset a.jsonl", "dataset b.jsonl"]
    assert [item.group for item in ranking(running[:1] * 2).trials] == ["", ""]


def test_runs_without_the_fingerprint_of_held_out_rows_are_told_apart_by_that_of_all_rows():
    def ran(run_id, data):
        return TrialRecord(run_id, run_id, "finished", {}, {LOSS: 0.1, "trial/data": data}, 60.0)

    assert {item.group for item in ranking([ran("a", "r1"), ran("b", "r1")]).trials} == {""}
    assert len({item.group for item in ranking([ran("a", "r1"), ran("b", "r2")]).trials}) == 2


def test_an_agent_warns_once_about_a_changed_file():
    warnings = []
    config = {"dataset": "d.jsonl", "model_size": "tiny"}
    drift = InputDrift([TrainedRun.of("a", config, {"trial/data": "r1"})], warnings.append)
    for run_id, rows in (("b", "r1"), ("c", "r2"), ("d", "r2"), ("e", "r1")):
        drift.check(TrainedRun.of(run_id, config, {"trial/data": rows}))
    (warning,) = warnings
    assert (
        "the rows of d.jsonl changed during this sweep. Run c used different ones than earlier trials"
        in warning
    )


def test_a_name_cannot_send_escape_sequences_to_the_terminal():
    named = TrialRecord("a", "\x1b[2Jgone", "finished", {"learning_rate": 1e-5}, {LOSS: 0.1}, 60.0)
    assert said(named)["Best"][0].endswith("(run [2Jgone (a)).")


def test_a_lead_far_above_the_spread_between_seeds_is_clear():
    trials = (*seeds(1e-5, 0.10, 0.11, 0.12), *seeds(1e-6, 0.30, 0.31, 0.32))
    result = said(*trials)
    assert "best mean eval/common_loss: 0.11 [0.09397, 0.126] over 3 seeds" in result["Best"][0]
    assert result["Confidence"] == (
        "Clear: the lead over the next configuration, 0.2, is more than seed noise: another seed changes a "
        "trial by 0.01 (standard deviation in this sweep, 4 degrees of freedom).",
    )
    comparison = compare(sweep(*trials))
    assert comparison.verdict.certainty == "clear"
    assert comparison.verdict.winner.settings == {"learning_rate": 1e-5}
    assert result["Next"][0] == "Train with these settings: kto-sweep train --from s --whole-data"


def test_a_lead_within_the_spread_between_seeds_is_a_tie():
    result = said(*seeds(1e-5, 0.10, 0.14), *seeds(1e-6, 0.15, 0.19), *seeds(1e-4, 5.0, 5.04))
    assert result["Confidence"] == (
        "A tie of 2: the lead, 0.05, may be seed noise: another seed changes a trial by 0.02828 (standard "
        "deviation in this sweep, 3 degrees of freedom). Tied with it: learning_rate 1e-06.",
    )
    assert result["Next"][0].startswith(
        "Settle the tie: train the best 2 with 9 seeds each (about 0.3 GPU-hours"
    )


def test_a_tie_that_many_seeds_would_not_settle_advises_the_cheapest():
    result = said(*seeds(1e-5, 0.10, 0.30), *seeds(1e-6, 0.11, 0.31))
    assert result["Next"][0].startswith("Choose the cheapest of the 2 tied configurations; about ")


def test_equal_means_are_a_tie_that_no_number_of_seeds_settles():
    comparison = compare(sweep(*seeds(1e-5, 0.1, 0.2), *seeds(1e-6, 0.2, 0.1)))
    assert comparison.verdict.certainty == "tie"
    assert str(comparison.next_steps[0]) == "Choose the cheapest of the 2 tied configurations."
    assert seeds_to_settle(0.0, comparison.verdict.noise) is None


@pytest.mark.parametrize(
    ("state", "summary", "standing"),
    [
        ("failed", {"failure/cause": "diverged"}, "failed"),
        ("crashed", {}, "failed"),
        ("finished", {"trial/health": "unstable"}, "failed"),
        ("running", {"_step": 58, "trial/steps": 200}, "unfinished"),
        ("preempted", {}, "unfinished"),
        ("killed", {"_step": 10}, "stopped early"),
        ("finished", {LOSS: float("inf")}, "no value"),
    ],
)
def test_only_finished_trials_rank_wherever_their_metric_stands(state, summary, standing):
    other = TrialRecord("x", "x", state, {"learning_rate": 1e-4}, {LOSS: 0.001} | summary, 60.0)
    comparison = compare(sweep(trial("a", 0.3), other))
    assert [(item.trial.run_id, item.rank, item.standing) for item in comparison.trials] == [
        ("a", 1, "ranked"),
        ("x", None, standing),
    ]
    assert comparison.verdict.winner.settings == {"learning_rate": 1e-5}


def test_unfinished_trials_say_how_far_they_are_and_what_they_reached():
    summary = {LOSS: 0.2, "_step": 58, "trial/steps": 200}
    running = TrialRecord("x", "x", "running", {"learning_rate": 1e-4}, summary, 60.0)
    assert said(trial("a", 0.3), running)["Unfinished"] == (
        "1 trial unfinished, the best at eval/common_loss 0.2 at step 58 of 200 (run x). "
        "Unfinished trials do not rank.",
    )
    assert said(running)["Best"] == ("No trial has finished with a value of eval/common_loss yet.",)


def test_the_best_mean_wins_and_not_the_luckiest_run():
    comparison = compare(sweep(*seeds(1e-5, 0.20, 0.21), *seeds(1e-6, 0.05, 0.60)))
    assert comparison.verdict.winner.settings == {"learning_rate": 1e-5}
    assert [(item.rank, item.value) for item in comparison.trials] == [
        (1, 0.20), (1, 0.21), (2, 0.05), (2, 0.60)
    ]  # fmt: skip


def test_the_order_of_runs_changes_nothing():
    trials = [
        *seeds(1e-5, 0.2, 0.2, 0.2),
        *seeds(1e-6, 0.2, 0.2, 0.2),
        trial("f", 0.1, 1e-4, state="failed", cause="diverged"),
        trial("g", 0.3, 1e-4, seed=2),
        trial("h", 0.3, 1e-4, seed=3),
    ]
    one = compare(sweep(*trials))
    for seed in range(5):
        random.Random(seed).shuffle(trials)
        other = compare(sweep(*trials))
        assert as_data(other) == as_data(one)


def test_noise_is_pooled_over_configurations():
    """Variances 2 (one degree of freedom) and 1 (two): (2 + 2 * 1) / 3."""
    trials = [*seeds(1e-5, 1.0, 3.0), *seeds(1e-6, 4.0, 5.0, 6.0), trial("x", 9.0, 1e-4)]
    noise = seed_noise(ranking(trials).configurations)
    assert noise.degrees_of_freedom == 3
    assert noise.deviation == pytest.approx((4 / 3) ** 0.5)


@pytest.mark.parametrize(("rate", "side"), [(1e-4, "high"), (1e-6, "low"), (1e-5, None)])
def test_a_best_value_at_the_end_of_its_range_suggests_widening(rate, side):
    result = said(*(trial(str(each), 0.1 if each == rate else 0.5, each) for each in RATES))
    widen = [text for text in result["Next"] if text.startswith("Widen")]
    where = f"the best value ({number(rate)}) is at the {side} end of its range"
    assert widen == ([f"Widen learning_rate: {where}: kto-sweep widen s learning_rate"] if side else [])


def test_a_continuous_range_has_ends_too():
    parameters = {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-4},
        "seed": {"value": 1},
    }
    result = said(trial("a", 0.1, 0.98e-4), trial("b", 0.5, 1e-5), parameters=parameters)
    assert any(text.startswith("Widen learning_rate") for text in result["Next"])


def test_failures_are_listed_by_cause_with_what_they_share():
    result = said(
        trial("a", 0.1, 1e-5),
        trial("b", rate=1e-4, state="failed", cause="diverged"),
        trial("c", rate=1e-4, seed=2, state="failed", cause="diverged"),
        trial("d", rate=1e-6, state="crashed", cause="worker crash"),
        trial("e", 0.4, 1e-6, seed=2, state="killed"),
    )
    assert result["Failures"] == (
        "2 trials failed: diverged (all with learning_rate 1e-04; no trial with it ended well).",
        "1 trial failed: worker crash (d: learning_rate 1e-06).",
    )
    assert "Retry 1 trial that failed for external reasons: kto-sweep resume s" in result["Next"]


def test_alerts_are_listed_by_level_and_title_with_their_trials():
    def alert(level, title, text, step):
        return {"level": level, "title": title, "text": text, "step": step}

    own = alert("WARN", "kl_raw > 10", "kl_raw is 12.3", 40)
    bad = alert("ERROR", "loss", "the loss is nan", 7)
    result = said(
        trial("a", 0.1, **{"trial/alerts": [own]}),
        trial("b", 0.2, 1e-6, **{"trial/alerts": [{**own, "step": 80}, {"no": "alert"}]}),
        trial("c", rate=1e-4, state="failed", cause="diverged", **{"trial/alerts": [bad]}),
    )
    assert result["Alerts"] == (
        "WARNING: kl_raw > 10 in 2 trials (a, b), for example at step 40 of a: kl_raw is 12.3",
    )


def test_a_sweep_without_runs_says_what_to_type():
    result = said(state="PENDING")
    assert result["Best"] == ("No trial yet.",)
    assert result["Next"] == ("9 trials left. No agent has started it; to train here: kto-sweep agent s",)


def test_a_metric_that_no_trial_logs_is_rejected_with_the_nearest():
    with pytest.raises(UsageError, match="--metric margins: no trial has logged it") as error:
        said(trial("a", 0.1, mine=1.0), metric="margins")
    assert error.value.hint == "eval/margins"
    assert "the best mine: 1" in said(trial("a", 0.1, mine=1.0), metric="mine")["Best"][0]


def test_ranking_by_margins_gets_a_caution():
    result = said(trial("a", 0.1, **{"rewards/margins": 3.0}), metric="rewards/margins")
    assert any(text.startswith("Rank by a metric other than rewards/margins") for text in result["Next"])


def test_the_front_has_the_runs_that_no_other_dominates():
    ranked = ranking([trial("best", 0.1), trial("cheap", 0.3), trial("beaten", 0.2)]).trials
    costs = {"best": 10.0, "beaten": 10.0, "cheap": 5.0}
    losses = {item.trial.run_id: [item.value, costs[item.trial.run_id]] for item in ranked}
    assert pareto_front(ranked, losses) == {"best", "cheap"}


def test_the_front_of_several_objectives_is_marked_and_listed():
    auc = "eval/auc"
    trials = (
        trial("a", 0.1, **{auc: 0.7}),
        trial("b", 0.2, **{auc: 0.9}),
        trial("c", 0.3, **{auc: 0.8}),
        trial("d", 0.05, **{auc: 0.99}, state="killed"),
        trial("e", 0.04),
    )
    view = SweepView(
        SweepRef("local", "kto-sweep", "s"), "", "s", "FINISHED", "grid", LOSS, "minimize",
        parse_space({"learning_rate": {"values": RATES}})[0], 9, trials,
        objectives=(Objective(LOSS), Objective(auc, maximize=True)),
    )  # fmt: skip
    comparison = compare(view)
    assert {front.marker: front.run_ids for front in comparison.fronts}["p"] == {"a", "b"}
    assert dict(comparison.sentences)["Trade-off"] == (
        "2 trials are on the Pareto front of eval/common_loss and eval/auc: a: 0.1, 0.7; b: 0.2, 0.9.",
    )
    assert comparison.metrics[:2] == (LOSS, auc)
    assert "Trade-off" not in said(*trials)


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([float(i) for i in range(8)]) == BLOCKS
    assert sparkline([2.0]) == BLOCKS[0]
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)])) == 12


def test_of_an_unstable_trial_the_alerts_have_the_error_and_no_warnings():
    def alerted(run_id, **summary):
        alerts = [
            RunAlert(AlertLevel.WARN, "kl_raw > 10", "kl_raw is 12", 3),
            RunAlert(AlertLevel.ERROR, "unstable", "the loss is 40 times its start", 9),
        ]
        return trial(run_id, 0.1, **{SUMMARY: alerts_for_summary(alerts)}, **summary)

    broken = alerted("broken", **{HEALTH: UNSTABLE})
    assert [line.split(":")[0] for line in said(broken)["Alerts"]] == ["ERROR"]
    assert [line.split(":")[0] for line in said(broken, alerted("whole"))["Alerts"]] == ["ERROR", "WARNING"]
    assert "Alerts" not in said(alerted("failed", state="failed", cause="diverged"))
