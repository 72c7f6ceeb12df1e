"""A grid that trains the best configurations of a sweep again, with seeds that it has not used. Pure.

The configurations are the values of one parameter, so that the grid has exactly these and not the product of
their values:

    configuration: {values: [{learning_rate: 1.0e-05, beta: 0.1}, {learning_rate: 5.0e-06, beta: 0.3}]}
    seed: {values: [43, 44]}

A search's own runs do not count: the one that made a configuration one of the best was partly lucky, and
would improve its mean. Runs of a sweep of replicates do: another one of it adds seeds to theirs.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kto_sweep.alerts import without_alert_rules
from kto_sweep.compare.ranking import Configuration
from kto_sweep.errors import UsageError
from kto_sweep.search.options import BLOCK
from kto_sweep.search.replicates import FIRST_SEED
from kto_sweep.search.space import CONFIGURATION, SEED, Parameter
from kto_sweep.sweep.follow_up import (
    FollowUp,
    as_sweep_file,
    label,
    new_name,
    price,
    require_best,
    trials_to_train,
)
from kto_sweep.sweep.view import SweepView, TrialRecord
from kto_sweep.sweep_file.command import read_flags
from kto_sweep.text import counted
from kto_sweep.trial import check_value, leaves, lookup, parameter_name

SEEDS = 2**32
"""Number of valid seeds, from 0 on."""


def replicate(view: SweepView, best: Sequence[Configuration], seeds: int) -> FollowUp:
    """A grid of these configurations, best first, each with `seeds` new seeds.

    If the sweep is one of replicates, its finished trials are reused beside the new ones. The grid has no
    early termination and no target: each trial trains to its end.
    Raises UsageError without a configuration, or if the sweep's command fixes the seed inside another word.
    """
    require_best(view, best)
    old = view.config
    chosen = [p for p in view.space.parameters if p.varies or p.path == (CONFIGURATION,)]
    is_again = any(p.path == (CONFIGURATION,) for p in chosen)
    kept = sorted({seed for each in best for trial in each.trials for seed in _seeds(trial)})
    replaced = {p.path for p in view.space.parameters if p in chosen or _is_seed(p)}
    config = {key: value for key, value in old.items() if key not in ("run_cap", "early_terminate", BLOCK)}
    config |= {
        "name": new_name(view.name, "replicates"),
        "method": "grid",
        "parameters": {
            CONFIGURATION: {"values": [_settings(chosen, each.trials[0].config) for each in best]},
            SEED: {"values": [*(kept if is_again else ()), *_unused_seeds(view.trials, seeds)]},
            **_without(without_alert_rules(old["parameters"]), replaced),
        },
    }
    config["metric"] = {"name": view.metric, "goal": view.goal}
    if view.objectives:
        config[BLOCK] = {"objectives": [{"name": each.name, "goal": each.goal} for each in view.objectives]}
    ends_early = ("early_terminate", f"{BLOCK}.asha", "metric.target")
    left_out = [name for name in ends_early if lookup(old, name) is not None]
    if "command" in old:
        config["command"] = _without_seed(view)
    if is_again:
        trials = [trial for each in best for trial in each.trials]
        cost = price(view, [(trials, trials_to_train(view, config))])
    else:
        cost = price(view, [(each.trials, seeds) for each in best])
    count = "The best configuration" if len(best) == 1 else f"The {len(best)} best configurations"
    each = "" if len(best) == 1 else ", each"
    return FollowUp(
        config=as_sweep_file(view, config),
        summary=f"{count} of sweep {label(view)}{each} with {counted(seeds, 'new seed')}",
        price=cost,
        notes=(f"{', '.join(left_out)} left out: replicates train to their end",) if left_out else (),
        reuse=str(view.ref) if is_again else None,
    )


def _is_seed(parameter: Parameter) -> bool:
    return parameter_name(parameter.path) == SEED


def _settings(chosen: Sequence[Parameter], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of these parameters, nested, without the seed."""
    settings: dict[str, Any] = {}
    for parameter in chosen:
        value = lookup(config, parameter.name)
        if parameter.path == (CONFIGURATION,) and isinstance(value, Mapping):
            settings |= value  # the sweep is one of replicates itself
        elif not _is_seed(parameter):
            *groups, leaf = parameter.path
            branch = settings
            for group in groups:
                branch = branch.setdefault(group, {})
            branch[leaf] = value
    return settings


def _unused_seeds(trials: Collection[TrialRecord], count: int) -> list[int]:
    """The first seeds, from the lowest used one on, that no trial has used."""
    used: set[int] = set()
    for trial in trials:
        used.update(_seeds(trial))
    low = min(used, default=FIRST_SEED)
    unused = (seed for seed in itertools.chain(range(low, SEEDS), range(low)) if seed not in used)
    return list(itertools.islice(unused, count))


def _seeds(trial: TrialRecord) -> list[int]:
    """The seed of a trial; empty if it is not a number."""
    values = [value for path, value in leaves(trial.config) if parameter_name(path) == SEED] or [FIRST_SEED]
    return [seed for value in values if isinstance(seed := check_value(SEED, value)[0], int)]


def _without(section: Mapping[str, Any], paths: Collection[tuple[str, ...]]) -> dict[str, Any]:
    """A `parameters` section without these parameters and without groups that become empty."""
    kept: dict[str, Any] = {}
    for name, body in section.items():
        inner = {path[1:] for path in paths if path[0] == name}
        if isinstance(body, Mapping) and isinstance(body.get("parameters"), Mapping):
            if rest := _without(body["parameters"], inner):
                kept[name] = {**body, "parameters": rest}
        elif () not in inner:
            kept[name] = body
    return kept


def _without_seed(view: SweepView) -> list[Any]:
    """The words of the sweep's command without a flag for the seed. Raises UsageError."""
    words = list(view.config["command"])
    # Also one that reads the environment: it would give every replicate the same seed.
    for flag in reversed(read_flags(view.command.arguments, view.command.start)):
        if flag.name != SEED:
            continue
        word = str(words[flag.position])
        if not word.lstrip("-+").startswith(flag.key):
            raise UsageError(
                f"the command of {view.ref} fixes the seed: {word}",
                hint="create the sweep without it, with seed: {value: ...} in its parameters",
            )
        del words[flag.position : flag.position + (1 if "=" in word else 2)]
    return words
