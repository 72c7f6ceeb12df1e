"""The `kto_sweep:` block at the top of a sweep file: what W&B has no key for."""

from collections.abc import Iterator, Mapping
from typing import Any

from kto_sweep.alerts import PARAMETER, carried, read_rule
from kto_sweep.errors import UsageError
from kto_sweep.spec.yaml_source import Finding
from kto_sweep.trial import Trial
from kto_sweep.wording import nearest, number_from_text, show

BLOCK = "kto_sweep"
KEYS: Mapping[str, str] = {
    "alerts": 'rules such as `"kl_raw > 10"`: a W&B alert for each run in which one is met',
    "replicates": "of a grid: how many seeds each cell is trained with",
}
"""What may stand in the block, and what it does."""
MOST_REPLICATES = 100


def check_block(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything wrong in the block."""
    if BLOCK not in config:
        return
    block = config[BLOCK]
    if not isinstance(block, Mapping):
        yield Finding((BLOCK,), f"{show(block)} is not a group of options", hint='alerts: ["kl_raw > 10"]')
        return
    for key in block:
        if key not in KEYS:
            hint = nearest(str(key), KEYS) or f"the keys are {', '.join(KEYS)}"
            yield Finding((BLOCK, str(key)), f"{show(key)} is not a key of {BLOCK}", hint=hint)
    yield from _check_replicates(config, block.get("replicates"))
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
    if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= MOST_REPLICATES:
        what = f"{show(count)} is not a number of seeds from 2 to {MOST_REPLICATES}"
        yield Finding(here, what, "Each configuration is trained once with each seed.", "replicates: 3")
    elif config.get("method") != "grid":
        why = "Seeds multiply the cells of a grid; the other methods choose each trial anew."
        yield Finding(here, f"replicates with method {show(config.get('method'))}", why, "method: grid")
    elif _first_seed(config) is None:
        why = "It makes the seeds by itself, from the one that is given or the usual one."
        yield Finding(here, "replicates, and a seed that is no single number", why, "seed: {value: 42}")


def _first_seed(config: Mapping[str, Any]) -> int | None:
    """The seed of the first replicate; None when the file searches seeds."""
    parameters = config.get("parameters")
    entry = parameters.get("seed") if isinstance(parameters, Mapping) else None
    if entry is None:
        return Trial.seed
    value = entry.get("value") if isinstance(entry, Mapping) else None
    seed = number_from_text(value) if isinstance(value, str) else value
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def replicated(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with a grid of as many seeds as the block asks for; as it is when that is wrong."""
    block, parameters = config.get(BLOCK), config.get("parameters")
    count = block.get("replicates") if isinstance(block, Mapping) else None
    first = _first_seed(config)
    if (
        count is None
        or first is None
        or not isinstance(parameters, Mapping)
        or any(_check_replicates(config, count))
    ):
        return config
    return {**config, "parameters": {**parameters, "seed": {"values": list(range(first, first + count))}}}


def unpacked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to register: what the block says is where a server keeps it. It must be correct."""
    plain = {key: value for key, value in config.items() if key != BLOCK}
    alerts = config.get(BLOCK, {}).get("alerts")
    if alerts:
        plain["parameters"] = {**plain["parameters"], PARAMETER: carried(map(read_rule, alerts))}
    return plain
