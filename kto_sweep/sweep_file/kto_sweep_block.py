"""The `kto_sweep:` block at the top of a sweep file: options that W&B has no key for."""

from collections.abc import Iterator, Mapping
from typing import Any

from kto_sweep.alerts import PARAMETER, parameter_of, parse_rule
from kto_sweep.errors import Problem, UsageError
from kto_sweep.search import asha
from kto_sweep.search.objectives import OBJECTIVE_COUNTS
from kto_sweep.search.options import BLOCK, MAX_REPLICATES, SEARCH_KEYS, first_seed, is_replicates
from kto_sweep.search.space import SEED
from kto_sweep.sweep_file.setting_checks import check_bands, check_metric, unknown_keys
from kto_sweep.text import show

KEYS: Mapping[str, str] = {
    "alerts": 'rules such as `"kl_raw > 10"`: each run that meets one raises an alert',
    "replicates": (
        "number of seeds per configuration: the sweep's seed (default 42) and the following ones. Grids "
        "support it on every server; random and bayes only on the embedded server, which runs all seeds of a "
        "configuration before it chooses the next, and gives bayes their mean. `run_cap` counts runs, as on "
        "W&B"
    ),
    "asha": (
        "`{min_iter: 1, eta: 3}`, or `{max_iter: 27, s: 3, eta: 3}`: asynchronous successive halving on the "
        "embedded server. At each band, counted as in hyperband, a trial pauses unless it is among the best "
        "1/`eta` of the trials that reached the band; it resumes from its checkpoint once it is"
    ),
    "objectives": (
        "two or three metrics, such as `[{name: eval/common_loss}, {name: trial/seconds, goal: minimize}]`; "
        "the first is the sweep's metric. `compare` shows their Pareto front, and bayes on the embedded "
        "server optimizes all of them"
    ),
    "warm_start": (
        "`[SWEEP, ...]` in the same project, for bayes: the search starts with the finished trials of these "
        "sweeps that lie in the search space, also on W&B"
    ),
}
"""The block's keys and what they do."""


def check_block(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Every problem in the block."""
    if BLOCK not in config:
        return
    block = config[BLOCK]
    if not isinstance(block, Mapping):
        yield Problem((BLOCK,), f"{show(block)} is not a group of options", hint='alerts: ["kl_raw > 10"]')
        return
    yield from unknown_keys(block, KEYS, (BLOCK,), BLOCK)
    yield from _check_replicates(config, block.get("replicates"))
    yield from _check_asha(config, block)
    yield from _check_objectives(config, block.get("objectives"))
    yield from _check_warm_start(config, block.get("warm_start"))
    alerts = block.get("alerts")
    if alerts is not None and not isinstance(alerts, list):
        yield Problem((BLOCK, "alerts"), f"{show(alerts)} is not a list", hint='alerts: ["kl_raw > 10"]')
    for position, rule in enumerate(alerts if isinstance(alerts, list) else ()):
        try:
            parse_rule(str(rule))
        except UsageError as error:
            yield Problem((BLOCK, "alerts", str(position)), error.message, hint=f'"{error.hint}"')


def _check_replicates(config: Mapping[str, Any], count: Any) -> Iterator[Problem]:
    here = (BLOCK, "replicates")
    if count is None:
        return
    if not is_replicates(count):
        what = f"{show(count)} is not a number of seeds from 2 to {MAX_REPLICATES}"
        yield Problem(here, what, "Each configuration is trained once with each seed.", "replicates: 3")
    elif first_seed(config.get("parameters")) is None:
        why = "replicates uses consecutive seeds, starting from a single one."
        yield Problem(here, "replicates together with a searched seed", why, "seed: {value: 42}")


def _check_asha(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[Problem]:
    here, settings = (BLOCK, "asha"), block.get("asha")
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        yield Problem(here, f"{show(settings)} is not a group of keys", hint="asha: {min_iter: 1, eta: 3}")
        return
    yield from unknown_keys(settings, asha.KEYS, here, "asha")
    yield from check_bands(settings, here)
    if config.get("early_terminate") is not None:
        why = "Both end poor trials early; asha also resumes those that turn out to be good."
        yield Problem(here, "asha together with early_terminate", why, "remove one of them")
    if block.get("replicates") is not None:
        why = "asha would pause some seeds of a configuration and compare them with seeds trained for longer."
        hint = "search with asha, then train the best few with more seeds"
        yield Problem(here, "asha together with replicates", why, hint)


def _check_objectives(config: Mapping[str, Any], objectives: Any) -> Iterator[Problem]:
    here = (BLOCK, "objectives")
    if objectives is None:
        return
    if not isinstance(objectives, list) or len(objectives) not in OBJECTIVE_COUNTS:
        what = "not a list of two or three metrics"
        why = (
            "A single one is the sweep's metric; with more than three, almost all trials are Pareto-optimal."
        )
        yield Problem(here, what, why, "[{name: eval/common_loss}, {name: trial/seconds}]")
        return
    names: list[Any] = []
    for position, objective in enumerate(objectives):
        at = (*here, str(position))
        if not isinstance(objective, Mapping):
            hint = f"{{name: {objective}}}" if isinstance(objective, str) else "{name: ..., goal: minimize}"
            yield Problem(at, f"{show(objective)} is not a metric", hint=hint)
            return
        yield from unknown_keys(objective, ("name", "goal"), at, "an objective")
        yield from check_metric(objective, at)
        name = objective.get("name")
        if name is not None and name in names:
            yield Problem((*at, "name"), f"{show(name)} is listed twice")
        names.append(name)
    first, metric = objectives[0], config.get("metric")
    if isinstance(metric, Mapping) and any(
        metric.get(key, default) != first.get(key, default)
        for key, default in (("name", None), ("goal", "minimize"))
    ):
        why = "The ranking needs a single number: the metric."
        hint = f"put {metric.get('name')} first, as in metric:, or remove metric:"
        yield Problem((*here, "0"), "the first objective is not the sweep's metric", why, hint)


def _check_warm_start(config: Mapping[str, Any], names: Any) -> Iterator[Problem]:
    here = (BLOCK, "warm_start")
    if names is None:
        return
    if not isinstance(names, list) or not names:
        hint = f"warm_start: [{names}]" if isinstance(names, str) else "warm_start: [SWEEP]"
        yield Problem(here, f"{show(names)} is not a list of sweeps", hint=hint)
        return
    for position, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            what = f"{show(name)} is not the name of a sweep"
            why = (
                "A sweep is named by its id, ENTITY/PROJECT/ID or its page's URL; quote an id of digits only."
            )
            yield Problem((*here, str(position)), what, why, f'"{show(name)}"')
    if config.get("method") in ("grid", "random"):
        what = f"warm_start with method {config['method']}"
        hint = "method: bayes"
        if config["method"] == "grid":
            hint += ", or reuse a grid's finished trials: kto-sweep create FILE --reuse SWEEP"
        yield Problem(here, what, "That method ignores the results of earlier trials.", hint)


def first_objective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Name and goal of the first objective of a valid configuration; empty without objectives."""
    objectives = config.get(BLOCK, {}).get("objectives")
    return dict(objectives[0]) if objectives else {}


def with_replicate_seeds(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A grid's configuration with the seeds that `replicates` asks for; any other one unchanged.

    For a grid, replicates are the values of `seed`, which W&B supports; the other methods need the embedded
    server.
    """
    block, parameters = config.get(BLOCK), config.get("parameters")
    count = block.get("replicates") if isinstance(block, Mapping) else None
    first = first_seed(parameters)
    if (
        not is_replicates(count)
        or first is None
        or not isinstance(parameters, Mapping)
        or config.get("method") != "grid"
    ):
        return config
    return {**config, "parameters": {**parameters, SEED: {"values": list(range(first, first + count))}}}


def to_registered(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to register, from a valid one, with each option where servers expect it.

    The embedded server's search reads the options that remain in the block.
    """
    block = dict(config.get(BLOCK, {}))
    if config["method"] == "grid":
        block.pop("replicates", None)
    kept = {key: block[key] for key in SEARCH_KEYS if block.get(key) is not None}
    plain = {key: value for key, value in config.items() if key != BLOCK}
    if kept:
        plain[BLOCK] = kept
    if block.get("alerts"):
        plain["parameters"] = {
            **plain["parameters"],
            PARAMETER: parameter_of(map(parse_rule, block["alerts"])),
        }
    return plain


_FALLBACKS = {
    "replicates": "each configuration is trained once",
    "asha": "every trial trains to its end",
    "objectives": "the search optimizes only the first one; compare still shows time and memory trade-offs",
}
"""What happens instead on a server that does not support an option."""


def without_block(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A registered configuration without the embedded server's options, and a note for each of them."""
    notes = tuple(
        f"{key} needs the embedded server; on W&B {_FALLBACKS[key]}" for key in config.get(BLOCK, {})
    )
    return {key: value for key, value in config.items() if key != BLOCK}, notes
