"""The judgement of trials that have taken their last step, on made-up rows and on real trials."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from cotrainer_cases import Recorder
from hypothesis import given, settings
from hypothesis import strategies as st

from kto_sweep.alerts import AlertLevel, RunAlert
from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.home import Home
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.packed.optim import warmup_steps
from kto_sweep.train.trial.health import Health
from kto_sweep.train.trial.metrics_log import MetricsLog
from kto_sweep.train.trial.request import TrainResult
from kto_sweep.train.trial.row_history import HealthContext
from kto_sweep.train.worker.loop import train_trial
from kto_sweep.trial import Trial

torch.set_num_threads(1)

LENGTHS = (1, 2, 3, 5, 8, 12, 24, 200)
LEARNED, UNTRAINED = 0.4, 0.5
Rows = list[dict[str, float]]


def healthy_rows(steps: int, *, beta: float = 0.1, seed: int = 0) -> Rows:
    """Rows of a trial that learns, with an evaluation after the last step."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(steps):
        chosen, rejected, kl = (np.array([0.2, -0.1, -0.05]) * step + rng.normal(size=3)) * (step > 0)
        rows.append(
            {
                "loss": 0.5 - 0.1 * step / steps + 0.01 * rng.normal(),
                "rewards/chosen": chosen * beta,
                "rewards/rejected": rejected * beta,
                "kl_raw": kl,
                "grad_norm": 26 * beta * math.exp(0.5 * rng.normal()),
            }
        )
    rows[-1] |= {"eval/common_loss": LEARNED, "eval/loss": 0.4, "eval/kl_raw": 0.1, "eval/dprime": math.inf}
    return rows


def judged(rows: Rows, *, beta: float = 0.1, max_grad_norm: float = 1.0, warmup_ratio: float = 0.1) -> str:
    """How the trial ends: why it failed or is unstable, or an empty text."""
    warmup = warmup_steps(len(rows), warmup_ratio)
    health = Health(HealthContext(beta, 0.5, warmup, len(rows), max_grad_norm))
    for step, row in enumerate(rows, 1):
        for issue in health.check(step, row):
            if issue.fatal:
                return f"diverged: {issue.text}"
    message = health.judge()
    return f"unstable: {message}" if message else ""


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.001, 1.0])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("steps", LENGTHS)
def test_a_trial_that_learns_is_stable(steps: int, beta: float, max_grad_norm: float) -> None:
    for seed in range(20):
        rows = healthy_rows(steps, beta=beta, seed=seed)
        assert judged(rows, beta=beta, max_grad_norm=max_grad_norm) == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "rewards/chosen", "rewards/rejected", "kl_raw", "grad_norm"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_values_that_are_not_finite_end_or_mark_a_trial_of_any_length(
    steps: int, name: str, bad: float
) -> None:
    rows = healthy_rows(steps)
    for row in rows[steps // 2 if steps > 2 else 0 :]:
        row[name] = bad
    ending = judged(rows)
    assert ending.startswith(("diverged: ", "unstable: "))
    assert name.removesuffix("_raw") in ending


@pytest.mark.parametrize("steps", [5, 12, 24, 200])
def test_one_step_that_is_not_finite_marks_no_trial(steps: int) -> None:
    for at in range(0, steps, max(1, steps // 12)):
        rows = healthy_rows(steps)
        rows[at]["grad_norm"] = math.inf
        assert judged(rows) == ""


def test_a_tenth_of_the_steps_not_finite_marks_a_trial() -> None:
    def with_bad(count: int) -> Rows:
        rows = healthy_rows(200)
        for row in rows[:: 200 // count][:count]:
            row["grad_norm"] = math.nan
        return rows

    assert judged(with_bad(15)) == ""
    rows = with_bad(20)
    rows[0], rows[3] = rows[3], rows[0]  # not before the first update
    assert judged(rows) == (
        "unstable: grad_norm is inf or nan in 20 of 200 steps, first at step 4; "
        "try a lower learning_rate, a larger warmup_ratio"
    )


def test_the_advice_for_an_untrained_model_is_not_to_lower_the_learning_rate() -> None:
    rows = healthy_rows(3)
    rows[0]["grad_norm"] = rows[1]["grad_norm"] = math.inf
    assert judged(rows).endswith(
        "first at step 1; the untrained model has them too: check the model, its quantization and the rows"
    )


@pytest.mark.parametrize("name", ["eval/common_loss", "eval/loss", "eval/kl_raw"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_a_last_evaluation_that_is_not_finite_marks_a_trial(steps: int, name: str) -> None:
    rows = healthy_rows(steps)
    rows[-1][name] = math.nan
    assert judged(rows).startswith(f"unstable: {name} is nan at step {steps}, the last; try a lower")
    rows = healthy_rows(steps + 1)
    rows[0] |= {name: math.nan}
    assert judged(rows) == ""


@pytest.mark.parametrize(("max_grad_norm", "beta"), [(1.0, 0.1), (0.5, 0.01), (0.0, 0.1), (100.0, 0.1)])
@pytest.mark.parametrize("steps", [5, 12, 24, 200])
def test_exploded_gradients_throughout_mark_a_trial_that_learned_nothing(
    steps: int, max_grad_norm: float, beta: float
) -> None:
    rows = healthy_rows(steps, beta=beta)
    for step, row in enumerate(rows[warmup_steps(steps, 0.1) :]):
        row["grad_norm"] = 1.01e4 * 10 ** (step % 7)
    assert judged(rows, beta=beta, max_grad_norm=max_grad_norm) == "", "a healthy large gradient"
    rows[-1]["eval/common_loss"] = UNTRAINED
    ending = judged(rows, beta=beta, max_grad_norm=max_grad_norm)
    assert ending.startswith("unstable: grad_norm is above ")
    assert "eval/common_loss 0.5 is no better than untrained" in ending
    assert ("max_grad_norm: 1" in ending) == (max_grad_norm == 0)


def test_exploded_gradients_count_without_an_evaluation_too() -> None:
    rows = [row | {"grad_norm": 1e6} for row in healthy_rows(24)]
    del rows[-1]["eval/common_loss"]
    assert judged(rows) == ""
    assert "the loss is no better than untrained (0.5)" in judged([row | {"loss": 0.51} for row in rows])


def test_a_small_max_grad_norm_that_clips_every_step_marks_no_trial() -> None:
    rows = healthy_rows(24)
    rows[-1]["eval/common_loss"] = UNTRAINED
    assert min(row["grad_norm"] for row in rows) > 100 * 0.001
    assert judged(rows, max_grad_norm=0.001) == ""


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("steps", [3, 12, 19, 24])
def test_a_trial_that_ends_far_below_the_reference_is_marked(steps: int, beta: float) -> None:
    rows = [row | {"rewards/chosen": -150 * beta} for row in healthy_rows(steps, beta=beta)]
    assert steps >= 20 or judged(rows, beta=beta) == ""
    rows[-1]["eval/common_loss"] = UNTRAINED
    ending = judged(rows, beta=beta)
    assert ending.startswith("unstable: " if steps < 20 else "diverged: ")
    assert "desirable completions are 150 nats less likely than before training" in ending


ANY = st.floats(width=64)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(ANY, ANY, ANY, ANY, ANY, ANY), min_size=1, max_size=30), ANY.filter(lambda x: x > 0)
)
def test_numbers_of_any_size_are_judged(values: list[tuple[float, ...]], beta: float) -> None:
    names = ("loss", "rewards/chosen", "rewards/rejected", "kl_raw", "grad_norm", "eval/common_loss")
    health = Health(HealthContext(beta, 0.5, 2, len(values)))
    for step, row in enumerate(values, 1):
        for issue in health.check(step, dict(zip(names, row, strict=True))):
            assert len(issue.text) < 300
    assert len(health.judge()) < 400


TRIAL = Trial(model="tiny", dataset="x", max_steps=12)
BAD = {"loss": 0.5, "grad_norm": math.nan}
GOOD = {"loss": 0.5, "grad_norm": 1.0}


def metrics_log(path: Path, done: int) -> tuple[MetricsLog, Recorder]:
    report = Recorder()
    log = MetricsLog(path, report, TRIAL, (1, 1))
    log.resume(12, done, None)
    return log, report


def test_a_resumed_trial_is_judged_by_its_earlier_steps_too(tmp_path: Path) -> None:
    log, _ = metrics_log(tmp_path / "rows.jsonl", 0)
    for step in range(1, 7):
        log.log(step, BAD if step in (4, 5) else GOOD)
    log.close()
    log, report = metrics_log(tmp_path / "rows.jsonl", 6)
    for step in range(7, 13):
        log.log(step, GOOD)
    message = (
        "grad_norm is inf or nan in 2 of 12 steps, first at step 4; "
        "try a lower learning_rate, a larger warmup_ratio"
    )
    assert log.conclude() == {"trial/health": "unstable", "trial/health_message": message}
    log.close()
    assert report.alerts == [RunAlert(AlertLevel.ERROR, "unstable", message, 12)]


def test_a_trial_killed_between_its_last_row_and_its_failure_fails_when_it_resumes(tmp_path: Path) -> None:
    log, _ = metrics_log(tmp_path / "rows.jsonl", 0)
    for step in range(1, 5):
        log.log(step, BAD)
    with pytest.raises(TrialFailure, match="step 5: grad_norm is inf or nan in 5 of the last 5 steps"):
        log.log(5, BAD)
    log.close()
    again = MetricsLog(tmp_path / "rows.jsonl", Recorder(), TRIAL, (1, 1))
    with pytest.raises(TrialFailure, match="step 5: grad_norm is inf or nan"):
        again.resume(12, 5, 5)
    again.close()


@pytest.fixture(scope="module")
def context(home: Home) -> WorkerContext:
    return WorkerContext(home, torch.device("cpu"))


def trained(
    context: WorkerContext, folder: Path, *, stop_after: int | None = None, **more: object
) -> tuple[TrainResult, Recorder]:
    """A real trial of the tiny model."""
    rows = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"
    values: Mapping[str, object] = {"batch_size": 4, "max_length": 64, "max_steps": 12}
    trial = Trial(model_size="tiny", dataset=str(rows), **values | more)  # type: ignore[arg-type]
    report = Recorder()

    def should_stop() -> bool:
        return stop_after is not None and len(report.rows) >= stop_after

    return train_trial(context, trial, folder, report, should_stop), report


@pytest.mark.parametrize("full_finetune", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_short_real_trial_that_breaks_is_unstable_also_when_it_was_stopped_in_between(
    context: WorkerContext, tmp_path: Path, full_finetune: bool
) -> None:
    broken = {"learning_rate": 1.0, "full_finetune": full_finetune}
    stopped, report = trained(context, tmp_path, stop_after=8, **broken)
    assert stopped.stopped
    assert "trial/health" not in stopped.summary
    assert "unstable" not in [alert.title for alert in report.alerts]
    result, report = trained(context, tmp_path, **broken)
    assert min(report.rows) == 9
    assert result.summary["trial/health"] == "unstable"
    message = result.summary["trial/health_message"]
    assert "eval/common_loss 0.5" in str(message)
    assert "no better than untrained" in str(message)
    assert "try a lower learning_rate" in str(message)
    assert report.alerts[-1] == RunAlert(AlertLevel.ERROR, "unstable", str(message), 12)


def test_learning_rate_1_for_24_steps_fails(context: WorkerContext, tmp_path: Path) -> None:
    with pytest.raises(TrialFailure) as caught:
        trained(context, tmp_path, max_steps=24, learning_rate=1.0)
    assert caught.value.cause is FailureCause.DIVERGED
    assert "try a lower learning_rate" in caught.value.message


@pytest.mark.parametrize("full_finetune", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_short_real_trial_that_learns_is_stable(
    context: WorkerContext, tmp_path: Path, full_finetune: bool
) -> None:
    result, _ = trained(
        context, tmp_path, learning_rate=1e-4 if full_finetune else 1e-3, full_finetune=full_finetune
    )
    assert not {"trial/health", "trial/health_message"} & set(result.summary)
