import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kto_sweep.data.formats import BadRow, describe_bad, load_examples
from kto_sweep.errors import DataError

USER = {"role": "user", "content": "Hello?"}
ANSWER = {"role": "assistant", "content": "Hi."}
WriteRows = Callable[..., Path]


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
    assert data.cut_turns == 1


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


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True ", "1", "yes", "good", "desirable", "chosen"])
def test_labels_that_mean_desirable(write_rows: WriteRows, label: Any) -> None:
    assert load_examples(str(write_rows(good(label=label)))).examples[0].label is True


@pytest.mark.parametrize(
    "label", [False, 0, 0.0, "false", "FALSE", "0", "no", "bad", "undesirable", "rejected"]
)
def test_labels_that_mean_undesirable(write_rows: WriteRows, label: Any) -> None:
    assert load_examples(str(write_rows(good(label=label)))).examples[0].label is False


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1, 2], "not a JSON object"),
        ({"label": True}, "no conversations, no messages, and no prompt with completion"),
        ({"prompt": "x", "label": True}, "prompt without completion"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "a preference pair (chosen, rejected)"),
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
            "part of type 'image'",
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


def test_a_broken_line_is_an_error_with_its_number_and_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good()) + "\n\n" + '{"conversations": [}\n')
    with pytest.raises(DataError) as raised:
        load_examples(str(path))
    assert raised.value.message.startswith(f"{path}:3: broken JSON")
    assert "line 3" in raised.value.hint


def test_invalid_utf8_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(good()).encode() + b"\n" + b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not UTF-8 text"):
        load_examples(str(path))


def test_windows_text_with_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(good()).encode() + b"\r\n" + json.dumps(good()).encode())
    assert len(load_examples(str(path)).examples) == 2


def test_json_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([good(), {"label": True}, good(label=False)], indent=1))
    data = load_examples(str(path))
    assert [example.line for example in data.examples] == [1, 3]
    assert data.bad[0].line == 2
    path.write_text("[{]")
    with pytest.raises(DataError, match=r"rows\.json:1: broken JSON"):
        load_examples(str(path))


def test_csv_with_a_cell_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion,label\n"a\nb",c,true\nd,,false\ne,f,0\n')
    data = load_examples(str(path))
    assert [(e.prompt, e.completion, e.label, e.line) for e in data.examples] == [
        ("a\nb", "c", True, 2),
        ("e", "f", False, 5),
    ]
    assert data.bad == [BadRow(4, "empty completion")]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist([good(), good(label=False)]), path)
    data = load_examples(str(path))
    assert [(e.completion, e.label) for e in data.examples] == [((ANSWER,), True), ((ANSWER,), False)]
    path.write_text("no parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        load_examples(str(path))


def test_missing_file_names_the_nearest(write_rows: WriteRows) -> None:
    path = write_rows(good(), name="support.jsonl")
    with pytest.raises(DataError) as raised:
        load_examples(str(path.with_name("suport.jsonl")))
    assert "no such data file" in raised.value.message
    assert raised.value.hint == f"did you mean {path}?"


def test_file_is_found_below_the_given_folders(
    write_rows: WriteRows, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_rows(good())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    data = load_examples(path.name, base_dirs=(elsewhere, path.parent))
    assert len(data.examples) == 1


def test_no_usable_row_is_an_error_with_the_reason(write_rows: WriteRows) -> None:
    with pytest.raises(DataError, match=r"no usable row: 2 no assistant turn \(lines 1, 2\)"):
        load_examples(
            str(write_rows({"messages": [USER], "label": True}, {"messages": [USER], "label": True}))
        )
    with pytest.raises(DataError, match="it has no rows"):
        load_examples(str(write_rows()))


def test_describe_bad_puts_the_most_frequent_first_and_cuts_long_lists() -> None:
    bad = [BadRow(1, "no label"), *(BadRow(line, "no assistant turn") for line in range(2, 9))]
    assert describe_bad(bad) == "7 no assistant turn (lines 2, 3, 4, 5, 6, ...); 1 no label (line 1)"


def test_half_a_surrogate_pair_is_a_bad_row(write_rows: WriteRows) -> None:
    broken = {"role": "assistant", "content": "Hi \ud800"}
    loaded = load_examples(str(write_rows(good(), {"conversations": [USER, broken], "label": True})))
    assert [row.line for row in loaded.bad] == [2]
    assert "half a surrogate pair" in loaded.bad[0].why
