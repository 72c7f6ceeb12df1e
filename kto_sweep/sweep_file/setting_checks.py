"""Checks of a sweep file's settings: every key but `parameters`, such as metric, run_cap, early_terminate."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kto_sweep.errors import Problem
from kto_sweep.metrics import METRICS, NOT_LOGGED
from kto_sweep.search.options import BLOCK
from kto_sweep.sweep_file.yaml_source import Path, YamlSource
from kto_sweep.text import is_number, nearest, number_from_text, show
from kto_sweep.wandb_names import name_problem

TOP_LEVEL = (
    "method", "parameters", "metric", "metrics", "early_terminate", "run_cap", "program", "command", "name",
    "description", "project", "entity", "controller", "scheduler", "job", "image_uri", "apiVersion", "kind",
)  # fmt: skip
"""Every key that W&B accepts at the top of a sweep."""

METHODS = ("grid", "random", "bayes")
_TEXTS = ("program", "name", "description", "project", "entity")
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_IMPUTE = ("latest", "best", "worst")
_HYPERBAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")


ANCHOR_PREFIX = "x-"
"""Begins the name of a top-level key that is for YAML anchors alone, as in Docker Compose and OpenAPI."""
_TYPO = 0.8
"""Similarity from which an unknown key is a misspelt one, even if it holds anchors."""


def without_anchor_keys(source: YamlSource) -> dict[str, Any]:
    """The file's data without the top-level keys that only hold YAML anchors; W&B ignores them too."""
    return {key: value for key, value in source.data.items() if not _only_holds_anchors(str(key), source)}


def _only_holds_anchors(key: str, source: YamlSource) -> bool:
    if key in TOP_LEVEL or key == BLOCK:
        return False
    if key.startswith(ANCHOR_PREFIX):
        return True
    return key in source.shared_keys and nearest(key, (*TOP_LEVEL, BLOCK), _TYPO) is None


def convert_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The file's data without empty keys, with the text numbers of run_cap, metric and bands as numbers."""
    config = {key: value for key, value in data.items() if value is not None}
    if "run_cap" in config:
        config["run_cap"] = _as_number(config["run_cap"])
    for key, names in (("metric", ("target",)), ("early_terminate", ("min_iter", "max_iter", "s", "eta"))):
        group = config.get(key)
        if isinstance(group, Mapping):
            filled = {name: value for name, value in group.items() if value is not None}
            config[key] = {name: _as_number(v) if name in names else v for name, v in filled.items()}
    block = config.get(BLOCK)
    if isinstance(block, Mapping) and isinstance(block.get("asha"), Mapping):
        bands = {name: _as_number(value) for name, value in block["asha"].items() if value is not None}
        config[BLOCK] = {**block, "asha": bands}
    return config


def check_settings(config: Mapping[str, Any]) -> list[Problem]:
    """Every problem of a sweep's settings."""
    return [
        *_check_top_level(config),
        *_check_controller(config.get("controller")),
        *_check_method(config),
        *_check_metric(config.get("metric")),
        *_check_early_terminate(config.get("early_terminate")),
    ]


def _check_top_level(config: Mapping[str, Any]) -> Iterator[Problem]:
    yield from unknown_keys(config, (*TOP_LEVEL, BLOCK), (), "a sweep")
    for key in _TEXTS:
        value = config.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            hint = "" if isinstance(value, str | list | Mapping) else f'{key}: "{show(value)}"'
            yield Problem((key,), f"{show(value)} is not a {key}", "It must be text.", hint)
    for kind in ("project", "entity"):
        name = config.get(kind)
        problem = name_problem(kind, name) if isinstance(name, str) and name.strip() else None
        if problem is not None:
            yield problem
    run_cap = config.get("run_cap")
    if run_cap is not None and not _is_count(run_cap):
        yield Problem(
            ("run_cap",),
            f"{show(run_cap)} is not a number of trials",
            "It must be a whole number of at least 1.",
        )
    command = config.get("command")
    if command is not None and not isinstance(command, list):
        yield Problem(("command",), f"{show(command)} is not a list", hint="command: ['${env}', python, ...]")
    if "metrics" in config:
        why = "In W&B, several metrics need method custom, which kto-sweep does not run."
        hint = "metric: {name: ..., goal: ...}; or kto_sweep: {objectives: [...]}"
        yield Problem(("metrics",), "several metrics", why, hint)


def setting_notices(config: Mapping[str, Any]) -> Iterator[str]:
    """Settings of W&B that kto-sweep does not use, or that make its agents wait for another program."""
    for key in ("job", "image_uri"):
        if config.get(key) is not None:
            yield f"{key}: only W&B Launch reads it; `kto-sweep agent` runs its own KTO training"
    if config.get("scheduler") is not None:
        yield "scheduler: no trial starts until `wandb sweep-scheduler SWEEP` chooses it"
    controller = config.get("controller")
    if isinstance(controller, Mapping) and controller.get("type") == "local":
        yield (
            "controller: with type: local, W&B starts no trial until `wandb controller SWEEP` chooses it; "
            "the embedded server chooses trials itself"
        )


def _check_controller(controller: Any) -> Iterator[Problem]:
    if controller is None:
        return
    kind = controller.get("type") if isinstance(controller, Mapping) else controller
    if not isinstance(controller, Mapping) or kind not in ("cloud", "local"):
        hint = nearest(str(kind), ("cloud", "local")) or "cloud"
        yield Problem(
            ("controller",), f"{show(controller)} is not a controller", hint=f"controller: {{type: {hint}}}"
        )


def _check_method(config: Mapping[str, Any]) -> Iterator[Problem]:
    method = config.get("method")
    if "method" not in config:
        yield Problem(
            (), "no method", "The method sets how trials are chosen.", f"method: one of {', '.join(METHODS)}"
        )
    elif method == "custom":
        why = "method custom lets a `wandb sweep-scheduler` choose trials, which kto-sweep does not start."
        yield Problem(("method",), "custom is not supported", why, f"one of {', '.join(METHODS)}")
    elif method not in METHODS:
        hint = nearest(str(method).lower(), METHODS) or f"one of {', '.join(METHODS)}"
        what = f"{show(method)} is not a method"
        yield Problem(("method",), what, "The method sets how trials are chosen.", hint)


def _check_metric(metric: Any) -> Iterator[Problem]:
    if metric is None:
        return
    if not isinstance(metric, Mapping):
        hint = f"metric: {{name: {metric}}}" if isinstance(metric, str) else "metric: {name: ..., goal: ...}"
        yield Problem(("metric",), f"{show(metric)} is not a metric", hint=hint)
        return
    yield from unknown_keys(metric, _METRIC_KEYS, ("metric",), "metric")
    yield from check_metric(metric, ("metric",))
    target = metric.get("target")
    if target is not None and not is_number(target):
        yield Problem(("metric", "target"), f"{show(target)} is not a number")
    for key, words in (("impute", _IMPUTE), ("impute_while_running", (*_IMPUTE, "false"))):
        value = metric.get(key)
        if value is not None and show(value) not in words:
            yield Problem(("metric", key), f"{show(value)} is not a way to impute", hint=", ".join(words))


def check_metric(metric: Mapping[str, Any], here: Path) -> Iterator[Problem]:
    """Every problem with name and goal of the metric at `here`."""
    yield from _check_metric_name(metric, here)
    yield from _check_goal(metric, here)


def _check_metric_name(metric: Mapping[str, Any], here: Path) -> Iterator[Problem]:
    name = metric.get("name")
    if name is None:
        yield Problem(here, "no name", hint="name: eval/common_loss")
    elif show(name) in NOT_LOGGED:
        why = "It is text, or logged only when a run ends, so a search cannot use it."
        yield Problem((*here, "name"), f"{name} cannot be the metric", why, "eval/common_loss")
    elif show(name) not in METRICS:
        searchable = [metric for metric in METRICS if metric not in NOT_LOGGED]
        near = nearest(str(name), searchable) or nearest(f"eval/{name}", searchable)
        why = "The search would wait for a value that is never logged."
        hint = near or ", ".join(searchable)
        yield Problem((*here, "name"), f"{show(name)} is not a metric that trials log", why, hint)


def _check_goal(metric: Mapping[str, Any], here: Path) -> Iterator[Problem]:
    goal, logged = metric.get("goal"), METRICS.get(str(metric.get("name")))
    if goal is None and logged is not None and logged.goal == "maximize":
        why = f"W&B minimizes by default, but higher is better for {logged.name}."
        yield Problem(here, "no goal", why, "goal: maximize")
    elif goal not in (None, "minimize", "maximize"):
        hint = nearest(str(goal).lower(), ("minimize", "maximize")) or "minimize or maximize"
        yield Problem((*here, "goal"), f"{show(goal)} is not a goal", hint=hint)


def _check_early_terminate(settings: Any) -> Iterator[Problem]:
    if settings is None:
        return
    here = ("early_terminate",)
    if not isinstance(settings, Mapping):
        hint = "early_terminate: {type: hyperband, min_iter: 1}"
        yield Problem(here, f"{show(settings)} is not a group of keys", hint=hint)
        return
    yield from unknown_keys(settings, _HYPERBAND_KEYS, here, "early_terminate")
    if settings.get("type") != "hyperband":
        at = (*here, "type") if "type" in settings else here
        what = f"{show(settings['type'])} is not a type" if "type" in settings else "no type"
        yield Problem(at, what, "W&B supports only hyperband.", "type: hyperband")
    yield from check_bands(settings, here)
    if not isinstance(settings.get("strict", True), bool):
        yield Problem((*here, "strict"), f"{show(settings['strict'])} is not true or false")


def check_bands(settings: Mapping[str, Any], here: Path) -> Iterator[Problem]:
    """Every problem with the bands at `here`."""
    if ("min_iter" in settings) == ("max_iter" in settings):
        what = "both min_iter and max_iter" if "min_iter" in settings else "neither min_iter nor max_iter"
        why = "min_iter is the first and max_iter the last evaluation at which trials are compared."
        yield Problem(here, what, why, "min_iter: 1")
    if "max_iter" in settings and "s" not in settings:
        yield Problem(here, "max_iter without s", "s is the number of comparisons before max_iter.", "s: 2")
    for key in ("min_iter", "max_iter", "s"):
        if key in settings and not _is_count(settings[key]):
            what = f"{show(settings[key])} is not a whole number of at least 1"
            yield Problem((*here, key), what, hint="min_iter: 1" if key == "min_iter" else "")
    eta = settings.get("eta", 3)
    if not is_number(eta) or eta <= 1:
        yield Problem(
            (*here, "eta"), f"{show(eta)} is not a number above 1", "One trial in eta continues.", "eta: 3"
        )


def unknown_keys(group: Mapping[Any, Any], known: Iterable[str], path: Path, of: str) -> Iterator[Problem]:
    """A problem for each key of a group at `path` that is not in `known`."""
    known = tuple(known)
    for key in group:
        if key not in known:
            hint = nearest(str(key), known) or f"the keys are {', '.join(known)}"
            yield Problem((*path, str(key)), f"{show(key)} is not a key of {of}", hint=hint)


def _as_number(value: Any) -> Any:
    number = number_from_text(value) if isinstance(value, str) else None
    return value if number is None else number


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
