"""What each form of a row means, and what is said about rows that mean nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kto_sweep.data.examples import BadRow, DataNotes, Places, check_readable, describe_bad, read_examples
from kto_sweep.data.formats import LATER_TURNS, PROMPT_IN_TEXT, REPEATED_PROMPT, SEVERAL_TURNS
from kto_sweep.data.row_forms import ROW_FORMS, RowForm
from kto_sweep.data.rows import Example
from kto_sweep.errors import DataError

USER = {"role": "user", "content": "Hello?"}
ANSWER = {"role": "assistant", "content": "Hi."}
WriteRows = Callable[..., Path]


@dataclass
class Loaded:
    """All examples, and the notes on them."""

    examples: list[Example]
    notes: DataNotes

    @property
    def bad(self) -> list[BadRow]:
        return self.notes.bad


def load_examples(source: str | Sequence[str], **more: Any) -> Loaded:
    notes, examples = read_examples(source, **more)
    return Loaded(list(examples), notes)


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def good(**more: Any) -> dict[str, Any]:
    return {"conversations": [USER, ANSWER], "label": True, **more}


@pytest.mark.parametrize("field", ["conversations", "messages"])
def test_last_assistant_turn_is_completion_and_the_rest_prompt(write_rows: WriteRows, field: str) -> None:
    system = {"role": "system", "content": "Be kind."}
    turns = [
        system,
        USER,
        ANSWER,
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Yes."},
    ]
    data = load_examples(str(write_rows({field: turns, "label": False})))
    [example] = data.examples
    assert example.prompt == tuple(turns[:4])
    assert example.completion == (turns[4],)
    assert (example.label, example.line) == (False, 1)
    assert not data.bad


def test_turns_after_the_last_assistant_turn_are_dropped_and_counted(write_rows: WriteRows) -> None:
    data = load_examples(str(write_rows({"messages": [USER, ANSWER, USER], "label": 1})))
    assert data.examples[0].completion == (ANSWER,)
    assert dict(data.notes.facts) == {LATER_TURNS: [1]}


def test_prompt_and_completion_as_text_stay_text(write_rows: WriteRows) -> None:
    data = load_examples(str(write_rows({"prompt": "2+2=", "completion": " 4", "label": True})))
    assert (data.examples[0].prompt, data.examples[0].completion) == ("2+2=", " 4")


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [([USER], [ANSWER]), ("Hello?", [ANSWER]), ([USER], "Hi."), ([USER, ANSWER], [USER, ANSWER])],
)
def test_prompt_and_completion_as_turns(write_rows: WriteRows, prompt: Any, completion: Any) -> None:
    data = load_examples(str(write_rows({"prompt": prompt, "completion": completion, "label": True})))
    assert data.examples[0].prompt[0] == USER
    assert data.examples[0].completion == (ANSWER,)


@pytest.mark.parametrize(
    "label",
    [True, 1, 1.0, "true", "True ", "1", "yes", "good", "desirable", "chosen", "thumbs_up", "👍", "up", "+1"],
)
def test_labels_that_mean_desirable(write_rows: WriteRows, label: Any) -> None:
    assert load_examples(str(write_rows(good(label=label)))).examples[0].label is True


@pytest.mark.parametrize(
    "label",
    [False, 0, 0.0, -1, "-1", "false", "FALSE", "no", "bad", "undesirable", "rejected", "thumbs_down", "👎"],
)
def test_labels_that_mean_undesirable(write_rows: WriteRows, label: Any) -> None:
    assert load_examples(str(write_rows(good(label=label)))).examples[0].label is False


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1, 2], "not a JSON object"),
        ({"label": True}, "no messages, and no prompt with completion (its columns: label)"),
        ({"prompt": "x", "label": True}, "prompt without completion"),
        ({"prompt": "x", "reply": "y", "label": True}, "rename the column reply to completion"),
        ({"user_prompt": "x", "completion": "y", "label": 1}, "rename the column user_prompt to prompt"),
        ({"dialog": [USER, ANSWER], "label": True}, "rename the column dialog to messages"),
        ({"messages": [USER, ANSWER], "rating": True}, "no label; rename the column rating to label"),
        ({"messages": [USER, ANSWER], "id": "1"}, "no label (its columns: messages, id)"),
        ({"messages": [USER, ANSWER], "rating": 1}, "no label; rename the column rating to label"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]},
            "part of type 'tool_use': write it as tool_calls",
        ),
        ({"prompt": "x", "rejected": "b"}, "rejected without chosen"),
        ({"chosen": "yes", "rejected": "no"}, "no prompt, and chosen and rejected do not begin with"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "do not begin with the same turns"),
        ({"prompt": [USER], "completion": [USER], "label": True}, "completion has no assistant turn"),
        ({"prompt": [USER], "completion": [], "label": True}, "completion is empty"),
        (good(images=["a.png"]), "has images: only text can be trained"),
        (good(tools="no JSON"), "tools is text that is not JSON"),
        (good(tools=["find"]), "tools is not a list of objects"),
        (good(chat_template_kwargs=[1]), "chat_template_kwargs is not an object"),
        (good(system=3), "system is not text"),
        (
            {"messages": [{"role": "system", "content": "A"}, USER, ANSWER], "system": "B", "label": True},
            "system differs from the conversation's system turn",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 0}], "label": True}, "weight 0"),
        ({"messages": [USER, {**ANSWER, "train": False}], "label": True}, "train false"),
        ({"conversations": [USER], "label": True}, "no assistant turn"),
        ({"conversations": [ANSWER], "label": True}, "no prompt before the assistant turn"),
        ({"conversations": [], "label": True}, "conversations is empty"),
        ({"conversations": "hi", "label": True}, "conversations is text, not a list of turns"),
        ({"conversations": 3, "label": True}, "conversations is a number, not a list of turns"),
        ({"conversations": [USER, "hi"], "label": True}, "a turn is text, not an object"),
        ({"conversations": [USER, {"content": "hi"}], "label": True}, "a turn has no role"),
        (
            {"conversations": [USER, {"role": "judge", "content": "x"}], "label": True},
            "unknown role 'judge'",
        ),
        (
            {"conversations": [USER, {"role": "assistant", "content": 7}], "label": True},
            "content is a number",
        ),
        ({"conversations": [USER, {"role": "assistant", "content": " "}], "label": True}, "empty completion"),
        (
            {"conversations": [USER, {"role": "assistant", "content": None}], "label": True},
            "empty completion",
        ),
        ({"prompt": " ", "completion": "x", "label": True}, "empty prompt"),
        ({"prompt": "x", "completion": "", "label": True}, "empty completion"),
        (good(label=None), "no label"),
        (good(label="maybe"), "label 'maybe' is neither true nor false"),
        (good(label=2), "label 2 is neither true nor false"),
        (good(label=[True]), "label [True] is neither true nor false"),
        (
            {"conversations": [USER, {**ANSWER, "tool_calls": "f()"}], "label": True},
            "tool_calls is not a list",
        ),
        (
            {
                "conversations": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ANSWER],
                "label": True,
            },
            "part of type 'image': only text can be trained",
        ),
    ],
)
def test_bad_rows_are_named_by_line(write_rows: WriteRows, row: Any, why: str) -> None:
    data = load_examples(str(write_rows(good(), row, good())))
    assert [example.line for example in data.examples] == [1, 3]
    [bad] = data.bad
    assert bad.line == 2
    assert why in bad.why


def test_share_gpt_turns_and_text_parts_are_parsed(write_rows: WriteRows) -> None:
    turns = [
        {"from": "human", "value": "Hello?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "."}]},
    ]
    [example] = load_examples(str(write_rows({"conversations": turns, "label": True}))).examples
    assert (example.prompt, example.completion) == ((USER,), (ANSWER,))


def test_tool_calls_are_kept_with_arguments_as_an_object(write_rows: WriteRows) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}
    row = {
        "conversations": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}],
        "label": True,
    }
    [example] = load_examples(str(write_rows(row))).examples
    [message] = example.completion
    assert message["content"] == ""  # type: ignore[index]
    assert message["tool_calls"] == [  # type: ignore[index]
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}
    ]


def chat(*texts: str) -> tuple[dict[str, str], ...]:
    """Turns of user and assistant in turn."""
    roles = ("user", "assistant") * len(texts)
    return tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))


ANSWERED = chat("", "a")[1:]
SYSTEM = {"role": "system", "content": "s"}
PAIR = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "form"),
    [
        (
            {"instruction": "q", "input": "", "output": "a"},
            chat("q"),
            ANSWERED,
            "instruction, input and output as a conversation",
        ),
        (
            {"instruction": "q", "input": "more", "output": "a"},
            chat("q\nmore"),
            ANSWERED,
            "instruction, input and output as a conversation",
        ),
        (
            {"query": "q", "response": "a"},
            chat("q"),
            ANSWERED,
            "query and response as a conversation",
        ),
        (
            {"query": "q", "response": "a", "history": [["p", "b"]], "system": "s"},
            (SYSTEM, *chat("p", "b", "q")),
            ANSWERED,
            "query and response as a conversation",
        ),
        (
            {"question": "q", "answer": "a", "system_prompt": "s"},
            (SYSTEM, *chat("q")),
            ANSWERED,
            "question and answer as a conversation",
        ),
        (
            {"conversation": [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]},
            chat("q", "a", "r"),
            chat("", "b")[1:],
            "conversation as messages",
        ),
        (
            {"messages": [{"role": "human", "content": "q"}, {"role": "ai", "content": "a"}]},
            chat("q"),
            ANSWERED,
            "",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]}, *ANSWERED]},
            chat("q"),
            ANSWERED,
            "",
        ),
        ({"prompt": json.dumps(chat("q")), "completion": "a"}, chat("q"), ANSWERED, ""),
        ({"prompt": '["no", "turns"]', "completion": "a"}, '["no", "turns"]', "a", ""),
        (
            {"prompt": "q", "completion": "a", "system": "s"},
            (SYSTEM, *chat("q")),
            ANSWERED,
            "",
        ),
        ({"prompt": "q", "completion": "a", "system": " "}, "q", "a", ""),
        ({"prompt": "q", "completion": "a", "kto_tag": True, "label": None}, "q", "a", ""),
    ],
)
def test_forms_of_other_tools(
    write_rows: WriteRows, row: dict[str, Any], prompt: Any, completion: Any, form: str
) -> None:
    data = load_examples(str(write_rows({"label": True, **row})))
    [example] = data.examples
    assert (example.prompt, example.completion) == (prompt, completion)
    assert example.label is True
    tag = ["kto_tag as label"] if "kto_tag" in row else []
    assert list(data.notes.forms) == [*([form] if form else []), *tag]
    assert not data.notes.ignored


@pytest.mark.parametrize("form", ROW_FORMS, ids=lambda form: form.name)
def test_every_form_on_the_data_page_is_read(write_rows: WriteRows, form: RowForm) -> None:
    data = load_examples(str(write_rows(form.row)))
    assert not data.bad
    assert not data.notes.ignored
    assert [example.label for example in data.examples] in ([True], [False], [True, False])
    for example in data.examples:
        prompt, completion = str(example.prompt), str(example.completion)
        assert "parcel" in prompt or "Where?" in prompt
        assert "In Oslo." in completion or "No idea." in completion or "find_parcel" in completion


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q", ("a", "b")),
        ({"prompt": "Say it: ", "chosen": "Say it: a", "rejected": "Say it: b"}, "Say it: ", ("a", "b")),
        (
            {"chosen": "Human: q Bot: good", "rejected": "Human: q Bot: go on"},
            "Human: q Bot:",
            (" good", " go on"),
        ),
        ({"prompt": chat("q"), "chosen": chat("q", "a"), "rejected": chat("q", "b")}, chat("q"), ("a", "b")),
        ({"chosen": chat("q", "a"), "rejected": chat("q", "b")}, chat("q"), ("a", "b")),
        (
            {
                "conversations": chat("q"),
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            chat("q"),
            ("a", "b"),
        ),
        ({"messages": chat("q", "a"), "rejected_response": "b"}, chat("q"), ("a", "b")),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, chat("q"), ("a", "b")),
        (
            {
                "input": {"messages": chat("q")},
                "preferred_output": list(ANSWERED),
                "non_preferred_output": list(chat("", "b")[1:]),
            },
            chat("q"),
            ("a", "b"),
        ),
        (
            {
                "conversation": [{"input": "q"}],
                "chosen": chat("q", "a"),
                "rejected": chat("q", "b"),
            },
            chat("q"),
            ("a", "b"),
        ),
    ],
)
def test_a_pair_is_two_examples(
    write_rows: WriteRows, row: dict[str, Any], prompt: Any, answers: tuple[str, str]
) -> None:
    data = load_examples(str(write_rows(row)))
    good, bad = data.examples
    assert (good.label, bad.label, good.line, bad.line) == (True, False, 1, 1)
    assert good.prompt == bad.prompt == prompt
    texts = [
        e.completion if isinstance(e.completion, str) else e.completion[0]["content"] for e in (good, bad)
    ]
    assert tuple(texts) == answers
    assert "two examples" in next(iter(data.notes.forms))


@pytest.mark.parametrize(
    ("prompt", "completion", "expected", "facts"),
    [
        (chat("q"), chat("q", "a"), chat("q"), [REPEATED_PROMPT]),
        (chat("p", "b", "q"), chat("q", "a"), chat("p", "b", "q"), [REPEATED_PROMPT]),
        (chat("q"), chat("", "b", "r", "a")[1:], chat("q", "b", "r"), [SEVERAL_TURNS]),
        ("What is the capital of Norway?", "What is the capital of Norway? Oslo.", None, [PROMPT_IN_TEXT]),
        ("Hi", "Hi there.", None, []),
    ],
)
def test_prompt_and_completion_are_judged_apart(
    write_rows: WriteRows, prompt: Any, completion: Any, expected: Any, facts: list[str]
) -> None:
    data = load_examples(str(write_rows({"prompt": prompt, "completion": completion, "label": True})))
    [example] = data.examples
    assert list(data.notes.facts) == facts
    assert example.prompt == (prompt if expected is None else expected)
    assert example.completion == (completion if expected is None else ANSWERED)


def test_calls_in_turns_of_their_own_are_tool_calls(write_rows: WriteRows) -> None:
    call = {"name": "find", "arguments": {"q": "x"}}
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "found"},
        {"from": "gpt", "value": "a"},
    ]
    data = load_examples(str(write_rows({"conversations": turns, "label": "👍"})))
    [example] = data.examples
    assert example.prompt == (
        *chat("q"),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "found"},
    )
    assert list(data.notes.forms) == ["label 👍 as true", "turns of a call as tool calls"]
    broken = [turns[0], {"from": "function_call", "value": "find x"}]
    [example] = load_examples(str(write_rows({"conversations": broken, "label": True}))).examples
    assert example.completion == chat("", "find x")[1:]


def test_what_templates_read_beside_the_turns_is_kept(write_rows: WriteRows) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    row = good(
        tools=json.dumps(tools), documents=[{"text": "d"}], chat_template_kwargs={"enable_thinking": False}
    )
    [example] = load_examples(str(write_rows(row))).examples
    assert example.arguments == {"tools": tools, "documents": [{"text": "d"}], "enable_thinking": False}
    [plain] = load_examples(
        str(write_rows({"prompt": "q", "completion": "a", "tools": tools, "label": 1}))
    ).examples
    assert plain.prompt == chat("q")


def test_keys_of_a_turn_stay_and_reasoning_parts_are_reasoning(write_rows: WriteRows) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
    turns = [{**USER, "name": "Ada"}, {"role": "assistant", "content": parts, "tool_plan": "none"}]
    [example] = load_examples(str(write_rows({"messages": turns, "label": True}))).examples
    assert example.prompt == ({**USER, "name": "Ada"},)
    assert example.completion == (
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_plan": "none"},
    )


def test_every_other_column_is_counted(write_rows: WriteRows) -> None:
    data = load_examples(
        str(write_rows(good(id=1, source="x"), good(id=2, empty="", none=None), good(kto_tag=1)))
    )
    assert data.notes.ignored == {"id": 2, "source": 1, "kto_tag": 1}


def test_zero_beside_minus_one_is_no_label(write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match=r"labels 0 and -1 in one data set \(-1 in line 1 and 0 in line 3\)"):
        load_examples(str(write_rows(good(label=-1), good(label=1), good(label=0))))


def test_lines_of_several_files_are_named_with_their_file() -> None:
    places = Places()
    lines = [places.add("a", 1, 0), places.add("a", 5, 1), places.add("b", 2, 5), places.add("b", 3, 7)]
    assert lines == [1, 5, 7, 8]
    assert [places.name(line) for line in lines] == ["a:1", "a:5", "b:2", "b:3"]
    assert Places([(0, "a")]).name(5) == "5"


def test_no_usable_row_is_an_error_with_the_reason(write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match=r"no usable row: 2 no assistant turn \(lines 1, 2\)"):
        check_readable(
            str(write_rows({"messages": [USER], "label": True}, {"messages": [USER], "label": True}))
        )
    with pytest.raises(DataError, match="it has no rows"):
        check_readable(str(write_rows()))


def test_describe_bad_puts_the_most_frequent_first_and_cuts_long_lists() -> None:
    bad = [BadRow(1, "no label"), *(BadRow(line, "no assistant turn") for line in range(2, 9))]
    assert (
        describe_bad(bad, Places()) == "7 no assistant turn (lines 2, 3, 4, 5, 6, ...); 1 no label (line 1)"
    )


def test_half_a_surrogate_pair_is_a_bad_row(write_rows: WriteRows) -> None:
    broken = {"role": "assistant", "content": "Hi \ud800"}
    loaded = load_examples(str(write_rows(good(), {"conversations": [USER, broken], "label": True})))
    assert [row.line for row in loaded.bad] == [2]
    assert "half a surrogate pair" in loaded.bad[0].why
