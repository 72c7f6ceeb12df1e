"""Fields of projects: their runs and sweeps."""

from typing import Any

from kto_sweep.server.resolvers.registry import Fields, Request, connection, window
from kto_sweep.server.resolvers.viewer import local_user, named_entity
from kto_sweep.server.store import projects, runs, sweeps
from kto_sweep.server.store.filters import Where, compile_filter, compile_order
from kto_sweep.server.store.ids import to_global
from kto_sweep.server.store.projects import Project
from kto_sweep.server.store.runs import Run
from kto_sweep.server.store.sweeps import Sweep
from kto_sweep.server.wire import timestamp

fields = Fields()

Page = dict[str, Any]


@fields.of("Query", "project", "model")
def _project(
    source: object, request: Request, name: str | None = None, entity_name: str | None = None
) -> Project | None:
    return projects.find(request.reader, entity_name, name)


@fields.of("Query", "models")
def _models(
    source: object,
    request: Request,
    entity_name: str | None = None,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
) -> Page:
    part = window(first, after)
    return connection(projects.page(request.reader, entity_name, part.first + 1, part.offset), part)


@fields.of("Project", "id")
def _id(project: Project, request: Request) -> str:
    return to_global("Project", project.id)


@fields.of("Project", "internalId")
def _internal_id(project: Project, request: Request) -> str:
    return str(project.id)


@fields.of("Project", "entityName")
def _entity_name(project: Project, request: Request) -> str:
    return project.entity


@fields.of("Project", "entity")
def _entity(project: Project, request: Request) -> dict[str, Any]:
    return named_entity(project.entity)


@fields.of("Project", "createdAt")
def _created_at(project: Project, request: Request) -> str | None:
    return timestamp(project.created_at)


@fields.of("Project", "access")
def _access(project: Project, request: Request) -> str:
    return "PRIVATE"


@fields.of("Project", "views")
def _views(project: Project, request: Request) -> str:
    return "{}"


@fields.of("Project", "isBenchmark", "readOnly")
def _no(project: Project, request: Request) -> bool:
    return False


@fields.of("Project", "user")
def _user(project: Project, request: Request) -> dict[str, Any]:
    return local_user()


@fields.of("Project", "run")
def _run(project: Project, request: Request, name: str, desc: str | None = None) -> Run | None:
    return runs.find(request.reader, project.id, name)


@fields.of("Project", "bucket")
def _bucket(project: Project, request: Request, name: str, missing_ok: bool | None = None) -> Run | None:
    return runs.find(request.reader, project.id, name)


def _matching(project: Project, filters: str | None) -> Where:
    return compile_filter(filters).and_also("run.project_id = ?", project.id)


@fields.of("Project", "runCount")
def _run_count(project: Project, request: Request, filters: str | None = None) -> int:
    return runs.count(request.reader, _matching(project, filters))


@fields.of("Project", "runs")
def _runs(
    project: Project,
    request: Request,
    filters: str | None = None,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
) -> Page:
    part = window(first, after)
    where = _matching(project, filters)
    return connection(
        runs.page(request.reader, where, compile_order(order), part.first + 1, part.offset), part
    )


@fields.of("Project", "sweep")
def _sweep(project: Project, request: Request, sweep_name: str) -> Sweep | None:
    return sweeps.find(request.reader, project.id, sweep_name)


@fields.of("Project", "totalSweeps")
def _total_sweeps(project: Project, request: Request) -> int:
    return sweeps.count(request.reader, project.id)


@fields.of("Project", "sweeps")
def _sweeps(
    project: Project,
    request: Request,
    after: str | None = None,
    first: int | None = None,
    filters: str | None = None,
) -> Page:
    part = window(first, after)
    return connection(sweeps.page(request.reader, project.id, part.first + 1, part.offset), part)
