"""The HTML report: the dashboard's charts and the verdict in one file that works offline."""

import base64
import re
from dataclasses import asdict
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kto_sweep.compare.as_data import importance_data, trial_data, verdict_data
from kto_sweep.compare.comparison import CURVES, Comparison, Curves
from kto_sweep.compare.ranking import RankedTrial
from kto_sweep.metrics import METRICS
from kto_sweep.search.distributions import Continuous
from kto_sweep.server.dashboard_data import flat
from kto_sweep.sweep.gpu_hours import gpu_time
from kto_sweep.sweep.sweep_state import read_sweep_status

CHARTS = Path(__file__).parents[1] / "server" / "static"
PAGE = Path(__file__).with_name("report_page.js")
SCOPE = "kto-sweep/"
"""Replaces `./` in the scripts' imports, because inline scripts have no URL to resolve relative imports."""


def render_html(comparison: Comparison, curves: Curves, made: datetime) -> str:
    """The page's HTML; `curves` by run id and metric."""
    templates = Environment(
        loader=PackageLoader("kto_sweep.report"), autoescape=True, undefined=StrictUndefined
    )
    # Keys keep their order, which is that of the sweep file's parameters.
    templates.policies["json.dumps_kwargs"] = {}
    return templates.get_template("report.html").render(
        title=comparison.view.name,
        data=_data(comparison, curves, made),
        scripts=_scripts(),
        main=SCOPE + PAGE.name,
        style=(CHARTS / "style.css").read_text(encoding="utf-8"),
        plotly=(files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"),
    )


def _scripts() -> dict[str, str]:
    """The report's script and all its direct and indirect imports, by name, as data: URLs."""
    urls: dict[str, str] = {}
    pending = [PAGE.name]
    while pending:
        name = pending.pop()
        if SCOPE + name in urls:
            continue
        text = (PAGE if name == PAGE.name else CHARTS / name).read_text(encoding="utf-8")
        pending += re.findall(r'from "\./([\w.]+)"', text)
        text = re.sub(r'from "\./([\w.]+)"', rf'from "{SCOPE}\1"', text)
        urls[SCOPE + name] = "data:text/javascript;base64," + base64.b64encode(text.encode()).decode()
    return urls


def _data(comparison: Comparison, curves: Curves, made: datetime) -> dict[str, Any]:
    view, status = comparison.view, read_sweep_status(comparison.view)
    logged = {item.name: isinstance(item.distribution, Continuous) and item.distribution.log
              for item in view.space.searched}  # fmt: skip
    return {
        "title": view.name,
        "sweep": str(view.ref),
        "url": view.url,
        "state": view.state.lower(),
        **status.facts(),
        "cell_counts": status.grid.counts,
        "time": asdict(gpu_time(view, status.grid)),
        "method": view.method,
        "expected": view.expected,
        "made": made.timestamp(),
        "metric": {"name": comparison.metric, "goal": comparison.goal},
        "parameters": [{"name": name, "log": logged.get(name, False)} for name in comparison.parameters],
        "panels": [[name, METRICS[name].unit] for name in CURVES],
        "verdict": verdict_data(comparison),
        "importance": importance_data(comparison),
        "runs": [_row(comparison, item) for item in comparison.trials],
        "curves": curves,
    }


def _row(comparison: Comparison, item: RankedTrial) -> dict[str, Any]:
    """A run in the format of the dashboard's scripts."""
    trial = item.trial
    return {
        **trial_data(item),
        "name": trial.run_id,
        "title": trial.printable_name,
        "url": f"{comparison.view.url.rsplit('/sweeps/', 1)[0]}/runs/{trial.run_id}",
        "created": trial.created,
        "tags": [],
        "notes": "",
        "host": "",
        "config": flat(trial.config),
        "summary": flat({name: value for name, value in trial.summary.items() if not name.startswith("_")}),
    }
