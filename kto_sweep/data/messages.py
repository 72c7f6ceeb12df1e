"""Normalises chat turns: role, content as text, tool calls as objects; all other keys stay.

Accepted: OpenAI's turns (role, content, tool_calls), ShareGPT's (from, value, with function_call and
observation), and pairs of one object each ({"human": ..., "assistant": ...}).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kto_sweep.data.rows import Message
from kto_sweep.json_file import parse_json

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "ai", "bot", "chatbot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "function_response", "tool_response", "observation", "ipython"), "tool"
    ),
}
_CALL_ROLES = frozenset({"function_call", "tool_call"})
"""Roles of assistant turns whose content is a call, or a list of calls, as JSON."""
_MEDIA = ("image", "video", "audio", "file")
"""Beginnings of the types of content parts that are not text."""
_REASONING = frozenset({"thinking", "reasoning"})
"""Types of content parts with the reasoning before the answer."""
_WEIGHTS = ("weight", "train")
"""Keys of a turn with which other trainers leave an assistant turn out."""
_READ = frozenset({"role", "from", "content", "value", "tool_calls", "function_call"})


class BadRowError(ValueError):
    """A row cannot be used; the message says why in a few words."""


def read_turns(value: object, field: str) -> list[Message]:
    """The turns in a row's `field`: a list of turns, one turn, or either as JSON text.

    Raises BadRowError.
    """
    if isinstance(value, str):
        parsed = turns_in_text(value)
        if parsed is None:
            raise BadRowError(f"{field} is text, not a list of turns")
        value = parsed
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise BadRowError(f"{field} is {_kind(value)}, not a list of turns")
    if not value:
        raise BadRowError(f"{field} is empty")
    return [turn for item in value for turn in _read_item(item)]


def turns_in_text(text: str) -> list[Any] | None:
    """The turns in a text that is the JSON of a conversation; None for any other text, and for other JSON."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = parse_json(text)
    except ValueError:
        return None
    items = value if isinstance(value, list) else [value]
    return items if looks_like_turns(items) else None


def looks_like_turns(value: object) -> bool:
    """Whether a value is a list of objects that have a role."""
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)
    )


def has_call_turns(value: object) -> bool:
    """Whether a conversation has turns whose content is a call."""
    return isinstance(value, list | tuple) and any(
        isinstance(turn, Mapping) and turn.get("role", turn.get("from")) in _CALL_ROLES for turn in value
    )


def _read_item(item: object) -> Iterator[Message]:
    """One turn, or the turns of a pair such as {"human": ..., "assistant": ...}."""
    if not isinstance(item, Mapping):
        raise BadRowError(f"a turn is {_kind(item)}, not an object")
    if "role" in item or "from" in item:
        yield _read_turn(item)
        return
    roles = [(key, _ROLES[key]) for key in item if key in _ROLES]
    if not roles:
        raise BadRowError("a turn has no role")
    order = ["system", "user", "tool", "assistant"]
    for key, role in sorted(roles, key=lambda pair: order.index(pair[1])):
        if item[key] is not None:
            yield _read_turn({"role": role, "content": item[key]})


def _read_turn(turn: Mapping[str, Any]) -> Message:
    name = turn.get("role", turn.get("from"))
    word = name.strip().lower() if isinstance(name, str) else None
    content = turn.get("content", turn.get("value"))
    if word in _CALL_ROLES:
        return {"role": "assistant", **_call_turn(content), **_others(turn)}
    role = _ROLES.get(word) if word is not None else None
    if role is None:
        raise BadRowError(f"unknown role {name!r}" if name is not None else "a turn has no role")
    text, reasoning = _content(content)
    message: Message = {"role": role, "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls := _tool_calls(turn):
        message["tool_calls"] = calls
    return message | _others(turn)


def _others(turn: Mapping[str, Any]) -> Message:
    """The keys that only a chat template can know, such as name, tool_call_id and reasoning_content."""
    return {key: value for key, value in turn.items() if key not in _READ and value is not None}


def is_left_out(turn: Message) -> bool:
    """Whether a turn says that it must not be trained: weight 0, or train false."""
    return any(key in turn and turn[key] in (0, False) for key in _WEIGHTS)


def _content(value: object) -> tuple[str, str]:
    """A turn's text and reasoning; null is empty, text parts are joined."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, list | tuple):
        raise BadRowError(f"a turn's content is {_kind(value)}, not text")
    parts = [_part(part) for part in value]
    return "".join(text for text, _ in parts), "".join(reasoning for _, reasoning in parts)


def _part(part: object) -> tuple[str, str]:
    if isinstance(part, str):
        return part, ""
    if not isinstance(part, Mapping):
        raise BadRowError(f"a turn's content has {_kind(part)} as a part, not text")
    kind = str(part.get("type", "text"))
    texts = [part[key] for key in (kind, "text", "value", "content") if isinstance(part.get(key), str)]
    if kind in _REASONING and texts:
        return "", texts[0]
    if kind in ("text", "input_text", "output_text") and texts:
        return texts[0], ""
    media = next((name for name in _MEDIA if name in kind or name in part), None)
    if media is not None:
        raise BadRowError(f"a turn's content has a part of type {kind!r}: only text can be trained")
    if "tool" in kind:
        raise BadRowError(
            f"a turn's content has a part of type {kind!r}: write it as tool_calls or a tool turn"
        )
    raise BadRowError(f"a turn's content has a part of type {kind!r} without text")


def _call_turn(content: object) -> Message:
    """Content and calls of a turn whose content is calls as JSON; broken JSON stays as text."""
    value = content
    if isinstance(content, str):
        try:
            value = parse_json(content)
        except ValueError:
            return {"content": content}
    calls = value if isinstance(value, list) else [value]
    objects = [call for call in calls if isinstance(call, Mapping)]
    if len(objects) < len(calls):
        return {"content": content if isinstance(content, str) else json.dumps(content)}
    return {"content": "", "tool_calls": [_tool_call(call) for call in objects]}


def _tool_calls(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turn's tool calls as chat templates expect them: arguments as an object where possible."""
    calls = turn.get("tool_calls")
    if isinstance(calls, str) and calls.strip():  # tables often hold them as JSON
        try:
            calls = parse_json(calls)
        except ValueError:
            raise BadRowError("tool_calls is not a list of objects") from None
    if not calls and turn.get("function_call"):  # OpenAI's older format: one call
        calls = [turn["function_call"]]
    if not calls:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRowError("tool_calls is not a list of objects")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRowError("a tool call has no function name")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            parsed = parse_json(arguments)
        except ValueError:
            parsed = None
        # Broken arguments stay as written: they may be the reason for the label.
        arguments = parsed if isinstance(parsed, dict) else arguments
    result: dict[str, Any] = {
        "type": "function",
        "function": {"name": function["name"], "arguments": {} if arguments is None else arguments},
    }
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result


def calls_as_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Tool calls as JSON lines, for models whose template does not support them."""
    return "\n".join(json.dumps(call["function"], ensure_ascii=False) for call in calls)


def _kind(value: object) -> str:
    """A JSON type's name, for messages."""
    if value is None:
        return "missing"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text", dict: "an object"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else type(value).__name__)
