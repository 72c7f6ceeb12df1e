"""The `kto_sweep:` block at the top of a sweep file: what W&B has no key for."""

from collections.abc import Iterator, Mapping
from typing import Any

from kto_sweep.alerts import PARAMETER, carried, read_rule
from kto_sweep.errors import UsageError
from kto_sweep.search import asha
from kto_sweep.search.options import BLOCK, MOST_REPLICATES, OBJECTIVES, OF_SEARCH, first_seed, is_replicates
from kto_sweep.search.replicates import SEED
from kto_sweep.sweep_file.checks import check_bands, check_metric, unknown_keys
from kto_sweep.sweep_file.yaml_source import Finding
from kto_sweep.text import show

KEYS: Mapping[str, str] = {
    "alerts": 'rules such as `"kl_raw > 10"`: a W&B alert for each run in which one is met',
    "replicates": (
        "how many seeds each configuration is trained with: the sweep's own, or 42, and those after it. Of a "
        "grid everywhere; of random and bayes on the embedded server, which gives a configuration all its "
        "seeds before it chooses the next, and lets bayes see their mean. `run_cap` counts runs, as on W&B"
    ),
    "asha": (
        "`{min_iter: 1, eta: 3}`, or `{max_iter: 27, s: 3, eta: 3}`: asynchronous successive halving on the "
        "embedded server. At each band, counted as hyperband's, a trial pauses unless it is among the best 1 "
        "in `eta` of those that got there; it goes on from its checkpoint when it comes to be"
    ),
    "objectives": (
        "two or three metrics, as `[{name: eval/common_loss}, {name: trial/seconds, goal: minimize}]`, the "
        "first being the sweep's own: `compare` shows their Pareto front, and bayes on the embedded server "
        "searches it"
    ),
    "warm_start": (
        "`[SWEEP, ...]`, of the same project and for bayes: finished trials of these sweeps that the search "
        "could have chosen itself are observations from the start, on W&B as well"
    ),
}
"""What may stand in the block, and what it does."""


def check_block(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything wrong in the block."""
    if BLOCK not in config:
        return
    block = config[BLOCK]
    if not isinstance(block, Mapping):
        yield Finding((BLOCK,), f"{show(block)} is not a group of options", hint='alerts: ["kl_raw > 10"]')
        return
    yield from unknown_keys(block, KEYS, (BLOCK,), BLOCK)
    yield from _check_replicates(config, block.get("replicates"))
    yield from _check_asha(config, block)
    yield from _check_objectives(config, block.get("objectives"))
    yield from _check_warm_start(config, block.get("warm_start"))
    alerts = block.get("alerts")
    if alerts is not None and not isinstance(alerts, list):
        yield Finding((BLOCK, "alerts"), f"{show(alerts)} is not a list", hint='alerts: ["kl_raw > 10"]')
    for place, rule in enumerate(alerts if isinstance(alerts, list) else ()):
        try:
            read_rule(str(rule))
        except UsageError as error:
            yield Finding((BLOCK, "alerts", str(place)), error.message, hint=f'"{error.hint}"')


def _check_replicates(config: Mapping[str, Any], count: Any) -> Iterator[Finding]:
    here = (BLOCK, "replicates")
    if count is None:
        return
    if not is_replicates(count):
        what = f"{show(count)} is not a number of seeds from 2 to {MOST_REPLICATES}"
        yield Finding(here, what, "Each configuration is trained once with each seed.", "replicates: 3")
    elif first_seed(config.get("parameters")) is None:
        why = "It makes the seeds by itself, from the one that is given or the usual one."
        yield Finding(here, "replicates, and a seed that is no single number", why, "seed: {value: 42}")


def _check_asha(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[Finding]:
    here, settings = (BLOCK, "asha"), block.get("asha")
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        yield Finding(here, f"{show(settings)} is not a group of keys", hint="asha: {min_iter: 1, eta: 3}")
        return
    yield from unknown_keys(settings, asha.KEYS, here, "asha")
    yield from check_bands(settings, here)
    if config.get("early_terminate") is not None:
        why = "Both end poor trials early; asha lets those go on that turn out to be good."
        yield Finding(here, "asha, and early_terminate", why, "remove one of them")
    if block.get("replicates") is not None:
        why = "It would pause some seeds of a configuration and compare them with others trained for longer."
        yield Finding(here, "asha, and replicates", why, "search with asha, then train the best few again")


def _check_objectives(config: Mapping[str, Any], objectives: Any) -> Iterator[Finding]:
    here = (BLOCK, "objectives")
    if objectives is None:
        return
    if not isinstance(objectives, list) or len(objectives) not in OBJECTIVES:
        what = "not a list of two or three metrics"
        why = "One is the sweep's metric; of more than three, almost every trial would be on the front."
        yield Finding(here, what, why, "[{name: eval/common_loss}, {name: trial/seconds}]")
        return
    names: list[Any] = []
    for place, each in enumerate(objectives):
        at = (*here, str(place))
        if not isinstance(each, Mapping):
            hint = f"{{name: {each}}}" if isinstance(each, str) else "{name: ..., goal: minimize}"
            yield Finding(at, f"{show(each)} is not a metric", hint=hint)
            return
        yield from unknown_keys(each, ("name", "goal"), at, "an objective")
        yield from check_metric(each, at)
        name = each.get("name")
        if name is not None and name in names:
            yield Finding((*at, "name"), f"{show(name)} for the second time")
        names.append(name)
    first, metric = objectives[0], config.get("metric")
    if isinstance(metric, Mapping) and any(
        metric.get(key, usual) != first.get(key, usual)
        for key, usual in (("name", None), ("goal", "minimize"))
    ):
        why = "Where one number counts, such as for the ranking, it is the metric."
        hint = f"put {metric.get('name')} first, as in metric:, or leave metric: out"
        yield Finding((*here, "0"), "the first objective is not the sweep's metric", why, hint)


def _check_warm_start(config: Mapping[str, Any], names: Any) -> Iterator[Finding]:
    here = (BLOCK, "warm_start")
    if names is None:
        return
    if not isinstance(names, list) or not names:
        hint = f"warm_start: [{names}]" if isinstance(names, str) else "warm_start: [SWEEP]"
        yield Finding(here, f"{show(names)} is not a list of sweeps", hint=hint)
        return
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            what = f"{show(name)} is not the name of a sweep"
            why = (
                "It is an id, ENTITY/PROJECT/ID, or the address of its page; digits alone have to be quoted."
            )
            yield Finding((*here, str(place)), what, why, f'"{show(name)}"')
    if config.get("method") in ("grid", "random"):
        what = f"warm_start with method {config['method']}"
        hint = "method: bayes"
        if config["method"] == "grid":
            hint += ", or take over a grid's finished cells: kto-sweep create FILE --reuse SWEEP"
        yield Finding(here, what, "It does not look at what earlier trials gave.", hint)


def first_objective(config: Mapping[str, Any]) -> dict[str, Any]:
    """Name and goal of the first objective, of a configuration in which nothing is wrong; or empty."""
    objectives = config.get(BLOCK, {}).get("objectives")
    return dict(objectives[0]) if objectives else {}


def replicated(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A grid's configuration with as many seeds as the block asks for; as it is otherwise, or when wrong.

    W&B's grid can do that by itself; the other methods need a server that knows of replicates.
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


def unpacked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to register, which must be correct: each option where a server looks for it.

    What remains in the block is for the embedded server's search.
    """
    block = dict(config.get(BLOCK, {}))
    if config["method"] == "grid":
        block.pop("replicates", None)
    kept = {key: block[key] for key in OF_SEARCH if block.get(key) is not None}
    plain = {key: value for key, value in config.items() if key != BLOCK}
    if kept:
        plain[BLOCK] = kept
    if block.get("alerts"):
        plain["parameters"] = {**plain["parameters"], PARAMETER: carried(map(read_rule, block["alerts"]))}
    return plain


_ELSEWHERE = {
    "replicates": "here each configuration is trained once",
    "asha": "here every trial trains to its end",
    "objectives": "here the search follows the first alone; compare marks time and memory",
}
"""What becomes of an option on a server that does not know it."""


def without_block(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A registered configuration for a server other than the embedded one, and what that means."""
    notes = tuple(f"{key} is of the embedded server: {_ELSEWHERE[key]}" for key in config.get(BLOCK, {}))
    return {key: value for key, value in config.items() if key != BLOCK}, notes
