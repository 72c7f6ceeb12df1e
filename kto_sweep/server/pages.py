"""Pages for people: plain tables of sweeps and runs. No script, nothing from elsewhere, all escaped."""

import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from kto_sweep.server import markup, objective, run_writes
from kto_sweep.server.backend import Backend
from kto_sweep.server.errors import GoneError
from kto_sweep.server.markup import Cell, Link, Row
from kto_sweep.server.states import OVER
from kto_sweep.server.store import files, lines, projects, runs, sweeps
from kto_sweep.server.store.filters import Where, compile_order
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.sweep_rules import Metric, SweepRules, read_rules
from kto_sweep.server.wire import timestamp

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MOST_ROWS = 500
"""Rows of one table at most."""
CONSOLE_LINES = 200
REFRESH_SECONDS = 15
FIXED_METRICS = ("rewards/margins", "kl", "gpu/memory_peak_gb")
"""Columns beside the metric of the sweep, where any of its runs has them."""

HOME = Link("sweeps", ("",))

Handler = Callable[[Request], Awaitable[Response]]
Page = Callable[[sqlite3.Connection, Mapping[str, str]], str]


def routes(backend: Backend, guarded: Callable[[Handler], Handler]) -> list[Route]:
    """The routes of the pages; they need no key, but a host name that only this box can mean."""

    def route(path: str, page: Page) -> Route:
        async def show(request: Request) -> Response:
            if not _host_is_ours(request):
                return Response("unknown host", 421, media_type="text/plain")
            text = await run_in_threadpool(lambda: page(backend.database.reader(), request.path_params))
            return HTMLResponse(text, headers=HEADERS)

        return Route(path, guarded(show), methods=["GET"])

    return [
        route("/", overview),
        route("/{entity}/{project}", project_page),
        route("/{entity}/{project}/sweeps/{sweep}", sweep_page),
        route("/{entity}/{project}/runs/{run}", run_page),
    ]


HEADERS = {
    "content-security-policy": markup.POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def _host_is_ours(request: Request) -> bool:
    """Whether the browser asked for a loopback name or for the very address that it reached.

    Any other name may be a foreign page that had its own name point here to read the answer.
    """
    server = request.scope.get("server") or ("",)
    return request.url.hostname in {*LOOPBACK, server[0]}


def overview(connection: sqlite3.Connection, names: Mapping[str, str]) -> str:
    """All sweeps, newest first, and all projects."""
    listed = sweeps.page(connection, None, MOST_ROWS)
    known = projects.page(connection, None, MOST_ROWS, 0)
    return markup.document(
        "Sweeps",
        [],
        [
            _sweep_table(connection, listed),
            markup.section(
                "Projects",
                markup.table(
                    ["project", "created"], [Row([_project_link(p), timestamp(p.created_at)]) for p in known]
                ),
            ),
        ],
    )


def _sweep_table(connection: sqlite3.Connection, listed: Sequence[Sweep]) -> str:
    if not listed:
        return markup.paragraph("No sweeps yet. Register one: kto-sweep create sweeps/demo.yaml --local")
    headings = [
        "sweep",
        "name",
        "project",
        "method",
        "state",
        "runs",
        "expected",
        "metric",
        "best",
        "created",
    ]
    return markup.table(headings, [Row(_sweep_cells(connection, sweep)) for sweep in listed])


def _sweep_cells(connection: sqlite3.Connection, sweep: Sweep) -> list[Cell]:
    project, rules = projects.get(connection, sweep.project_id), read_rules(sweep.config)
    metric = rules.metric
    return [
        Link(sweep.name, (project.entity, project.name, "sweeps", sweep.name)),
        sweep.display_name or rules.name,
        _project_link(project),
        rules.method,
        sweep.state.value.lower(),
        runs.count_of_sweep(connection, sweep.id),
        rules.expected_trials(),
        metric.name if metric else None,
        sweeps.best_metric(connection, sweep.id, maximize=metric.maximize) if metric else None,
        timestamp(sweep.created_at),
    ]


def _project_link(project: Project) -> Link:
    return Link(f"{project.entity}/{project.name}", (project.entity, project.name))


def _project(connection: sqlite3.Connection, names: Mapping[str, str]) -> Project:
    project = projects.find(connection, names["entity"], names["project"])
    if project is None:
        raise GoneError(f"there is no project {names['entity']}/{names['project']}")
    return project


def project_page(connection: sqlite3.Connection, names: Mapping[str, str]) -> str:
    """One project's sweeps and newest runs."""
    project = _project(connection, names)
    newest = runs.page(
        connection, Where("run.project_id = ?", (project.id,)), compile_order("-created_at"), MOST_ROWS
    )
    rows = [
        Row([_run_link(project, run), run.display_name, run.state.value, timestamp(run.created_at)])
        for run in newest
    ]
    return markup.document(
        f"{project.entity}/{project.name}",
        [HOME],
        [
            markup.section(
                "Sweeps", _sweep_table(connection, sweeps.page(connection, project.id, MOST_ROWS))
            ),
            markup.section("Runs", markup.table(["run", "name", "state", "created"], rows)),
        ],
    )


def _run_link(project: Project, run: Run) -> Link:
    return Link(run.name, (project.entity, project.name, "runs", run.name))


def sweep_page(connection: sqlite3.Connection, names: Mapping[str, str]) -> str:
    """One sweep: its runs by rank, with what was varied and what came out."""
    project = _project(connection, names)
    sweep = sweeps.find(connection, project.id, names["sweep"])
    if sweep is None:
        raise GoneError(f"there is no sweep {names['sweep']}")
    rules = read_rules(sweep.config)
    order = _by_metric(rules.metric)
    listed = runs.page(connection, Where("run.sweep_id = ?", (sweep.id,)), order, MOST_ROWS)
    total = runs.count_of_sweep(connection, sweep.id)
    return markup.document(
        sweep.display_name or rules.name or f"Sweep {sweep.name}",
        [HOME, _project_link(project)],
        [
            markup.paragraph(_sweep_line(sweep, rules, total)),
            _run_table(project, rules, listed),
            markup.paragraph(f"The best {MOST_ROWS} of {total} runs.") if total > MOST_ROWS else "",
            markup.section("Configuration", markup.preformatted(sweep.config)),
        ],
        refresh=None if sweep.state in OVER else REFRESH_SECONDS,
    )


def _by_metric(metric: Metric | None) -> Any:
    return (
        compile_order(f"{'-' if metric.maximize else '+'}summary_metrics.{metric.name}") if metric else None
    )


def _sweep_line(sweep: Sweep, rules: SweepRules, total: int) -> str:
    expected = rules.expected_trials()
    goal = (
        f", {'highest' if rules.metric.maximize else 'lowest'} {rules.metric.name} first"
        if rules.metric
        else ""
    )
    of = f" of {expected}" if expected is not None else ""
    return f"{sweep.name}: {rules.method}, {sweep.state.value.lower()}, {total}{of} runs{goal}"


def _run_table(project: Project, rules: SweepRules, listed: Sequence[Run]) -> str:
    configs = [run_writes.plain_config(run.config) for run in listed]
    summaries = [lines.as_row(run.summary) or {} for run in listed]
    varied = _varied(rules, configs)
    metrics = [rules.metric.name] if rules.metric else []
    metrics += [name for name in FIXED_METRICS if name not in metrics and any(name in s for s in summaries)]
    rows = []
    for place, (run, config, summary) in enumerate(zip(listed, configs, summaries, strict=True)):
        values = [objective.finite_number(summary, name) for name in metrics]
        cells: list[Cell] = [_run_link(project, run), run.display_name, run.state.value, _minutes(run)]
        cells += [_shown(config, name) for name in varied]
        best = place == 0 and rules.metric is not None and values[0] is not None
        rows.append(Row([*cells, *values], best=best))
    return markup.table(["run", "name", "state", "minutes", *varied, *metrics], rows)


def _varied(rules: SweepRules, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The searched parameters; where they are not known, those in which the runs differ."""
    if rules.space is not None:
        return [parameter.name for parameter in rules.space.searched]
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]


def _shown(config: Mapping[str, Any], dotted: str) -> Cell:
    value: Any = config.get(dotted)
    if value is None:
        value = config
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float | None) else json.dumps(value)


def _minutes(run: Run) -> float:
    return round((run.heartbeat_at - run.created_at) / 60, 1)


def run_page(connection: sqlite3.Connection, names: Mapping[str, str]) -> str:
    """One run: what it was given, what came out, and its last console lines."""
    project = _project(connection, names)
    run = runs.find(connection, project.id, names["run"])
    if run is None:
        raise GoneError(f"there is no run {names['run']}")
    sweep = sweeps.get(connection, run.sweep_id) if run.sweep_id is not None else None
    trail = [HOME, _project_link(project)]
    if sweep is not None:
        trail.append(Link(sweep.name, (project.entity, project.name, "sweeps", sweep.name)))
    console = lines.last(connection, run.id, Stream.OUTPUT, CONSOLE_LINES)
    alerts = [
        Row([timestamp(alert.created_at), alert.severity, alert.title, alert.text])
        for alert in files.alerts(connection, run.id)
    ]
    state = f"{run.name}: {run.state.value}, {_minutes(run)} minutes"
    return markup.document(
        run.display_name,
        trail,
        [
            markup.paragraph(state + (f", exit code {run.exitcode}" if run.exitcode is not None else "")),
            markup.section("Alerts", markup.table(["time", "level", "title", "text"], alerts))
            if alerts
            else "",
            markup.section("Summary", _value_table(lines.as_row(run.summary) or {})),
            markup.section("Configuration", _value_table(run_writes.plain_config(run.config))),
            markup.section("Console", markup.preformatted("\n".join(line.text for line in console))),
        ],
    )


def _value_table(values: Mapping[str, Any]) -> str:
    rows = [Row([name, _shown(values, name)]) for name in sorted(values) if name != "_wandb"]
    return markup.table(["name", "value"], rows)
