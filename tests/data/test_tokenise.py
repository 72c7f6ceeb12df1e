import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from kto_sweep.data.rows import Example, Message, TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.data.tokenise import TokenisedData, tokenise

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]
CHATML = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"

USER: Message = {"role": "user", "content": "Hello?"}
ANSWER: Message = {"role": "assistant", "content": "Hi."}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "find", "arguments": {"q": "x"}}}],
}


def chat(*turns: Message, label: bool = True, line: int = 1, **arguments: Any) -> Example:
    return Example(turns[:-1], turns[-1:], label, line, arguments)


def texts(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int = 1000) -> tuple[str, str]:
    data = tokenise([example], tokenizer)
    assert not data.notes.bad
    [row] = data.table.cut(max_length)
    return tokenizer.decode(row.prompt), tokenizer.decode(row.completion)


def test_completion_is_what_the_template_adds_to_the_prompt(make_tokenizer: MakeTokenizer) -> None:
    assert texts(chat(USER, ANSWER, USER, ANSWER), make_tokenizer()) == (
        "<|user|>Hello?<|end|>\n<|assistant|>Hi.<|end|>\n<|user|>Hello?<|end|>\n<|assistant|>",
        "Hi.<|end|>\n",
    )


def test_text_rows_use_no_template_and_end_with_the_end_token(make_tokenizer: MakeTokenizer) -> None:
    assert texts(Example("2+2=", " 4", True, 1), make_tokenizer()) == ("2+2=", " 4<|end|>")


def test_text_rows_whose_boundary_tokens_merge_keep_the_prompt(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(merges=[("a", "b")])
    [row] = tokenise([Example("a", "b", True, 1)], tokenizer).table
    assert row.prompt == tokenizer("a").input_ids
    assert row.completion == [*tokenizer("b").input_ids, tokenizer.eos_token_id]


def test_template_rows_whose_boundary_tokens_merge_keep_the_prompt(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}{{ 'a' if m['role'] == 'assistant' }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    tokenizer = make_tokenizer(template, merges=[("a", "b")])
    [row] = tokenise([chat(USER, {"role": "assistant", "content": "b"})], tokenizer).table
    # The conversation is `Hello?ab`, where `ab` is one token; the prompt for generation is `Hello?a`.
    assert row.prompt == tokenizer("Hello?a").input_ids
    assert row.completion == [*tokenizer("b").input_ids, tokenizer.eos_token_id]


def test_without_a_template_conversations_read_as_plain_text(make_tokenizer: MakeTokenizer) -> None:
    system: Message = {"role": "system", "content": "Be kind."}
    assert texts(chat(system, USER, ANSWER), make_tokenizer(None)) == (
        "System: Be kind.\n\nUser: Hello?\n\nAssistant:",
        " Hi.<|end|>",
    )


def test_system_turn_is_merged_into_the_user_turn_when_the_template_rejects_it(
    make_tokenizer: MakeTokenizer,
) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    system: Message = {"role": "system", "content": "Be kind."}
    prompt, completion = texts(chat(system, USER, ANSWER), make_tokenizer(template))
    assert prompt == "<|user|>Be kind.\n\nHello?<|end|><|assistant|>"
    assert completion == "Hi.<|end|>"


def test_system_turn_is_kept_where_the_template_drops_it(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    prompt, _ = texts(chat({"role": "system", "content": "Be kind."}, USER, ANSWER), make_tokenizer(template))
    assert "Be kind." in prompt


def test_neighbours_with_one_role_are_merged_if_the_template_requires_alternation(
    make_tokenizer: MakeTokenizer,
) -> None:
    template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}|{% endfor %}"
    )
    tokenizer = make_tokenizer(template)
    assert texts(chat(USER, USER, ANSWER), tokenizer) == ("Hello?\n\nHello?|", "Hi.|<|end|>")
    rejected = tokenise([chat(ANSWER, ANSWER, line=7)], tokenizer)
    assert [(row.line, row.why) for row in rejected.notes.bad] == [
        (7, "rejected by the chat template: roles must alternate")
    ]


def test_tool_calls_become_text_when_the_template_does_not_support_them(
    make_tokenizer: MakeTokenizer,
) -> None:
    _, completion = texts(chat(USER, CALL), make_tokenizer())
    assert completion == '{"name": "find", "arguments": {"q": "x"}}<|end|>\n'
    _, both = texts(chat(USER, {**CALL, "content": "Looking."}), make_tokenizer())
    assert both == 'Looking.\n{"name": "find", "arguments": {"q": "x"}}<|end|>\n'


def test_tool_calls_are_rendered_by_a_template_that_supports_them(
    make_tokenizer: MakeTokenizer,
) -> None:
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
        "{% for c in m['tool_calls'] or [] %}[{{ c['function']['name'] }}"
        "({{ c['function']['arguments']['q'] }})]{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    result: Message = {"role": "tool", "content": "found", "tool_call_id": "c1"}
    prompt, completion = texts(chat(USER, CALL, result, ANSWER), make_tokenizer(template))
    assert prompt == "<|user|>Hello?<|end|><|assistant|>[find(x)]<|end|><|tool|>found<|end|><|assistant|>"
    assert completion == "Hi.<|end|>"
    assert texts(chat(USER, CALL), make_tokenizer(template))[1] == "[find(x)]<|end|>"


def test_template_that_opens_an_answer_differently_from_how_it_renders_one(
    make_tokenizer: MakeTokenizer,
) -> None:
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>*thinking*{% endif %}"
    )
    assert texts(chat(USER, ANSWER), make_tokenizer(template)) == (
        "<|user|>Hello?<|end|><|assistant|>",
        "Hi.<|end|>",
    )


def test_template_that_changes_earlier_turns_once_an_answer_follows(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>"
        "{% if m['role'] == 'user' and not loop.last %}(answered){% endif %}"
        "{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert texts(chat(USER, ANSWER), make_tokenizer(template)) == (
        "<|user|>Hello?<|end|><|assistant|>",
        "Hi.<|end|>",
    )


def test_todays_date_does_not_change_the_tokens(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + str(make_tokenizer().chat_template)
    assert texts(chat(USER, ANSWER), make_tokenizer(template))[0].startswith("26 Jul 2024<|user|>")


def test_equal_prompts_have_one_key_whatever_is_truncated(make_tokenizer: MakeTokenizer) -> None:
    other: Message = {"role": "user", "content": "Bye?"}
    spaced: Message = {"role": "user", "content": "Hello?\n"}
    long: Message = {"role": "assistant", "content": "x" * 50}
    examples = [chat(USER, ANSWER), chat(other, ANSWER), chat(USER, long), chat(spaced, ANSWER)]
    first, second, third, fourth = tokenise(examples, make_tokenizer()).table.cut(16)
    assert first.prompt_key == third.prompt_key == fourth.prompt_key != second.prompt_key
    assert first.prompt != third.prompt


def test_prompts_with_other_tools_or_reasoning_differ(make_tokenizer: MakeTokenizer) -> None:
    tools = [[{"function": {"name": name}}] for name in ("find", "find", "send")]
    table = tokenise([chat(USER, ANSWER, tools=each) for each in tools], make_tokenizer()).table
    assert table.prompt_keys[0] == table.prompt_keys[1] != table.prompt_keys[2]
    thought = tokenise([chat(USER, ANSWER), chat(USER, {**ANSWER, "thinking": "hm"})], make_tokenizer()).table
    assert thought.completion_keys[0] != thought.completion_keys[1]
    assert thought.prompt_keys[0] == thought.prompt_keys[1]


def test_long_rows_are_truncated(make_tokenizer: MakeTokenizer) -> None:
    examples = [chat(USER, {"role": "assistant", "content": "x" * 50}), chat(USER, ANSWER)]
    table = tokenise(examples, make_tokenizer()).table
    cut = table.cut(20)
    assert [len(row.prompt) + len(row.completion) for row in cut] == [20, 15]
    assert (cut.completion_lengths < table.completion_lengths).tolist() == [True, False]
    assert (cut.prompt_lengths == table.prompt_lengths).all()


@pytest.mark.parametrize("max_length", [2, 3, 7, 16, 40])
@pytest.mark.parametrize("prompt_length", [1, 3, 20, 100])
@pytest.mark.parametrize("completion_length", [1, 3, 20, 100])
@pytest.mark.parametrize("begin", [None, 0])
def test_cut_keeps_the_prompts_end_and_the_completions_beginning(
    max_length: int, prompt_length: int, completion_length: int, begin: int | None
) -> None:
    prompt = list(range(prompt_length))
    completion = list(range(1000, 1000 + completion_length))
    table = RowTable.from_rows([TokenRow(prompt, completion, True, 0)])
    [short] = replace(table, begin=begin).cut(max_length)
    assert len(short.prompt) + len(short.completion) == min(max_length, prompt_length + completion_length)
    assert short.prompt
    assert short.completion == completion[: len(short.completion)]
    assert short.completion
    kept = short.prompt[1:] if begin is not None and len(short.prompt) < prompt_length else short.prompt
    assert kept == prompt[prompt_length - len(kept) :]
    assert len(short.prompt) >= min(prompt_length, max_length // 2)
    if begin is not None and len(short.prompt) > 1:
        assert short.prompt[0] == begin


def test_a_large_data_set_is_mapped_from_a_file(
    make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples = [chat(USER, {"role": "assistant", "content": f"answer {i}"}, line=i) for i in range(3000)]
    whole = tokenise(examples, make_tokenizer()).table
    monkeypatch.setattr("kto_sweep.data.tokenise.IN_MEMORY", 20_000)
    counts: list[int] = []
    mapped = tokenise(examples, make_tokenizer(), counts.append, tmp_path / "ids").table
    assert isinstance(mapped.ids, np.memmap)
    assert (tmp_path / "ids").stat().st_size == 4 * mapped.tokens
    assert counts == [1024, 2048, 3000]
    assert (mapped.ids == whole.ids).all()
    assert mapped[2999] == whole[2999]
    assert mapped.lines.tolist() == list(range(3000))


def test_beginning_of_text_is_written_once(make_tokenizer: MakeTokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer("{{ bos_token }}" + str(make_tokenizer().chat_template), bos="<|begin|>")
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A <|end|>",
        special_tokens=[("<|begin|>", begin), ("<|end|>", tokenizer.eos_token_id)],
    )
    for row in (first := tokenise([chat(USER, ANSWER), Example("2+2=", " 4", True, 2)], tokenizer).table):
        assert row.prompt[0] == begin
        assert row.prompt.count(begin) == 1
        assert begin not in row.completion
        assert row.completion.count(tokenizer.eos_token_id) == 1
        assert tokenizer.eos_token_id not in row.prompt or row == first[0]


def test_an_answer_that_the_template_leaves_open_is_ended(make_tokenizer: MakeTokenizer) -> None:
    open_ended = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}" + GENERATE
    data = tokenise([chat(USER, ANSWER)], make_tokenizer(open_ended))
    assert decoded(data, make_tokenizer(open_ended)) == ("<|user|>Hello?<|assistant|>", "Hi.<|end|>")
    assert data.notes.ended == 1
    assert tokenise([chat(USER, ANSWER)], make_tokenizer()).notes.ended == 0


TOOLS = [{"type": "function", "function": {"name": "find"}}]
GENERATE = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
READS_ALL = (
    "{% if tools %}Tools: {{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.thinking or '' }}{{ m.content }}<|end|>{% endfor %}"
    + GENERATE
    + "{% if add_generation_prompt and not enable_thinking %}(fast){% endif %}"
)


def decoded(data: TokenisedData, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    [row] = data.table
    return tokenizer.decode(row.prompt), tokenizer.decode(row.completion)


def test_tools_reasoning_and_template_variables_reach_the_template(make_tokenizer: MakeTokenizer) -> None:
    thought: Message = {**ANSWER, "reasoning_content": "hm. "}
    tokenizer = make_tokenizer(READS_ALL)
    data = tokenise([chat(USER, thought, tools=TOOLS, enable_thinking=True)], tokenizer)
    assert decoded(data, tokenizer) == (
        f"Tools: {json.dumps(TOOLS)}<|end|><|user|>Hello?<|end|><|assistant|>",
        "hm. Hi.<|end|>",
    )
    assert not data.notes.unread
    assert texts(chat(USER, ANSWER), tokenizer)[0] == "<|user|>Hello?<|end|><|assistant|>"


@pytest.mark.parametrize("template", [CHATML, None])
def test_what_the_template_does_not_read_is_counted(
    make_tokenizer: MakeTokenizer, template: str | None
) -> None:
    thought: Message = {**ANSWER, "thinking": "hm", "weight": 1}
    rows = [
        chat(USER, thought, tools=TOOLS, depth=2),
        chat(USER, ANSWER),
        chat({**USER, "name": "A"}, ANSWER),
    ]
    assert tokenise(rows, make_tokenizer(template)).notes.unread == {
        "tools": 1,
        "depth": 1,
        "thinking of a turn": 1,
        "weight of a turn": 1,
        "name of a turn": 1,
    }


def test_a_template_that_loops_over_all_keys_of_a_turn_may_read_any(make_tokenizer: MakeTokenizer) -> None:
    template = "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}"
    assert not tokenise([chat({**USER, "mood": "x"}, ANSWER)], make_tokenizer(template)).notes.unread
