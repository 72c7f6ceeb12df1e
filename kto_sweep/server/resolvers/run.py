"""Fields of runs: metadata, logged data, files and console lines."""

import json
from dataclasses import replace
from posixpath import normpath
from typing import Any

from kto_sweep.server import history, history_export, uploads
from kto_sweep.server.resolvers import file as file_nodes
from kto_sweep.server.resolvers.registry import Context, Fields, PageArgs, connection, page_args
from kto_sweep.server.resolvers.viewer import local_user
from kto_sweep.server.states import RunState
from kto_sweep.server.store import files, lines, projects, sweeps
from kto_sweep.server.store.files import File
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.store.lines import Stream
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run
from kto_sweep.server.wire import timestamp

fields = Fields()

MAX_SPECS = 20
"""Maximum history specs of a query."""


@fields.of("Run", "id")
def _id(run: Run, context: Context) -> str:
    return to_global("Run", run.id)


@fields.of("Run", "projectId")
def _project_id(run: Run, context: Context) -> str:
    return str(run.project_id)


@fields.of("Run", "project")
def _project(run: Run, context: Context) -> Project:
    return projects.get(context.reader, run.project_id)


@fields.of("Run", "user")
def _user(run: Run, context: Context) -> dict[str, Any]:
    return local_user()


@fields.of("Run", "group")
def _group(run: Run, context: Context) -> str | None:
    return run.group_name


@fields.of("Run", "commit")
def _commit(run: Run, context: Context) -> str | None:
    return run.commit_hash


@fields.of("Run", "readOnly")
def _read_only(run: Run, context: Context) -> bool:
    return False


@fields.of("Run", "stopped", "shouldStop")
def _stopped(run: Run, context: Context) -> bool:
    return run.stop_requested


@fields.of("Run", "failed")
def _failed(run: Run, context: Context) -> bool:
    return run.state in (RunState.FAILED, RunState.CRASHED)


@fields.of("Run", "running")
def _running(run: Run, context: Context) -> bool:
    return run.state is RunState.RUNNING


@fields.of("Run", "sweepName")
def _sweep_name(run: Run, context: Context) -> str | None:
    sweep = sweeps.get(context.reader, run.sweep_id) if run.sweep_id is not None else None
    return sweep.name if sweep else None


@fields.of("Run", "createdAt")
def _created_at(run: Run, context: Context) -> str | None:
    return timestamp(run.created_at)


@fields.of("Run", "heartbeatAt")
def _heartbeat_at(run: Run, context: Context) -> str | None:
    return timestamp(run.heartbeat_at)


@fields.of("Run", "wandbConfig")
def _wandb_config(run: Run, context: Context, keys: list[str] | None = None) -> str:
    entry = json.loads(run.config).get("_wandb")
    values = entry.get("value") if isinstance(entry, dict) else None
    chosen = values if isinstance(values, dict) else {}
    return json.dumps({key: value for key, value in chosen.items() if not keys or key in keys})


@fields.of("Run", "config")
def _config(run: Run, context: Context, keys: list[str] | None = None) -> str:
    return _chosen(run.config, keys)


@fields.of("Run", "summaryMetrics")
def _summary_metrics(run: Run, context: Context, keys: list[str] | None = None) -> str:
    return _chosen(run.summary, keys)


def _chosen(text: str, keys: list[str] | None) -> str:
    """The JSON object with these keys only."""
    if keys is None:
        return text
    values = json.loads(text)
    return json.dumps({key: values[key] for key in keys if key in values})


@fields.of("Run", "systemMetrics")
def _system_metrics(run: Run, context: Context) -> str:
    newest = lines.last(context.reader, run.id, Stream.EVENTS)
    return newest[0].text if newest else "{}"


@fields.of("Run", "historyLineCount")
def _history_line_count(run: Run, context: Context) -> int:
    return _line_count(run, context, Stream.HISTORY)


@fields.of("Run", "eventsLineCount")
def _events_line_count(run: Run, context: Context) -> int:
    return _line_count(run, context, Stream.EVENTS)


@fields.of("Run", "logLineCount")
def _log_line_count(run: Run, context: Context) -> int:
    return _line_count(run, context, Stream.OUTPUT)


def _line_count(run: Run, context: Context, stream: Stream) -> int:
    """The line at which the run's process continues."""
    return lines.count(context.reader, run.id, stream)


@fields.of("Run", "historyTail")
def _history_tail(run: Run, context: Context) -> str:
    return json.dumps([line.text for line in lines.last(context.reader, run.id, Stream.HISTORY)])


@fields.of("Run", "eventsTail")
def _events_tail(run: Run, context: Context) -> str:
    return json.dumps([line.text for line in lines.last(context.reader, run.id, Stream.EVENTS)])


@fields.of("Run", "historyKeys")
def _history_keys(run: Run, context: Context) -> dict[str, Any]:
    return history.keys_index(context.reader, run.id)


@fields.of("Run", "history")
def _history(
    run: Run,
    context: Context,
    min_step: int | None = None,
    max_step: int | None = None,
    samples: int | None = None,
) -> list[str]:
    return history.page(context.reader, run.id, min_step, max_step, samples)


@fields.of("Run", "events")
def _events(run: Run, context: Context, samples: int | None = None) -> list[str]:
    rows = lines.after(context.reader, run.id, Stream.EVENTS, -1, history.MAX_SAMPLES)
    return history.sample([line.text for line in rows], samples)


@fields.of("Run", "sampledHistory")
def _sampled_history(run: Run, context: Context, specs: list[str]) -> list[list[dict[str, Any]]]:
    return [
        history.sampled(context.reader, run.id, spec)
        for spec in specs[:MAX_SPECS]
        if isinstance(spec, str) and spec != "{}"
    ]


@fields.of("Run", "parquetHistory")
def _parquet_history(run: Run, context: Context, live_keys: list[str]) -> dict[str, Any]:
    parts = history_export.exported(context.server, run)
    if parts is None:
        return {"parquet_urls": [], "live_data": history.live_rows(context.reader, run.id, live_keys)}
    urls = [history_export.url(context.server, context.base_url, run, part) for part in parts]
    return {"parquet_urls": urls, "live_data": []}


@fields.of("Run", "logLines")
def _log_lines(
    run: Run,
    context: Context,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    use_improved_pagination: bool | None = None,
) -> dict[str, Any]:
    if last is not None:
        log_lines = lines.last(context.reader, run.id, Stream.OUTPUT, max(0, min(last, history.MAX_SAMPLES)))
        return connection([_log_line(line) for line in log_lines], PageArgs(0, len(log_lines)))
    page = page_args(first, after, default=1000)
    log_lines = lines.after(context.reader, run.id, Stream.OUTPUT, page.offset - 1, page.first + 1)
    answer = connection([_log_line(line) for line in log_lines], page)
    if log_lines[: page.first]:
        # Cursors are line numbers here: numbers may have gaps, and lines are rewritten but never move.
        answer["page_info"]["end_cursor"] = str(log_lines[: page.first][-1].number + 1)
    return answer


def _log_line(line: lines.StreamLine) -> dict[str, Any]:
    time, is_error, text = lines.console_parts(line.text)
    return {
        "number": line.number,
        "timestamp": time,
        "level": "error" if is_error else None,
        "label": None,
        "line": text,
    }


@fields.of("Run", "fileCount")
def _file_count(run: Run, context: Context) -> int:
    return len(files.of_run(context.reader, run.id))


@fields.of("Run", "files")
def _files(
    run: Run,
    context: Context,
    names: list[str] | None = None,
    after: str | None = None,
    first: int | None = None,
    upload: bool | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    page = page_args(first, after)
    arrived = files.of_run(context.reader, run.id)
    if names:
        # wandb requests a file by name and expects an entry even when the file does not exist: its library
        # then checks for the digest "0", its command line for a missing time.
        by_name = {file.name: file for file in arrived}
        missing = File(0, run.id, "", None, "0", None)
        selected = [
            by_name.get(name) or by_name.get(normpath(name)) or replace(missing, name=name)
            for name in names
            if name
        ]
    else:
        selected = [file for file in arrived if not pattern or uploads.matches_like(file.name, pattern)]
    shown = selected[page.offset : page.offset + page.first + 1]
    return connection([file_nodes.of_run(context, file) for file in shown], page) | {
        "total_count": len(selected)
    }
