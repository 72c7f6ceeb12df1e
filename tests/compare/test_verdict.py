"""The sentences of a verdict, and the statistics behind them."""

import pytest

from kto_sweep.cli.ranking_table import BLOCKS, sparkline
from kto_sweep.compare.comparison import compare, pareto_front
from kto_sweep.compare.ranking import rank
from kto_sweep.compare.seed_groups import group_by_seed, seed_noise
from kto_sweep.errors import UsageError
from kto_sweep.fingerprints import InputDrift, TrainedRun
from kto_sweep.search.objectives import Objective
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import SweepView, TrialRecord

LOSS = "eval/common_loss"
RATES = [1e-6, 1e-5, 1e-4]


def trial(run_id, loss=None, rate=1e-5, seed=1, state="finished", cause=None, seconds=60.0, **summary):
    values = {
        **({} if loss is None else {LOSS: loss}),
        **({"failure/cause": cause} if cause else {}),
        **summary,
    }
    return TrialRecord(run_id, run_id, state, {"learning_rate": rate, "seed": seed}, values, seconds)


def verdict(*trials, parameters=None, metric=None):
    given = parameters or {"learning_rate": {"values": RATES}, "seed": {"values": [1, 2, 3]}}
    view = SweepView(
        SweepRef("me", "kto", "s"),
        "",
        "s",
        "FINISHED",
        "grid",
        LOSS,
        "minimize",
        parse_space(given)[0],
        9,
        trials,
    )
    return compare(view, metric).verdict


def seeds(rate, *losses):
    return [trial(f"{rate}-{i}", loss, rate, seed=i) for i, loss in enumerate(losses, start=1)]


def test_with_one_run_of_each_configuration_the_confidence_is_unknown():
    result = verdict(trial("a", 0.3, 1e-6), trial("b", 0.1, 1e-5), trial("c", 0.2, 1e-4))
    assert "Run b (learning_rate 1e-05)" in result.best[0]
    assert result.confidence[0] == "Unknown: each configuration ran once, so a lead of 0.1 may be seed noise."
    assert "Run the top 3 with 2 more seeds: seed: {values: [1, 2, 3]}" in result.next_steps


def test_trials_of_changed_files_are_ranked_with_a_warning():
    """a, b and c had the same rows, d different ones; e requested other rows; f has another precision."""
    same = {"dataset": "d.jsonl", "model_size": "tiny"}

    def ran(run_id, data, model="float32:m", **config):
        summary = {LOSS: 0.1, "trial/data": data, "trial/eval_data": "h", "trial/model": model}
        return TrialRecord(run_id, run_id, "finished", same | config, summary, 60.0)

    alike = [ran(run_id, "r1") for run_id in "abc"]
    others = [ran("e", "r3", max_length=64), ran("f", "r1", "bfloat16:n"), trial("g", 0.1)]
    assert verdict(*alike, *others).warnings == ()
    (warning,) = verdict(*alike, ran("d", "r2"), *others).warnings
    assert warning.startswith(
        "the rows of d.jsonl changed during this sweep: d used different ones than a, b, c"
    )
    (warning,) = verdict(*alike, ran("d", "r1", "float32:n")).warnings
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
    ranked = rank(trials, LOSS, "minimize")
    assert [(item.rank, item.trial.run_id, item.group) for item in ranked] == [
        (1, "a2", "dataset a.jsonl"),
        (2, "a1", "dataset a.jsonl"),
        (1, "b1", "dataset b.jsonl"),
        (2, "b2", "dataset b.jsonl"),
        (3, "b3", "dataset b.jsonl"),
    ]
    result = verdict(*trials, parameters=DATASETS)
    assert [text.partition(":")[0] for text in result.best] == [
        "Judged on dataset a.jsonl",
        "Judged on dataset b.jsonl",
    ]
    assert "Run a2 (dataset a.jsonl, learning_rate 1e-05) has the best" in result.best[0]
    assert "Run b1 (dataset b.jsonl, learning_rate 1e-06) has the best" in result.best[1]
    assert "so a lead of 0.1 may be" in result.confidence[0]
    assert "so a lead of 0.3 may be" in result.confidence[1]
    (warning,) = result.warnings
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
        SweepRef("me", "kto", "s"), "", "s", "FINISHED", "grid", LOSS, "minimize",
        parse_space(DATASETS)[0], 9, tuple(trials),
    )  # fmt: skip
    comparison = compare(view)
    assert [row.name for row in comparison.importance.rows] == ["learning_rate"]
    assert comparison.importance.note.startswith("Of the runs judged on dataset a.jsonl: From 8 runs")
    assert [item.trial.run_id for item in comparison.best] == ["a1", "b1"]
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
    ranked = rank([judged("x", 0.2, "h", **one), judged("y", 0.1, "h", **other)], LOSS, "minimize")
    assert [(item.rank, item.trial.run_id, item.group) for item in ranked] == [(1, "y", ""), (2, "x", "")]


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
        assert [item.group for item in rank(trials, metric, "minimize")] == names
    assert [item.group for item in rank(trials, "rewards/margins", "maximize")] == ["", ""]


def test_running_trials_belong_to_the_rows_that_their_settings_name():
    """Before any has ended, the settings alone decide."""
    running = [judged("a", 0.3, None), judged("b", 0.1, None, dataset="b.jsonl")]
    assert [item.group for item in rank(running, LOSS, "minimize")] == ["dataset a.jsonl", "dataset b.jsonl"]
    assert [item.group for item in rank(running[:1] * 2, LOSS, "minimize")] == ["", ""]


def test_runs_without_the_fingerprint_of_held_out_rows_are_told_apart_by_that_of_all_rows():
    def ran(run_id, data):
        return TrialRecord(run_id, run_id, "finished", {}, {LOSS: 0.1, "trial/data": data}, 60.0)

    assert {item.group for item in rank([ran("a", "r1"), ran("b", "r1")], LOSS, "minimize")} == {""}
    assert len({item.group for item in rank([ran("a", "r1"), ran("b", "r2")], LOSS, "minimize")}) == 2


def test_an_agent_warns_once_about_a_changed_file():
    said = []
    config = {"dataset": "d.jsonl", "model_size": "tiny"}
    drift = InputDrift([TrainedRun.of("a", config, {"trial/data": "r1"})], said.append)
    for run_id, rows in (("b", "r1"), ("c", "r2"), ("d", "r2"), ("e", "r1")):
        drift.check(TrainedRun.of(run_id, config, {"trial/data": rows}))
    assert len(said) == 1
    assert (
        "the rows of d.jsonl changed during this sweep. Run c used different ones than earlier trials"
        in said[0]
    )


def test_a_name_cannot_send_escape_sequences_to_the_terminal():
    named = TrialRecord("a", "\x1b[2Jgone", "finished", {"learning_rate": 1e-5}, {LOSS: 0.1}, 60.0)
    assert verdict(named).best[0].startswith('Run a "[2Jgone" (learning_rate 1e-05)')


def test_a_lead_far_above_the_spread_between_seeds_is_fairly_sure():
    result = verdict(*seeds(1e-5, 0.10, 0.11, 0.12), *seeds(1e-6, 0.30, 0.31, 0.32))
    assert "best mean eval/common_loss: 0.11 ± 0.0058 over 3 runs" in result.best[0]
    assert result.confidence[0] == (
        "Fairly sure: the lead (0.2) is unlikely to be seed noise (standard deviation 0.01, 4 degrees of "
        "freedom)."
    )
    assert not any("seeds" in text for text in result.next_steps)


def test_a_lead_within_the_spread_between_seeds_is_a_tie():
    result = verdict(*seeds(1e-5, 0.10, 0.30), *seeds(1e-6, 0.15, 0.35), *seeds(1e-4, 5.0, 5.2))
    assert result.confidence[0] == (
        "A tie of 2: the lead (0.05) is within seed noise (standard deviation 0.14, 3 degrees of freedom)."
    )
    assert "Run the top 2 with more seeds, or choose the cheapest of them." in result.next_steps


def test_a_failed_or_running_best_trial_gets_a_warning():
    broken = verdict(trial("a", 0.1, state="failed", cause="out of memory"), trial("b", 0.2, 1e-4))
    assert broken.best[0].endswith("It failed (out of memory), so it is not fully trained.")
    assert verdict(trial("a", 0.1, state="running")).best[0].endswith("It is still training.")


def test_the_best_mean_wins_and_not_the_luckiest_run():
    result = verdict(*seeds(1e-5, 0.20, 0.21), *seeds(1e-6, 0.05, 0.60))
    assert result.best[0].startswith("learning_rate 1e-05 has the best mean")


def test_noise_is_pooled_over_configurations():
    """Variances 2 (one degree of freedom) and 1 (two): (2 + 2 * 1) / 3."""
    ranked = rank(
        [*seeds(1e-5, 1.0, 3.0), *seeds(1e-6, 4.0, 5.0, 6.0), trial("x", 9.0, 1e-4)], LOSS, "minimize"
    )
    noise = seed_noise(group_by_seed(ranked, "minimize"))
    assert noise.degrees_of_freedom == 3
    assert noise.deviation == pytest.approx((4 / 3) ** 0.5)


@pytest.mark.parametrize(("rate", "side"), [(1e-4, "highest"), (1e-6, "lowest"), (1e-5, None)])
def test_a_best_value_at_the_end_of_its_range_suggests_widening(rate, side):
    result = verdict(*(trial(str(each), 0.1 if each == rate else 0.5, each) for each in RATES))
    widen = [text for text in result.next_steps if text.startswith("Widen")]
    assert widen == (
        [f"Widen learning_rate: the best value ({rate:.4g}) is the {side} tried."] if side else []
    )


def test_a_continuous_range_has_ends_too():
    parameters = {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-4},
        "seed": {"value": 1},
    }
    result = verdict(trial("a", 0.1, 0.98e-4), trial("b", 0.5, 1e-5), parameters=parameters)
    assert any(text.startswith("Widen learning_rate") for text in result.next_steps)


def test_failures_are_listed_by_cause_with_what_they_share():
    result = verdict(
        trial("a", 0.1, 1e-5),
        trial("b", rate=1e-4, state="failed", cause="diverged"),
        trial("c", rate=1e-4, seed=2, state="failed", cause="diverged"),
        trial("d", rate=1e-6, state="crashed", cause="worker crash"),
        trial("e", 0.4, 1e-6, state="killed"),
    )
    assert result.failures == (
        "2 trials failed: diverged (all with learning_rate 0.0001; no trial with it finished).",
        "1 trial failed: worker crash (learning_rate 1e-06).",
    )
    assert any("kto-sweep resume s --failed" in text for text in result.next_steps)


def test_a_sweep_without_runs_says_what_to_type():
    result = verdict()
    assert result.best[0] == "No trial yet."
    assert result.next_steps == ("No trial yet. To train here: kto-sweep agent s",)


def test_a_metric_that_no_trial_logs_is_rejected_with_the_nearest():
    with pytest.raises(UsageError, match="--metric margins: no trial has logged it") as error:
        verdict(trial("a", 0.1, mine=1.0), metric="margins")
    assert error.value.hint == "eval/margins"
    assert verdict(trial("a", 0.1, mine=1.0), metric="mine").best[0].startswith("Run a")


def test_ranking_by_margins_gets_a_caution():
    result = verdict(trial("a", 0.1, **{"rewards/margins": 3.0}), metric="rewards/margins")
    assert any(text.startswith("Rank by a metric other than rewards/margins") for text in result.next_steps)


def test_the_front_has_the_runs_that_no_other_dominates():
    ranked = rank(
        [trial("best", 0.1), trial("cheap", 0.3), trial("beaten", 0.2), trial("failed", 0.4, state="failed")],
        LOSS,
        "minimize",
    )
    costs = {"best": 10.0, "beaten": 10.0, "cheap": 5.0, "failed": 1.0}
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
        SweepRef("me", "kto", "s"), "", "s", "FINISHED", "grid", LOSS, "minimize",
        parse_space({"learning_rate": {"values": RATES}})[0], 9, trials,
        objectives=(Objective(LOSS), Objective(auc, maximize=True)),
    )  # fmt: skip
    comparison = compare(view)
    assert {front.marker: front.run_ids for front in comparison.fronts}["p"] == {"a", "b"}
    assert comparison.verdict.trade_off == (
        "2 trials are on the Pareto front of eval/common_loss and eval/auc: a (0.1, 0.7), b (0.2, 0.9)."
    )
    assert comparison.metrics[:2] == (LOSS, auc)
    assert verdict(*trials).trade_off == ""


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([float(i) for i in range(8)]) == BLOCKS
    assert sparkline([2.0]) == BLOCKS[0]
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)])) == 12
