"""Normalises chat turns: role, content as text, tool_calls as objects."""

import json
from typing import Any

from kto_sweep.data.rows import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}


class BadRowError(ValueError):
    """A row cannot be used; the message says why in a few words."""


def read_turns(value: object, field: str) -> list[Message]:
    """The turns in a row's list `field`.

    Raises BadRowError.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise BadRowError(f"{field} is text, not a list of turns") from None
    if not isinstance(value, list | tuple):
        raise BadRowError(f"{field} is {_kind(value)}, not a list of turns")
    if not value:
        raise BadRowError(f"{field} is empty")
    return [_read_turn(turn) for turn in value]


def _read_turn(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise BadRowError(f"a turn is {_kind(turn)}, not an object")
    role_name = turn.get("role", turn.get("from"))
    role = _ROLES.get(role_name.strip().lower()) if isinstance(role_name, str) else None
    if role is None:
        raise BadRowError(f"unknown role {role_name!r}" if role_name is not None else "a turn has no role")
    message: Message = {"role": role, "content": _content(turn.get("content", turn.get("value")))}
    if calls := _tool_calls(turn):
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):  # some chat templates render them
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    return message


def _content(value: object) -> str:
    """A turn's text; null is empty, a list of text parts is joined."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part) for part in value)
    raise BadRowError(f"a turn's content is {_kind(value)}, not text")


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    raise BadRowError(f"a turn's content has a part of type {kind!r}, not text")


def _tool_calls(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """The turn's tool calls as chat templates expect them: arguments as an object where possible."""
    calls = turn.get("tool_calls")
    if not calls and turn.get("function_call"):  # OpenAI's older format: one call
        calls = [turn["function_call"]]
    if not calls:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRowError("tool_calls is not a list of objects")
    return [_tool_call(call) for call in calls]


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRowError("a tool call has no function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except json.JSONDecodeError:
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


def calls_as_text(calls: list[dict[str, Any]]) -> str:
    """Tool calls as JSON lines, for models whose template does not support them."""
    return "\n".join(json.dumps(call["function"], ensure_ascii=False) for call in calls)


def _kind(value: object) -> str:
    """A JSON type's name, for messages."""
    if value is None:
        return "missing"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text", dict: "an object"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else type(value).__name__)
