"""The rows of one trial, ready to train on: split, paired with mismatched completions, and checked."""

from collections.abc import Sequence
from dataclasses import dataclass

from kto_sweep.data.eval_rows import fingerprint_examples
from kto_sweep.data.formats import LoadedData, describe_bad
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.split import partners, split_by_prompt
from kto_sweep.data.tokenise import TokenisedData
from kto_sweep.errors import DataError
from kto_sweep.text import counted

SEED = 0
"""Seed of the split and of the partners, the same for all trials: trials are compared on the same held-out
rows and share the reference values of the same pairs, so neither may depend on a trial's own seed."""


@dataclass(frozen=True)
class TrainingData:
    """Token rows to train on and to evaluate on."""

    path: str
    """The data file, for messages."""
    train: list[TokenRow]
    eval: list[TokenRow]
    """Held out, by prompt; empty when eval_fraction is 0."""
    train_partners: list[int]
    """For each train row, the train row whose completion mismatches its prompt."""
    eval_partners: list[int]
    """The same for the held-out rows."""
    notes: tuple[str, ...]
    """Lines for the console log, printed once at the start."""
    eval_fingerprint: str = ""
    """See fingerprint_examples; empty without held-out rows."""

    @property
    def counts(self) -> tuple[int, int]:
        """(desirable, undesirable) rows to train on."""
        return _label_counts(self.train)


def prepare_data(
    loaded: LoadedData, tokens: TokenisedData, *, eval_fraction: float, max_length: int
) -> TrainingData:
    """The rows, split and paired.

    Raises DataError when they cannot be trained on: no rows, one label only, too few prompts.
    """
    _check_labels(loaded, tokens)
    _check_prompts(loaded.path, tokens.rows, eval_fraction)
    train, held_out = split_by_prompt(tokens.rows, eval_fraction, SEED)
    if len({row.label for row in train}) < 2:
        missing = "undesirable" if train[0].label else "desirable"
        raise DataError(
            f"{loaded.path}: all {missing} rows are held out",
            hint=f"add {missing} rows with other prompts, or use a smaller eval_fraction",
        )
    return TrainingData(
        path=loaded.path,
        train=train,
        eval=held_out,
        train_partners=partners(train, SEED),
        eval_partners=partners(held_out, SEED) if held_out else [],
        notes=tuple(_notes(loaded, tokens, train, held_out, max_length)),
        eval_fingerprint=_fingerprint(loaded, tokens, held_out, max_length) if held_out else "",
    )


def _fingerprint(
    loaded: LoadedData, tokens: TokenisedData, held_out: Sequence[TokenRow], max_length: int
) -> str:
    groups = {row.group for row in held_out}
    lines = {line for row, line in zip(tokens.rows, tokens.lines, strict=False) if row.group in groups}
    fills = any(len(row.prompt) + len(row.completion) >= max_length for row in held_out)
    examples = (example for example in loaded.examples if example.line in lines)
    return fingerprint_examples(examples, max_length if fills else None)


def _check_labels(loaded: LoadedData, tokens: TokenisedData) -> None:
    if not tokens.rows:
        raise DataError(
            f"{loaded.path}: no usable row: {describe_bad([*loaded.bad, *tokens.bad])}",
            hint="use a model whose chat template accepts these conversations, or change their format",
        )
    desirable, undesirable = _label_counts(tokens.rows)
    if not desirable or not undesirable:
        label, missing = ("true", "false") if desirable else ("false", "true")
        raise DataError(
            f"{loaded.path}: all {len(tokens.rows):,} usable rows have label {label}",
            hint=f"KTO needs both labels: add rows with label {missing}",
        )


def _check_prompts(path: str, rows: Sequence[TokenRow], eval_fraction: float) -> None:
    prompts = len({row.group for row in rows})
    if prompts < 2:
        raise DataError(
            f"{path}: all {len(rows):,} rows have the same prompt",
            hint="KTO needs at least two prompts: its KL estimate pairs each answer with another prompt",
        )
    if eval_fraction > 0 and prompts < 4:  # two on each side, for mismatched pairs within each
        raise DataError(
            f"{path}: {prompts} distinct prompts are too few to hold out rows for evaluation",
            hint="use at least four distinct prompts",
        )


def _notes(
    loaded: LoadedData,
    tokens: TokenisedData,
    train: Sequence[TokenRow],
    held_out: Sequence[TokenRow],
    max_length: int,
) -> list[str]:
    desirable, undesirable = _label_counts(tokens.rows)
    prompts = len({row.group for row in tokens.rows})
    notes = [
        f"data: {loaded.path}: {len(tokens.rows):,} rows, {desirable:,} desirable, {undesirable:,} "
        f"undesirable, {prompts:,} prompts; {len(train):,} to train on, {len(held_out):,} held out"
    ]
    bad = [*loaded.bad, *tokens.bad]
    if bad:
        notes.append(f"data: skipped {counted(len(bad), 'row')}: {describe_bad(bad)}")
    cuts = [
        (tokens.cut_prompts, f"prompts truncated at the start to max_length {max_length}"),
        (tokens.cut_completions, f"completions truncated at the end to max_length {max_length}"),
        (loaded.cut_turns, "rows with turns after the last assistant turn, which are dropped"),
    ]
    if any(count for count, _ in cuts):
        notes.append("data: " + "; ".join(f"{count:,} {what}" for count, what in cuts if count))
    if max(desirable, undesirable) > 4 / 3 * min(desirable, undesirable):
        ratio = max(desirable, undesirable) / min(desirable, undesirable)
        sides = ("desirable", "undesirable")
        more, fewer = sides if desirable > undesirable else sides[::-1]
        notes.append(
            f"data: {ratio:.1f} {more} rows for each {fewer} one; rho: 1 gives both labels the same weight"
        )
    if held_out and len({row.label for row in held_out}) < 2:
        notes.append("data: the held-out rows have one label only, so eval/auc and eval/margins are empty")
    return notes


def _label_counts(rows: Sequence[TokenRow]) -> tuple[int, int]:
    desirable = sum(row.label for row in rows)
    return desirable, len(rows) - desirable
