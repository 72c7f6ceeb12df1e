"""The `kto_sweep:` block at the top of a sweep file: what W&B has no key for."""

from collections.abc import Iterator, Mapping
from typing import Any

from kto_sweep.alerts import PARAMETER, carried, read_rule
from kto_sweep.errors import UsageError
from kto_sweep.wording import nearest, show
from kto_sweep.yaml_source import Finding

BLOCK = "kto_sweep"
_KEYS = ("alerts",)


def check_block(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Everything wrong in the block."""
    if BLOCK not in config:
        return
    block = config[BLOCK]
    if not isinstance(block, Mapping):
        yield Finding((BLOCK,), f"{show(block)} is not a group of options", hint='alerts: ["kl_raw > 10"]')
        return
    for key in block:
        if key not in _KEYS:
            hint = nearest(str(key), _KEYS) or f"the keys are {', '.join(_KEYS)}"
            yield Finding((BLOCK, str(key)), f"{show(key)} is not a key of {BLOCK}", hint=hint)
    alerts = block.get("alerts")
    if alerts is not None and not isinstance(alerts, list):
        yield Finding((BLOCK, "alerts"), f"{show(alerts)} is not a list", hint='alerts: ["kl_raw > 10"]')
    for place, rule in enumerate(alerts if isinstance(alerts, list) else ()):
        try:
            read_rule(str(rule))
        except UsageError as error:
            yield Finding((BLOCK, "alerts", str(place)), error.message, hint=f'"{error.hint}"')


def unpacked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration to register: what the block says is where a server keeps it. It must be correct."""
    plain = {key: value for key, value in config.items() if key != BLOCK}
    alerts = config.get(BLOCK, {}).get("alerts")
    if alerts:
        plain["parameters"] = {**plain["parameters"], PARAMETER: carried(map(read_rule, alerts))}
    return plain
