"""Sweeps as plain data, for pure functions of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from kto_sweep.compare.comparison import compare
from kto_sweep.compare.ranking import Configuration
from kto_sweep.search.options import read_options
from kto_sweep.search.space_parser import parse_space
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.sweep.view import BusySpan, SweepView, TrialRecord
from kto_sweep.sweep_file.command import read_command
from kto_sweep.trial import with_defaults

METRIC = {"name": "eval/common_loss", "goal": "minimize"}
FIXED = {"dataset": {"value": "examples/support_replies.jsonl"}, "model_size": {"value": "tiny"}}


def trial(number: int, loss: float | None, state: str = "finished", **config: Any) -> TrialRecord:
    """A trial that held a GPU for 60 seconds; trials of one `number` held it at the same time."""
    fixed = {name: entry["value"] for name, entry in FIXED.items()}
    return TrialRecord(
        run_id=f"run{number}",
        name=f"run-{number}",
        state=state,
        config=with_defaults({**fixed, **config}),
        summary={} if loss is None else {"eval/common_loss": loss},
        seconds=60.0,
        created=100.0 * number,
        device="home gpu 0",
        busy=(BusySpan("home gpu 0", 100.0 * number, 100.0 * number + 60),),
    )


def sweep_view(
    parameters: Mapping[str, Any], *trials: TrialRecord, method: str = "grid", **keys: Any
) -> SweepView:
    """A sweep with these searched parameters; `keys` are other keys of its registered configuration."""
    config = {
        "program": "agent.py",
        "method": method,
        "metric": METRIC,
        "parameters": {**FIXED, **parameters},
        **keys,
    }
    space, problems = parse_space(
        {name: entry for name, entry in config["parameters"].items() if not name.startswith("_")}
    )
    assert space is not None, problems
    return SweepView(
        ref=SweepRef("local", "kto-sweep", "ab12"),
        url="",
        name=str(keys.get("name", "ab12")),
        state="FINISHED",
        method=method,
        metric=config["metric"]["name"],
        goal=config["metric"]["goal"],
        space=space,
        expected=None,
        trials=trials,
        objectives=read_options(config, []).objectives,
        command=read_command(config),
        config=config,
    )


def ranked(view: SweepView) -> Sequence[Configuration]:
    """Its configurations, best first."""
    return compare(view).configurations
