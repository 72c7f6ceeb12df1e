"""From one raw row to examples: prompt, completion and label. docs/data.md lists the accepted forms.

    label     the answer's label: true or false, 1 or 0, 1 or -1, yes or no, thumbs up or down, ...
    prompt    the last assistant turn of a conversation is the completion, all before it the prompt;
              or a question and its answer, each as text or as turns
    pairs     a chosen and a rejected answer are two examples, the first desirable

Text in the columns `prompt` and `completion` (or `chosen` and `rejected`) is trained as it stands, as by TRL.
In other columns it is a conversation of two turns, and so is every row with a system text or tools.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kto_sweep.data.labels import LABELS, columns_of, read_label
from kto_sweep.data.messages import (
    BadRowError,
    has_call_turns,
    is_left_out,
    looks_like_turns,
    read_turns,
    turns_in_text,
)
from kto_sweep.data.rows import Example, Message
from kto_sweep.json_file import parse_json
from kto_sweep.text import nearest

CONVERSATIONS = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "query", "question")
ANSWERS = ("completion", "output", "response", "answer")
SYSTEMS = ("system", "system_prompt")
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
ARGUMENTS = ("tools", "documents", "chat_template_kwargs")
"""Columns that chat templates and TRL read beside the turns."""

LATER_TURNS = "with turns after the last assistant turn, which are dropped"
SEVERAL_TURNS = (
    "with several turns in the completion; the last assistant turn is trained, the others are prompt"
)
REPEATED_PROMPT = "whose completion repeats the end of the prompt; it is trained once"
PROMPT_IN_TEXT = "whose completion is a text that begins with the prompt, and is trained with it"

_LONG_PROMPT = 20
"""Characters of a prompt from which on an answer that begins with it is no coincidence."""


@dataclass(frozen=True)
class ParsedRow:
    """What one raw row means."""

    examples: tuple[Example, ...]
    forms: tuple[str, ...] = ()
    """How it was understood, for rows in a form that is not kto-sweep's own."""
    facts: tuple[str, ...] = ()
    """What was changed or looks wrong: LATER_TURNS, SEVERAL_TURNS, REPEATED_PROMPT, PROMPT_IN_TEXT."""
    ignored: tuple[str, ...] = ()
    """Columns with a value that is not used."""


class _Columns:
    """A row that remembers which of its columns were used."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._used: set[str] = set()

    def name(self, *names: str) -> str | None:
        """The first of the names with a value."""
        return next((name for name in names if self._row.get(name) is not None), None)

    def take(self, *names: str) -> Any:
        """The value of the first name with a value; None if there is none."""
        name = self.name(*names)
        if name is None:
            return None
        self._used.add(name)
        return self._row[name]

    def has_turns(self, name: str) -> bool:
        """Whether a column has turns."""
        try:
            return bool(read_turns(self._row[name], name))
        except BadRowError:
            return False

    @property
    def unused(self) -> tuple[str, ...]:
        """The columns with a value that were not taken."""
        return tuple(
            name
            for name, value in self._row.items()
            if name not in self._used and value not in (None, "", [])
        )


@dataclass
class _Answer:
    """One prompt with one completion, before it has a label."""

    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...]
    facts: list[str] = field(default_factory=list)


def parse_row(row: object, line: int) -> ParsedRow:
    """The examples of a row: one, or two for a pair of answers.

    Raises BadRowError.
    """
    if not isinstance(row, dict):
        raise BadRowError("not a JSON object")
    _check_unicode(row)
    request = row.get("input")
    if isinstance(request, Mapping) and "messages" in request:  # OpenAI's preference data
        row = {**{name: value for name, value in row.items() if name != "input"}, **request}
    columns = _Columns(row)
    for name in MEDIA:
        if row.get(name):
            raise BadRowError(f"has {name}: only text can be trained")
    arguments = _arguments(columns)
    before = _turns_before(columns)
    as_turns = bool(arguments or before)
    pair = next((pair for pair in PAIRS if row.get(pair[1]) is not None), None)
    answers: tuple[_Answer, ...]
    if pair is not None:
        answers, form = _pair(columns, pair, before, as_turns=as_turns)
        labels: Sequence[bool] = (True, False)
        forms = [form]
    else:
        answer, form = _single(columns, row, before, as_turns=as_turns)
        label, column, label_form = read_label(row)
        columns.take(column)
        answers, labels, forms = (answer,), (label,), [form, label_form]
    if any(has_call_turns(row.get(name)) for name in (*CONVERSATIONS, "prompt", "completion")):
        forms.append("turns of a call as tool calls")
    examples = tuple(
        Example(answer.prompt, answer.completion, label, line, arguments)
        for answer, label in zip(answers, labels, strict=True)
    )
    facts = tuple(dict.fromkeys(fact for answer in answers for fact in answer.facts))
    return ParsedRow(examples, tuple(filter(None, forms)), facts, columns.unused)


def _check_unicode(row: Mapping[str, object]) -> None:
    """Raise BadRowError for half a surrogate pair, which JSON allows and tokenizers reject."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("invalid Unicode (half a surrogate pair)") from error
    except (RecursionError, ValueError) as error:
        raise BadRowError("nested too deeply") from error


def _arguments(columns: _Columns) -> Mapping[str, Any]:
    """What the chat template gets beside the turns."""
    arguments: dict[str, Any] = {}
    for name in ARGUMENTS:
        value = columns.take(name)
        if isinstance(value, str):  # tables often hold them as JSON
            try:
                value = parse_json(value) if value.strip() else None
            except ValueError:
                raise BadRowError(f"{name} is text that is not JSON") from None
        if not value:
            continue
        if name == "chat_template_kwargs":
            if not isinstance(value, Mapping):
                raise BadRowError(f"{name} is not an object")
            arguments |= value
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            arguments[name] = value
        else:
            raise BadRowError(f"{name} is not a list of objects")
    return arguments


def _turns_before(columns: _Columns) -> list[Message]:
    """Turns before the prompt: those of the columns system and history (pairs of question and answer)."""
    turns: list[Message] = []
    system = columns.take(*SYSTEMS)
    if system is not None and not isinstance(system, str):
        raise BadRowError("system is not text")
    if system and system.strip():
        turns.append({"role": "system", "content": system})
    for exchange in columns.take("history") or ():
        if not isinstance(exchange, list | tuple) or not all(isinstance(text, str) for text in exchange):
            raise BadRowError("history is not a list of [question, answer]")
        for role, text in zip(("user", "assistant"), exchange, strict=False):
            turns.append({"role": role, "content": text})
    return turns


def _single(
    columns: _Columns, row: Mapping[str, Any], before: list[Message], *, as_turns: bool
) -> tuple[_Answer, str]:
    """The answer of a row with one completion, and how the row was understood."""
    conversation = columns.name(*CONVERSATIONS)
    if conversation is not None:
        turns = read_turns(columns.take(conversation), conversation)
        form = "" if conversation != "conversation" else "conversation as messages"
        return _split(_after(before, turns)), form
    asked, answered = columns.name(*PROMPTS), columns.name(*ANSWERS)
    if asked is None or answered is None:
        raise BadRowError(_missing(row))
    prompt, form = _prompt(columns, asked)
    plain = asked == "prompt" and answered == "completion"
    if not plain:
        form = f"{form} and {answered} as a conversation"
    answer = _join(prompt, columns.take(answered), before, (asked, answered), as_turns=as_turns or not plain)
    return answer, "" if plain else form


def _prompt(columns: _Columns, name: str) -> tuple[object, str]:
    """The prompt in column `name`, and its name for people; alpaca's input belongs to the instruction."""
    prompt = columns.take(name)
    if name == "instruction" and columns.name("input") is not None:
        more = columns.take("input")
        if isinstance(prompt, str) and isinstance(more, str):
            return f"{prompt}\n{more}" if more.strip() else prompt, "instruction, input"
    return prompt, name


def _pair(
    columns: _Columns, names: tuple[str, str], before: list[Message], *, as_turns: bool
) -> tuple[tuple[_Answer, _Answer], str]:
    """The chosen and the rejected answer."""
    chosen_name, rejected_name = names
    conversation, asked = columns.name(*CONVERSATIONS), columns.name(*PROMPTS)
    if (
        conversation is not None
        and columns.name(chosen_name) is not None
        and not columns.has_turns(conversation)
    ):
        conversation = None  # another description of the pair, which has its prompt itself
    rejected = columns.take(rejected_name)
    form = f"{chosen_name} and {rejected_name} as two examples"
    prompt: object
    if conversation is not None:
        turns = read_turns(columns.take(conversation), conversation)
        if columns.name(chosen_name) is None:  # the conversation ends with the chosen answer
            chosen: object = turns[-1:]
            prompt, form = turns[:-1], f"{conversation} and {rejected_name} as two examples"
        else:
            chosen, prompt = columns.take(chosen_name), turns
        asked = conversation
    else:
        if columns.name(chosen_name) is None:
            raise BadRowError(f"{rejected_name} without {chosen_name}")
        chosen = columns.take(chosen_name)
        if asked is None:
            prompt, chosen, rejected = _common_beginning(chosen, rejected, names)
            asked, form = "prompt", f"{form}, their common beginning as the prompt"
        else:
            prompt, _ = _prompt(columns, asked)
    if isinstance(prompt, str) and all(
        isinstance(answer, str) and answer.startswith(prompt) for answer in (chosen, rejected)
    ):
        chosen, rejected = str(chosen)[len(prompt) :], str(rejected)[len(prompt) :]
    as_turns = as_turns or asked != "prompt" or names != PAIRS[0]
    return (
        _join(prompt, chosen, before, (asked, chosen_name), as_turns=as_turns),
        _join(prompt, rejected, before, (asked, rejected_name), as_turns=as_turns),
    ), form


def _common_beginning(
    chosen: object, rejected: object, names: tuple[str, str]
) -> tuple[object, object, object]:
    """Prompt, chosen and rejected answer of a pair whose answers both contain the prompt."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        texts = (turns_in_text(chosen), turns_in_text(rejected))
        if None not in texts:
            return _common_beginning(*texts, names)
        at = _common(chosen, rejected)
        while at > 0 and not chosen[at - 1].isspace():  # not within a word
            at -= 1
        if not chosen[:at].strip():
            raise BadRowError(f"no prompt, and {names[0]} and {names[1]} do not begin with the same text")
        # The space belongs to the answers, as in TRL: tokens begin with it.
        at -= chosen[at - 1] == " "
        return chosen[:at], chosen[at:], rejected[at:]
    good, bad = read_turns(chosen, names[0]), read_turns(rejected, names[1])
    at = min(_common(good, bad), len(good) - 1, len(bad) - 1)
    if at == 0:
        raise BadRowError(f"no prompt, and {names[0]} and {names[1]} do not begin with the same turns")
    return good[:at], good[at:], bad[at:]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common beginning."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))


def _join(
    prompt: object, completion: object, before: list[Message], names: tuple[str, str], *, as_turns: bool
) -> _Answer:
    """A prompt and a completion, each text or turns; judged apart, because either may be a conversation."""
    asked, answered = names
    prompt, completion = _parsed(prompt), _parsed(completion)
    if isinstance(prompt, str) and not prompt.strip():
        raise BadRowError(f"empty {asked}")
    if isinstance(completion, str) and not completion.strip():
        raise BadRowError("empty completion" if answered == "completion" else f"empty {answered}")
    if isinstance(prompt, str) and isinstance(completion, str) and not as_turns:
        begins = len(prompt) >= _LONG_PROMPT and completion.startswith(prompt)
        return _Answer(prompt, completion, [PROMPT_IN_TEXT] if begins else [])
    question = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else read_turns(prompt, asked)
    answer = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else read_turns(completion, answered)
    )
    last = _last_assistant(answer)
    if last is None:
        raise BadRowError(f"{answered} has no assistant turn")
    repeated = next((n for n in range(last, 0, -1) if _alike(question[-n:], answer[:n])), 0)
    result = _split([*_after(before, question), *answer[repeated:]])
    if repeated:
        result.facts.append(REPEATED_PROMPT)
    if last - repeated:
        result.facts.append(SEVERAL_TURNS)
    return result


def _parsed(value: object) -> object:
    """A value, or the turns in it if it is a conversation as JSON text."""
    turns = turns_in_text(value) if isinstance(value, str) else None
    return value if turns is None else turns


def _after(before: list[Message], turns: list[Message]) -> list[Message]:
    """The turns after those of the row's other columns; a system text stands once."""
    if before and before[0]["role"] == "system" and turns and turns[0]["role"] == "system":
        if _alike(before[:1], turns[:1]):
            return [*before, *turns[1:]]
        raise BadRowError("system differs from the conversation's system turn")
    return [*before, *turns]


def _split(turns: list[Message]) -> _Answer:
    """A conversation as prompt and completion, its last assistant turn."""
    last = _last_assistant(turns)
    if last is None:
        raise BadRowError("no assistant turn")
    if last == 0:
        raise BadRowError("no prompt before the assistant turn")
    completion = turns[last]
    if not completion["content"].strip() and "tool_calls" not in completion:
        raise BadRowError("empty completion")
    if is_left_out(completion):
        raise BadRowError("its last assistant turn has weight 0 or train false")
    return _Answer(tuple(turns[:last]), (completion,), [LATER_TURNS] if last + 1 < len(turns) else [])


def _last_assistant(turns: Sequence[Message]) -> int | None:
    return max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)


def _alike(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether turns are equal but for white space."""
    return len(some) == len(others) and all(
        a["role"] == b["role"]
        and a["content"].split() == b["content"].split()
        and a.get("tool_calls") == b.get("tool_calls")
        for a, b in zip(some, others, strict=True)
    )


def _missing(row: Mapping[str, Any]) -> str:
    """Why a row without a supported set of columns cannot be used, and what to rename."""
    for found, other, wanted in ((PROMPTS, ANSWERS, "completion"), (ANSWERS, PROMPTS, "prompt")):
        name = next((name for name in found if row.get(name) is not None), None)
        if name is not None and not any(row.get(key) is not None for key in other):
            texts = [k for k, v in row.items() if isinstance(v, str | list) and k not in (name, *LABELS)]
            rename = nearest(wanted, texts) or (texts[0] if len(texts) == 1 else None)
            more = f"; rename the column {rename} to {wanted}" if rename else ""
            return f"{name} without {wanted}{more}"
    turns = next((k for k, v in row.items() if looks_like_turns(v)), None)
    if turns is not None:
        return f"no messages; rename the column {turns} to messages"
    return f"no messages, and no prompt with completion (its columns: {columns_of(row)})"
