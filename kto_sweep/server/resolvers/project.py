"""Fields of projects: their runs and sweeps."""

from typing import Any

from kto_sweep.server.resolvers.registry import Context, Fields, connection, page_args
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
    source: object, context: Context, name: str | None = None, entity_name: str | None = None
) -> Project | None:
    return projects.find(context.reader, entity_name, name)


@fields.of("Query", "models")
def _models(
    source: object,
    context: Context,
    entity_name: str | None = None,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
) -> Page:
    page = page_args(first, after)
    return connection(projects.page(context.reader, entity_name, page.first + 1, page.offset), page)


@fields.of("Project", "id")
def _id(project: Project, context: Context) -> str:
    return to_global("Project", project.id)


@fields.of("Project", "internalId")
def _internal_id(project: Project, context: Context) -> str:
    return str(project.id)


@fields.of("Project", "entityName")
def _entity_name(project: Project, context: Context) -> str:
    return project.entity


@fields.of("Project", "entity")
def _entity(project: Project, context: Context) -> dict[str, Any]:
    return named_entity(project.entity)


@fields.of("Project", "createdAt")
def _created_at(project: Project, context: Context) -> str | None:
    return timestamp(project.created_at)


@fields.of("Project", "access")
def _access(project: Project, context: Context) -> str:
    return "PRIVATE"


@fields.of("Project", "views")
def _views(project: Project, context: Context) -> str:
    return "{}"


@fields.of("Project", "isBenchmark", "readOnly")
def _no(project: Project, context: Context) -> bool:
    return False


@fields.of("Project", "user")
def _user(project: Project, context: Context) -> dict[str, Any]:
    return local_user()


@fields.of("Project", "run")
def _run(project: Project, context: Context, name: str, desc: str | None = None) -> Run | None:
    return runs.find(context.reader, project.id, name)


@fields.of("Project", "bucket")
def _bucket(project: Project, context: Context, name: str, missing_ok: bool | None = None) -> Run | None:
    return runs.find(context.reader, project.id, name)


def _matching(project: Project, filters: str | None) -> Where:
    return compile_filter(filters).and_also("run.project_id = ?", project.id)


@fields.of("Project", "runCount")
def _run_count(project: Project, context: Context, filters: str | None = None) -> int:
    return runs.count(context.reader, _matching(project, filters))


@fields.of("Project", "runs")
def _runs(
    project: Project,
    context: Context,
    filters: str | None = None,
    after: str | None = None,
    first: int | None = None,
    order: str | None = None,
) -> Page:
    page = page_args(first, after)
    where = _matching(project, filters)
    return connection(
        runs.page(context.reader, where, compile_order(order), page.first + 1, page.offset), page
    )


@fields.of("Project", "sweep")
def _sweep(project: Project, context: Context, sweep_name: str) -> Sweep | None:
    return sweeps.find(context.reader, project.id, sweep_name)


@fields.of("Project", "totalSweeps")
def _total_sweeps(project: Project, context: Context) -> int:
    return sweeps.count(context.reader, project.id)


@fields.of("Project", "sweeps")
def _sweeps(
    project: Project,
    context: Context,
    after: str | None = None,
    first: int | None = None,
    filters: str | None = None,
) -> Page:
    page = page_args(first, after)
    return connection(sweeps.page(context.reader, project.id, page.first + 1, page.offset), page)
