"""The accepted forms of a row, each with an example: docs/data.md shows them, and a test reads each."""

from typing import Any, NamedTuple

_ASK = {"role": "user", "content": "Where is my parcel?"}
_SAY = {"role": "assistant", "content": "In Oslo."}
_CALL = {"type": "function", "function": {"name": "find_parcel", "arguments": {"number": 7}}}
_TOOL = {"type": "function", "function": {"name": "find_parcel", "description": "Find a parcel"}}


class RowForm(NamedTuple):
    """One way to write a row."""

    name: str
    row: dict[str, Any]
    meaning: str


ROW_FORMS = (
    RowForm(
        "conversation",
        {"messages": [_ASK, _SAY], "label": True},
        "The last assistant turn is the completion, all turns before it are the prompt; also under "
        "`conversations`. Trained with the model's chat template.",
    ),
    RowForm(
        "prompt and completion as text",
        {"prompt": "Where is my parcel?", "completion": " In Oslo.", "label": False},
        "As it stands, without a chat template; the end-of-text token is appended. As TRL does.",
    ),
    RowForm(
        "prompt and completion as turns",
        {"prompt": [_ASK], "completion": [_SAY], "label": True},
        "Either may be text. A completion that repeats the end of the prompt is trained once; of several "
        "turns the last assistant turn is the completion.",
    ),
    RowForm(
        "pair, explicit prompt",
        {"prompt": [_ASK], "chosen": [_SAY], "rejected": [{**_SAY, "content": "No idea."}]},
        "Two examples: the chosen answer is desirable, the rejected one undesirable. Also as text, and as "
        "`chosen_response` and `rejected_response`.",
    ),
    RowForm(
        "pair, implicit prompt",
        {"chosen": [_ASK, _SAY], "rejected": [_ASK, {**_SAY, "content": "No idea."}]},
        "The turns, or the words, with which both begin are the prompt.",
    ),
    RowForm(
        "pair in a conversation",
        {"messages": [_ASK, _SAY], "rejected_response": "No idea."},
        "The conversation ends with the chosen answer.",
    ),
    RowForm(
        "ShareGPT",
        {
            "conversations": [
                {"from": "human", "value": "Where is my parcel?"},
                {"from": "function_call", "value": '{"name": "find_parcel", "arguments": {"number": 7}}'},
                {"from": "observation", "value": "Oslo"},
                {"from": "gpt", "value": "In Oslo."},
            ],
            "kto_tag": True,
        },
        "`from` and `value` in place of `role` and `content`; a `function_call` is a tool call. "
        "LLaMA-Factory's `kto_tag` is the label.",
    ),
    RowForm(
        "Alpaca",
        {
            "instruction": "Answer the customer.",
            "input": "Where is my parcel?",
            "output": "In Oslo.",
            "label": 1,
        },
        "A conversation of two turns; `input` is the second line of the question.",
    ),
    RowForm(
        "query and response",
        {"query": "Where?", "response": "In Oslo.", "history": [["Hi", "Hello."]], "label": "thumbs_up"},
        "A conversation; `history` has earlier questions with their answers. Also `question` and `answer`.",
    ),
    RowForm(
        "one object for question and answer",
        {"conversation": [{"human": "Where is my parcel?", "assistant": "In Oslo."}], "label": -1},
        "Each object is a user turn and an assistant turn.",
    ),
    RowForm(
        "system text in a column",
        {"system": "Be short.", "messages": [_ASK, _SAY], "label": True},
        "The first turn of the conversation; also `system_prompt`.",
    ),
    RowForm(
        "tools",
        {
            "tools": [_TOOL],
            "messages": [_ASK, {"role": "assistant", "content": None, "tool_calls": [_CALL]}],
            "label": True,
        },
        "`tools` and `documents`, also as JSON text, reach the chat template. Calls have their arguments as "
        "an object or as JSON text.",
    ),
    RowForm(
        "reasoning",
        {
            "messages": [_ASK, {**_SAY, "reasoning_content": "Parcel 7 is in Oslo."}],
            "chat_template_kwargs": {"enable_thinking": True},
            "label": True,
        },
        "`reasoning_content`, `thinking` or `reasoning` of a turn, under the name that the chat template "
        "reads; `chat_template_kwargs` are variables of the template.",
    ),
)
"""What a row may look like."""
