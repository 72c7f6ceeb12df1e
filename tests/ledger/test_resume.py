"""A sweep with holes goes on with them alone."""

from typing import Any

from ledger_box import Box

RUNS = """{run.id: [[row["_step"] for row in run.scan_history()], dict(run.summary_metrics)]
    for run in api.runs("local/kto-sweep")}"""


def counts(status: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(status[name] for name in ("state", "finished", "failed", "retryable", "missing"))


def test_a_finished_grid_runs_what_is_missing_and_tries_again_what_was_cut_off(box: Box) -> None:
    sweep = box.create()
    (finished, *_), (diverged, *_), (cut_off, *_) = box.work(
        sweep, 3, {"0.001 2": "worker crash", "0.002 1": "diverged"}
    )
    box.run("stop")
    status = box.json("status")
    assert counts(status) == ("FINISHED", 1, 2, 1, 1)
    assert [(cell["parameters"]["batch_size"], cell["state"], cell["cause"]) for cell in status["cells"]] == [
        (1, "done", ""),
        (1, "failed", "diverged"),
        (2, "failed", "worker crash"),
        (2, "missing", ""),
    ]
    told = box.run("status")
    assert f"run {cut_off}: worker crash (can be tried again)   as told" in told
    assert "missing  batch_size=2  learning_rate=0.002" in told
    assert f"Next: kto-sweep resume {sweep}" in told

    resumed = box.json("resume")
    assert (resumed["was"], resumed["state"]) == ("FINISHED", "RUNNING")
    assert (resumed["again"], resumed["missing"]) == ([cut_off], 1)
    before = box.ask(RUNS)
    did = box.work(sweep)
    assert [(rate, size) for _, rate, size in did] == [(0.001, 2), (0.002, 2)]
    assert did[0][0] == cut_off
    assert counts(box.json("status")) == ("FINISHED", 3, 1, 0, 0)
    after = box.ask(RUNS)
    assert [steps for steps, _ in after.values()] == [[1, 2, 3]] * 4
    assert "failure/cause" not in after[cut_off][1]
    assert (after[finished], after[diverged]) == (before[finished], before[diverged])

    assert f"Sweep local/kto-sweep/{sweep}: finished; nothing is left to run" in box.run("resume")
    assert box.json("resume", "--failed")["again"] == [diverged]
