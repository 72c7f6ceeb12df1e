"""Whether the trials of a sweep were trained on the same rows and the same base model. Pure.

A run's summary has fingerprints of both. Trials whose settings ask for the same, but whose fingerprints
differ, had different files under one name: somebody has changed them while the sweep ran.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kto_sweep.errors import KtoSweepError
from kto_sweep.trial import Trial

DATA, MODEL = "trial/data", "trial/model"
MOST_NAMED = 6
"""Runs of one group that are named."""


@dataclass(frozen=True)
class Trained:
    """One trial, and what it was trained on by its summary."""

    run_id: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]


Ground = tuple[tuple[str, ...], str]
"""What a trial asked for (its name for people first), and the fingerprint of what it got."""


class Witness:
    """Says it once when a trial got something else than those before it."""

    def __init__(self, trials: Iterable[Trained], say: Callable[[str], None]) -> None:
        self._seen = {ground for trial in trials for ground in _grounds(trial)}
        self._say = say

    def see(self, trial: Trained) -> None:
        """Take note of a trial that has ended."""
        for asked, fingerprint in _grounds(trial):
            before = {known for other, known in self._seen if other == asked}
            if before and fingerprint not in before:
                self._say(
                    f"BEWARE: {asked[0]} changed during this sweep: run {trial.run_id} had others than the "
                    "trials before it, and its results cannot be compared with theirs   (kto-sweep status "
                    "names the runs)"
                )
            self._seen.add((asked, fingerprint))


def differences(trials: Iterable[Trained]) -> list[str]:
    """A sentence for each file under one name that was not the same for all trials."""
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for trial in trials:
        for asked, fingerprint in _grounds(trial):
            groups.setdefault(asked, {}).setdefault(fingerprint, []).append(trial.run_id)
    return [_told(asked[0], list(found.values())) for asked, found in groups.items() if len(found) > 1]


def _grounds(trial: Trained) -> Iterator[Ground]:
    try:
        wanted = Trial.from_config(trial.config)
    except KtoSweepError:
        return
    model = (wanted.base_model, str(wanted.effective_quantization), str(wanted.full_finetune))
    split = (str(wanted.max_length), str(wanted.eval_fraction))
    for name, asked in (
        (DATA, (f"the rows of {_printable(wanted.dataset)}", *split, *model)),
        (MODEL, (f"the weights of {_printable(wanted.base_model)}", *model)),
    ):
        found = trial.summary.get(name)
        if isinstance(found, str):
            kind, _, fingerprint = found.rpartition(":")  # weights of another precision have another one
            yield (*asked, kind), fingerprint


def _printable(name: str) -> str:
    """Without what would command a terminal: the name came from a run."""
    return "".join(char for char in name if char.isprintable())


def _told(what: str, groups: list[list[str]]) -> str:
    groups = sorted(groups, key=len, reverse=True)
    others = "; ".join(_named(group) for group in groups[1:])
    return (
        f"{what} changed during this sweep: not the same for {others} as for {_named(groups[0])}. "
        "Their results cannot be compared with each other."
    )


def _named(runs: list[str]) -> str:
    more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
    return ", ".join(runs[:MOST_NAMED]) + more
