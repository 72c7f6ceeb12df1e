"""Health rules, on a made-up series for each rule and on real trials that learn or diverge."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from kto_sweep.alerts import AlertLevel, RunAlert
from kto_sweep.errors import FailureCause, TrialFailure
from kto_sweep.home import Home
from kto_sweep.provenance import Provenance
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.trial.health import UNUSABLE, Health, HealthIssue
from kto_sweep.train.trial.metrics_log import MetricsLog
from kto_sweep.train.trial.row_history import RECENT, WINDOW, HealthContext, trend
from kto_sweep.train.worker.loop import train_trial
from kto_sweep.trial import Trial

torch.set_num_threads(1)

STEPS = 200
Series = Callable[[int], float]


HEALTHY: dict[str, Series] = {
    "chosen": lambda step: 0.1 * step,
    "rejected": lambda step: -0.2 * step,
    "kl": lambda step: -0.05 * step,
    "loss": lambda step: 0.5 - 0.002 * step,
    "grad": lambda step: 1.0,
}


def judge(beta: float = 0.1, noise: float = 1.0, seed: int = 0, **series: Series) -> dict[str, list[int]]:
    """Steps at which each issue is reported, by title, up to one that ends the trial.

    All but `series` is healthy; rewards in nats.
    """
    rng = np.random.default_rng(seed)
    health = Health(HealthContext(beta, 0.5, warmup=10, steps=STEPS))
    reported: dict[str, list[int]] = {}
    for step in range(1, STEPS + 1):
        now = {name: value(step) for name, value in (HEALTHY | series).items()}
        for name in ("chosen", "rejected", "kl"):
            now[name] += noise * rng.normal() * min(1, step / 20)
        row = {
            "loss": now["loss"] + 0.01 * noise * rng.normal(),
            "rewards/chosen": now["chosen"] * beta,
            "rewards/rejected": now["rejected"] * beta,
            "kl_raw": now["kl"],
            "grad_norm": now["grad"],
        }
        if "eval" in now:
            row["eval/common_loss"] = now["eval"]
        issues = health.check(step, row)
        for issue in issues:
            reported.setdefault(issue.title, []).append(step)
        if any(issue.fatal for issue in issues):
            break
    return reported


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_trial_has_no_issue(seed: int, beta: float) -> None:
    assert judge(seed=seed, beta=beta, noise=5.0) == {}


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5])
def test_divergence_is_reported_before_it_ends_the_trial(beta: float) -> None:
    reported = judge(beta=beta, chosen=lambda step: -1.0 * step, rejected=lambda step: -1.2 * step)
    # The mean over the last 20 steps passes -20 nats about 10 steps after the series does, and -50 likewise.
    assert 30 <= reported["desirable rewards far below the reference"][0] <= 36
    assert 58 <= reported["diverged"][0] <= 62


def test_recovering_rewards_do_not_end_the_trial() -> None:
    reported = judge(chosen=lambda step: -100 + step, rejected=lambda step: -110 + step)
    assert "diverged" not in reported
    assert reported["desirable rewards far below the reference"] == [WINDOW]


def test_low_rewards_that_do_not_recover_end_the_trial() -> None:
    reported = judge(chosen=lambda step: -4.0 * min(step, 20), rejected=lambda step: -5.0 * min(step, 20))
    assert reported["diverged"][0] <= 25


@pytest.mark.parametrize(("sign", "title"), [(-1, "KL diverged"), (1, "KL diverged")])
def test_growing_kl_ends_the_trial(sign: int, title: str) -> None:
    reported = judge(kl=lambda step: sign * 2.5 * step)
    assert reported["KL large"][0] < reported[title][0] <= 100
    assert title not in judge(kl=lambda step: sign * 100 * (1 - math.exp(-step / 30)))


def test_a_reference_point_that_saturates_the_loss_is_reported() -> None:
    assert "KL large" in judge(beta=0.5, kl=lambda step: 0.1 * step)
    assert "KL large" not in judge(beta=0.1, kl=lambda step: 0.1 * step)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_at_once(bad: float) -> None:
    assert judge(loss=lambda step: bad if step == 7 else 0.5)["loss not finite"] == [7]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["grad", "chosen", "rejected", "kl"])
def test_values_that_are_not_finite_are_reported_and_several_end_the_trial(name: str, bad: float) -> None:
    healthy = HEALTHY[name]
    assert judge(**{name: lambda step: bad if step == 30 else healthy(step)}) == {"step not finite": [30]}
    reported = judge(**{name: lambda step: bad if step >= 30 else healthy(step)})
    assert reported == {"step not finite": [30], "not finite": [30 + UNUSABLE - 1]}


def test_every_other_gradient_that_is_not_finite_ends_the_trial_and_one_in_a_few_does_not() -> None:
    every_other: Series = lambda step: math.inf if step % 2 else 1.0  # noqa: E731
    assert judge(grad=every_other)["not finite"] == [2 * UNUSABLE - 1]
    seldom = judge(grad=lambda step: math.inf if step % 4 == 0 else 1.0)
    assert seldom == {"step not finite": [4]}
    assert RECENT // 4 < UNUSABLE


def test_an_evaluation_that_is_not_finite_is_reported() -> None:
    assert judge(eval=lambda step: math.nan if step < 50 else 0.4) == {"evaluation not finite": [1]}


def test_rewards_that_stay_at_0_are_reported() -> None:
    still: dict[str, Series] = {"chosen": lambda step: 0.004, "rejected": lambda step: -0.004}
    assert judge(noise=0, **still) == {"rewards stay at 0": [30]}
    collapsed: dict[str, Series] = {
        "chosen": lambda step: 3.0 if step < 60 else 0.0,
        "rejected": lambda step: -3.0 if step < 60 else 0.0,
    }
    reported = judge(noise=0, **collapsed)
    assert reported["rewards stay at 0"] == [79]
    assert reported["margin falling"]


def test_kl_that_stays_at_0_is_reported() -> None:
    assert judge(noise=0, kl=lambda step: 0.0005) == {"KL stays at 0": [30]}


def test_negative_falling_and_flat_margins_are_reported() -> None:
    assert "margin negative" in judge(chosen=lambda step: -0.1 * step, rejected=lambda step: 0.1 * step)
    fallen = judge(chosen=lambda step: 0.4 * step if step < 100 else 40 - 2 * (step - 100))
    assert 100 < fallen["margin falling"][0] < 140
    flat = judge(chosen=lambda step: 3.0, rejected=lambda step: 3.0)
    assert flat["margin flat"][0] >= STEPS // 2
    assert "margin flat" not in judge(chosen=lambda step: 2.0, rejected=lambda step: 0.0, noise=0.5)


def test_gradient_norms_are_compared_with_beta_and_with_earlier_steps() -> None:
    spike: Series = lambda step: 200.0 if step == 50 else 1.0  # noqa: E731
    assert judge(grad=spike, beta=0.1)["gradient norm"] == [50]
    assert judge(grad=lambda step: 50.0, beta=0.1) == {}
    assert judge(grad=lambda step: 50.0, beta=0.02)["gradient norm"][0] == 1
    assert judge(grad=lambda step: 6.0 if step == 50 else 0.1, beta=0.1)["gradient norm"] == [50]
    assert judge(grad=lambda step: 0.6 if step == 50 else 0.01, beta=0.1) == {}


def test_a_loss_above_its_initial_value_and_an_evaluation_no_better_than_untrained_are_reported() -> None:
    assert judge(loss=lambda step: 0.6, noise=0.1)["loss above its initial value"][0] == WINDOW
    reported = judge(eval=lambda step: 0.5)
    assert reported["no better than untrained"] == [STEPS // 2]
    assert judge(eval=lambda step: 0.45) == {}


def test_an_issue_is_reported_once_per_episode() -> None:
    reported = judge(grad=lambda step: 500.0 if step < 40 or 90 < step < 120 else 1.0)
    assert reported["gradient norm"] == [1, 91]
    reported = judge(grad=lambda step: 500.0 if step % (WINDOW - 2) == 0 else 1.0)
    assert len(reported["gradient norm"]) == 1


def test_batches_of_one_label_still_have_a_margin() -> None:
    """Batch size 1: no row ever has both rewards."""
    health = Health(HealthContext(0.1, 0.5, warmup=0, steps=400))
    issues: list[HealthIssue] = []
    for step in range(1, 300):
        side, value = ("chosen", -0.02) if step % 2 else ("rejected", 0.02)
        issues += health.check(step, {f"rewards/{side}": value * step * 0.1, "loss": 0.5, "grad_norm": 1.0})
    assert "margin negative" in [issue.title for issue in issues]


def test_trends() -> None:
    rng = np.random.default_rng(0)
    false_alarms = sum(trend(rng.normal(size=WINDOW).tolist()).rising for _ in range(2000))
    assert false_alarms < 20  # three standard errors: about 3 in 2,000, somewhat more with so few values
    assert (
        sum(trend((rng.normal(size=WINDOW) + 0.3 * np.arange(WINDOW)).tolist()).rising for _ in range(50))
        > 40
    )
    steady = trend([2.0] * WINDOW)
    assert (steady.mean, steady.error, steady.change, steady.rising) == (2.0, 0.0, 0.0, False)


class Notes:
    """A Report that records notes, alerts and steps."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.alerts: list[RunAlert] = []
        self.steps: list[int] = []

    def preparing(self, what: str, done: int, total: int) -> None:
        pass

    def loaded(self, provenance: Provenance) -> None:
        pass

    def plan(self, total_steps: int, done_steps: int = 0) -> None:
        pass

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def alert(self, alert: RunAlert) -> None:
        self.alerts.append(alert)


def test_issues_become_alerts_and_reported_ones_are_not_repeated(tmp_path: Path) -> None:
    trial = Trial(model="tiny", dataset="x", max_steps=100)
    reports = [Notes(), Notes()]
    row = {"grad_norm": 1e6, "loss": 0.5}
    first = MetricsLog(tmp_path / "rows.jsonl", reports[0], trial, (10, 10))
    first.resume(100, 0, None)
    first.log(1, row)
    again = MetricsLog(tmp_path / "rows.jsonl", reports[1], trial, (10, 10))
    again.resume(100, 1, None)
    for log in (first, again):
        log.log(2, row)
        log.close()
    text = "the gradient norm is 1000000; try a larger warmup_ratio, and max_grad_norm above 0"
    assert reports[0].alerts == [RunAlert(AlertLevel.WARN, "gradient norm", text, 1)]
    assert str(reports[0].alerts[0]) == f"WARNING: step 1: gradient norm: {text}"
    assert (reports[0].steps, reports[1].steps) == ([1, 2], [2])
    assert reports[1].alerts == []


@pytest.fixture(scope="module")
def context(home: Home) -> WorkerContext:
    return WorkerContext(home, torch.device("cpu"))


def real_trial(**more: float) -> Trial:
    rows = Path(__file__).parents[2] / "examples" / "support_replies.jsonl"
    values = {"batch_size": 8, "max_steps": 40, "max_length": 128, "eval_steps": 40}
    return Trial(model_size="tiny", dataset=str(rows), **values | more)  # type: ignore[arg-type]


def test_a_real_trial_that_learns_has_no_issue(context: WorkerContext, tmp_path: Path) -> None:
    report = Notes()
    result = train_trial(context, real_trial(learning_rate=1e-3), tmp_path, report, lambda: False)
    assert result.summary["eval/common_loss"] < 0.4  # type: ignore[operator]
    assert report.alerts == []


def test_a_real_trial_that_diverges_fails(context: WorkerContext, tmp_path: Path) -> None:
    report = Notes()
    with pytest.raises(TrialFailure) as caught:
        train_trial(context, real_trial(learning_rate=3e-2), tmp_path, report, lambda: False)
    assert caught.value.cause is FailureCause.DIVERGED
    assert "nats less likely than before training" in caught.value.message
    assert report.steps == list(range(1, len(report.steps) + 1))
    assert WINDOW <= len(report.steps) < 40
    assert [alert.title for alert in report.alerts if alert.level is AlertLevel.ERROR] == ["diverged"]
