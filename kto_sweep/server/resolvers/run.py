"""Fields of runs: what they are, what they logged, their files and console lines."""

import json
from dataclasses import replace
from posixpath import normpath
from typing import Any

from kto_sweep.server import history, overwritten_runs, uploads
from kto_sweep.server.resolvers.registry import Fields, Request, Window, connection, window
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

MOST_SPECS = 20
"""History specs of one query at most."""


@fields.of("Run", "id")
def _id(run: Run, request: Request) -> str:
    return to_global("Run", run.id)


@fields.of("Run", "projectId")
def _project_id(run: Run, request: Request) -> str:
    return str(run.project_id)


@fields.of("Run", "project")
def _project(run: Run, request: Request) -> Project:
    return projects.get(request.reader, run.project_id)


@fields.of("Run", "user")
def _user(run: Run, request: Request) -> dict[str, Any]:
    return local_user()


@fields.of("Run", "group")
def _group(run: Run, request: Request) -> str | None:
    return run.group_name


@fields.of("Run", "commit")
def _commit(run: Run, request: Request) -> str | None:
    return run.commit_hash


@fields.of("Run", "readOnly")
def _read_only(run: Run, request: Request) -> bool:
    return False


@fields.of("Run", "stopped", "shouldStop")
def _stopped(run: Run, request: Request) -> bool:
    return run.stop_requested


@fields.of("Run", "failed")
def _failed(run: Run, request: Request) -> bool:
    return run.state in (RunState.FAILED, RunState.CRASHED)


@fields.of("Run", "running")
def _running(run: Run, request: Request) -> bool:
    return run.state is RunState.RUNNING


@fields.of("Run", "sweepName")
def _sweep_name(run: Run, request: Request) -> str | None:
    sweep = sweeps.get(request.reader, run.sweep_id) if run.sweep_id is not None else None
    return sweep.name if sweep else None


@fields.of("Run", "createdAt")
def _created_at(run: Run, request: Request) -> str | None:
    return timestamp(run.created_at)


@fields.of("Run", "heartbeatAt")
def _heartbeat_at(run: Run, request: Request) -> str | None:
    return timestamp(run.heartbeat_at)


@fields.of("Run", "wandbConfig")
def _wandb_config(run: Run, request: Request, keys: list[str] | None = None) -> str:
    entry = json.loads(run.config).get("_wandb")
    values = entry.get("value") if isinstance(entry, dict) else None
    chosen = values if isinstance(values, dict) else {}
    return json.dumps({key: value for key, value in chosen.items() if not keys or key in keys})


@fields.of("Run", "summaryMetrics")
def _summary_metrics(run: Run, request: Request) -> str:
    return run.summary


@fields.of("Run", "systemMetrics")
def _system_metrics(run: Run, request: Request) -> str:
    newest = lines.last(request.reader, run.id, Stream.EVENTS)
    return newest[0].text if newest else "{}"


@fields.of("Run", "historyLineCount")
def _history_line_count(run: Run, request: Request) -> int:
    return _line_count(run, request, Stream.HISTORY)


@fields.of("Run", "eventsLineCount")
def _events_line_count(run: Run, request: Request) -> int:
    return _line_count(run, request, Stream.EVENTS)


@fields.of("Run", "logLineCount")
def _log_line_count(run: Run, request: Request) -> int:
    return _line_count(run, request, Stream.OUTPUT)


def _line_count(run: Run, request: Request, stream: Stream) -> int:
    """Where the run's process goes on writing: at the beginning after a start without resume."""
    return 0 if overwritten_runs.is_unseen(run, stream) else lines.count(request.reader, run.id, stream)


@fields.of("Run", "historyTail")
def _history_tail(run: Run, request: Request) -> str:
    return json.dumps([line.text for line in lines.last(request.reader, run.id, Stream.HISTORY)])


@fields.of("Run", "eventsTail")
def _events_tail(run: Run, request: Request) -> str:
    return json.dumps([line.text for line in lines.last(request.reader, run.id, Stream.EVENTS)])


@fields.of("Run", "historyKeys")
def _history_keys(run: Run, request: Request) -> dict[str, Any]:
    return history.keys_index(request.reader, run.id)


@fields.of("Run", "history")
def _history(
    run: Run,
    request: Request,
    min_step: int | None = None,
    max_step: int | None = None,
    samples: int | None = None,
) -> list[str]:
    return history.page(request.reader, run.id, min_step, max_step, samples)


@fields.of("Run", "events")
def _events(run: Run, request: Request, samples: int | None = None) -> list[str]:
    rows = lines.after(request.reader, run.id, Stream.EVENTS, -1, history.MOST_SAMPLES)
    return history.sample([line.text for line in rows], samples)


@fields.of("Run", "sampledHistory")
def _sampled_history(run: Run, request: Request, specs: list[str]) -> list[list[dict[str, Any]]]:
    return [
        history.sampled(request.reader, run.id, spec)
        for spec in specs[:MOST_SPECS]
        if isinstance(spec, str) and spec != "{}"
    ]


@fields.of("Run", "parquetHistory")
def _parquet_history(run: Run, request: Request, live_keys: list[str]) -> dict[str, Any]:
    return {"parquet_urls": [], "live_data": history.live_rows(request.reader, run.id, live_keys)}


@fields.of("Run", "logLines")
def _log_lines(
    run: Run,
    request: Request,
    first: int | None = None,
    after: str | None = None,
    last: int | None = None,
    use_improved_pagination: bool | None = None,
) -> dict[str, Any]:
    if last is not None:
        found = lines.last(request.reader, run.id, Stream.OUTPUT, max(0, min(last, history.MOST_SAMPLES)))
        return connection([_log_line(line) for line in found], Window(0, len(found)))
    part = window(first, after, usual=1000)
    found = lines.after(request.reader, run.id, Stream.OUTPUT, part.offset - 1, part.first + 1)
    page = connection([_log_line(line) for line in found], part)
    if found[: part.first]:
        # Cursors are line numbers here: there may be gaps, and lines are rewritten but never move.
        page["page_info"]["end_cursor"] = str(found[: part.first][-1].number + 1)
    return page


def _log_line(line: lines.Line) -> dict[str, Any]:
    time, is_error, text = lines.console_parts(line.text)
    return {
        "number": line.number,
        "timestamp": time,
        "level": "error" if is_error else None,
        "label": None,
        "line": text,
    }


@fields.of("Run", "fileCount")
def _file_count(run: Run, request: Request) -> int:
    return len(files.of_run(request.reader, run.id))


@fields.of("Run", "files")
def _files(
    run: Run,
    request: Request,
    names: list[str] | None = None,
    after: str | None = None,
    first: int | None = None,
    upload: bool | None = None,
    pattern: str | None = None,
) -> dict[str, Any]:
    part = window(first, after)
    arrived = files.of_run(request.reader, run.id)
    if names:
        # wandb asks for a file by its name and takes what comes; that there is none, its library sees by a
        # digest of "0", its command line by the missing time.
        known = {file.name: file for file in arrived}
        missing = File(0, run.id, "", None, "0", None)
        found = [
            known.get(name) or known.get(normpath(name)) or replace(missing, name=name)
            for name in names
            if name
        ]
    else:
        found = [file for file in arrived if not pattern or uploads.like(file.name, pattern)]
    return connection(found[part.offset : part.offset + part.first + 1], part)


@fields.of("File", "id")
def _file_id(file: File, request: Request) -> str:
    return to_global("File", file.id)


@fields.of("File", "url")
def _file_url(file: File, request: Request, upload: bool | None = None) -> str:
    return uploads.url(request.backend, request.base_url, file)


@fields.of("File", "directUrl", "uploadUrl")
def _direct_url(file: File, request: Request) -> str:
    return uploads.url(request.backend, request.base_url, file)


@fields.of("File", "sizeBytes")
def _size_bytes(file: File, request: Request) -> int:
    return file.size or 0


@fields.of("File", "mimetype")
def _mimetype(file: File, request: Request) -> str:
    return uploads.mimetype(file.name)


@fields.of("File", "updatedAt")
def _updated_at(file: File, request: Request) -> str | None:
    return timestamp(file.updated_at)
