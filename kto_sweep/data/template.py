"""Renders conversations with a model's chat template, with fallbacks for what the template does not support.

Support is probed once per template: many raise on a system turn, and many drop tool calls silently. What a
template does not read of a row (a column such as `tools`, a key of a turn) is counted, to be named once.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, nodes

from kto_sweep.data.messages import BadRowError, calls_as_text
from kto_sweep.data.rows import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "kto_probe_word"
_REJECTIONS = (TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""Exceptions that templates raise for turns they do not support."""

_PLAIN_ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of one thing, of which a template reads one or two."""
_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")
_ALWAYS_READ = frozenset({"role", "content", "tool_calls", "tool_call_id"})
"""Keys of a turn for which there is a fallback, or that say nothing to a model."""


@dataclass(frozen=True)
class Rendered:
    """One example as text."""

    prompt: str
    """The text up to where the model starts to write."""
    full: str
    """Prompt and completion, as the template renders the whole conversation."""
    completion: str
    """The completion alone, with what the template appends to it."""
    body: str
    """`prompt` without the tokens that open the answer; empty when `full` begins with `prompt`."""
    from_template: bool
    """True: the template wrote the beginning-of-text and end-of-turn tokens."""


class Renderer:
    """Renders examples with a tokenizer's chat template, or as plain text when it has none."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.unread: Counter[str] = Counter()
        """Rows with something that the template does not read, by its name."""
        self._tokenizer = tokenizer
        self._form = _undated(str(tokenizer.get_chat_template())) if tokenizer.chat_template else None
        self._reads = None if self._form is None else _names_read(self._form)
        if self._form is not None:
            user = {"role": "user", "content": "Hi"}
            result = {"role": "tool", "content": _PROBE, "name": "f", "tool_call_id": "probe0001"}
            answer = {"role": "assistant", "content": "Hello"}
            self._system = self._probe({"role": "system", "content": _PROBE}, user)
            self._calls = self._probe(user, _probe_call(_PROBE))
            self._tools = self._probe(user, _probe_call("f"), result, answer)

    def _probe(self, *turns: Message) -> bool:
        try:
            return _PROBE in self._template(turns, {}, generate=False)
        except _REJECTIONS:
            return False

    def render(self, example: Example) -> Rendered:
        """The example's texts.

        Raises BadRowError when the template rejects the conversation.
        """
        if isinstance(example.prompt, str) or isinstance(example.completion, str):
            prompt, completion = str(example.prompt), str(example.completion)
            return Rendered(prompt, prompt + completion, completion, "", from_template=False)
        turns = [*example.prompt, *example.completion]
        self._count_unread(turns, example.arguments)
        if self._form is None:
            prompt, completion = _plain(example.prompt), f" {_as_text(example.completion[0])}"
            return Rendered(prompt, prompt + completion, completion, "", from_template=False)
        turns = self._adapt([self._with_known_reasoning(turn) for turn in turns])
        rejection: Exception | None = None
        for attempt in (_unchanged, _merge_neighbours, _without_calls):
            try:
                return self._render_turns(attempt(turns), example.arguments)
            except _REJECTIONS as error:
                rejection = error
        raise BadRowError(f"rejected by the chat template: {str(rejection)[:80]}") from rejection

    def _count_unread(self, turns: Sequence[Message], arguments: Mapping[str, Any]) -> None:
        reads = frozenset() if self._reads is None else self._reads
        if reads is not None and "items" in reads:
            return  # it loops over all keys of a turn: what it reads is unknown
        unread = {name for name in arguments if name not in reads}
        for turn in turns:
            for key in turn:
                alike = _REASONING if key in _REASONING else (key,)
                if key not in _ALWAYS_READ and reads.isdisjoint(alike):
                    unread.add(f"{key} of a turn")
        self.unread.update(unread)

    def _with_known_reasoning(self, turn: Message) -> Message:
        """The turn with its reasoning under a name that the template reads."""
        assert self._reads is not None
        given = next((key for key in _REASONING if key in turn), None)
        wanted = next((key for key in _REASONING if key in self._reads), None)
        if given is None or wanted is None or given in self._reads:
            return turn
        return {**{key: value for key, value in turn.items() if key != given}, wanted: turn[given]}

    def _render_turns(self, turns: Sequence[Message], arguments: Mapping[str, Any]) -> Rendered:
        prompt = self._template(turns[:-1], arguments, generate=True)
        full = self._template(turns, arguments, generate=False)
        if full.startswith(prompt):
            return Rendered(prompt, full, full[len(prompt) :], "", from_template=True)
        body = self._template(turns[:-1], arguments, generate=False)
        content = _as_text(turns[-1]).strip()
        before, separator, after = full.rpartition(content)
        ending = after if separator and before else str(self._tokenizer.eos_token or "")
        return Rendered(prompt, full, content + ending, body, from_template=True)

    def _template(self, turns: Sequence[Message], arguments: Mapping[str, Any], *, generate: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tokenize=False,
            chat_template=self._form,
            add_generation_prompt=generate,
            **arguments,
        )
        return str(text)

    def _adapt(self, turns: list[Message]) -> list[Message]:
        """Turns that the template supports: unsupported calls, tool results and system turns become text."""
        if not self._calls:
            turns = [_call_as_text(turn) for turn in turns]
        if not self._tools:
            turns = [_result_as_user(turn) for turn in turns]
        return turns if self._system else _fold_system(turns)


def _names_read(template: str) -> frozenset[str]:
    """All names that a template reads: variables, attributes and text keys."""
    try:
        # transformers adds the tag `generation`, which marks what an assistant wrote and reads nothing.
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))
    except TemplateError:
        return frozenset({"items"})  # it fails or not when it renders; what it reads is unknown
    names = {node.name for node in tree.find_all(nodes.Name)}
    names |= {node.attr for node in tree.find_all(nodes.Getattr)}
    return frozenset(
        names | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    )


def _probe_call(name: str) -> Message:
    call = {"type": "function", "id": "probe0001", "function": {"name": name, "arguments": {"x": 1}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _has_calls(turn: Message) -> bool:
    return bool(turn.get("tool_calls"))


def _as_text(turn: Message) -> str:
    """The turn's content with its tool calls below it."""
    calls = turn.get("tool_calls")
    return "\n".join(text for text in (turn["content"], calls_as_text(calls) if calls else "") if text)


def _call_as_text(turn: Message) -> Message:
    return {"role": turn["role"], "content": _as_text(turn)} if _has_calls(turn) else turn


def _result_as_user(turn: Message) -> Message:
    return {"role": "user", "content": turn["content"]} if turn["role"] == "tool" else turn


def _fold_system(turns: list[Message]) -> list[Message]:
    """Turns with each system turn merged into the user turn after it."""
    folded: list[Message] = []
    pending: list[str] = []
    for turn in turns:
        if turn["role"] == "system":
            pending.append(turn["content"])
        elif pending and turn["role"] == "user":
            folded.append({**turn, "content": "\n\n".join([*pending, turn["content"]])})
            pending = []
        else:
            folded.append(turn)
    if pending:  # without a user turn, the system text is the question
        folded.insert(0, {"role": "user", "content": "\n\n".join(pending)})
    return folded


def _unchanged(turns: Sequence[Message]) -> Sequence[Message]:
    return turns


def _without_calls(turns: Sequence[Message]) -> list[Message]:
    """Turns without tool calls, tool turns or neighbours of one role, which every template accepts."""
    return _merge_neighbours([_result_as_user(_call_as_text(turn)) for turn in turns])


def _merge_neighbours(turns: Sequence[Message]) -> list[Message]:
    """Turns with neighbours of one role merged; the completion, which is last, stays separate."""
    merged: list[Message] = []
    for turn in turns[:-1]:
        last = merged[-1] if merged else None
        if last and last["role"] == turn["role"] and not _has_calls(turn) and not _has_calls(last):
            merged[-1] = {**last, "content": f"{last['content']}\n\n{turn['content']}"}
        else:
            merged.append(turn)
    return [*merged, turns[-1]]


def _plain(turns: Sequence[Message]) -> str:
    """Turns for a model without a chat template: `User: ...`, a blank line, ..., `Assistant:`."""
    lines = [f"{_PLAIN_ROLES[turn['role']]}: {_as_text(turn)}" for turn in turns]
    return "\n\n".join([*lines, "Assistant:"])


def _undated(template: str) -> str:
    """The template with a fixed date: with today's, tokens and reference log-probs would change every day.

    The date is the default in Llama 3.1's template.
    """
    if "strftime_now" not in template:
        return template
    date = "{{ '26 Jul 2024' if form == '%d %b %Y' else '2024' if form == '%Y' else '2024-07-26' }}"
    return "{%- macro strftime_now(form) -%}" + date + "{%- endmacro -%}" + template
