from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from kto_sweep.data.rows import Example, Message
from kto_sweep.data.tokenise import tokenise, truncate

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]

USER: Message = {"role": "user", "content": "Hello?"}
ANSWER: Message = {"role": "assistant", "content": "Hi."}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "find", "arguments": {"q": "x"}}}],
}


def chat(*turns: Message, label: bool = True, line: int = 1) -> Example:
    return Example(turns[:-1], turns[-1:], label, line)


def texts(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int = 1000) -> tuple[str, str]:
    data = tokenise([example], tokenizer, max_length)
    assert not data.bad
    [row] = data.rows
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
    [row] = tokenise([Example("a", "b", True, 1)], tokenizer, 100).rows
    assert row.prompt == tokenizer("a").input_ids
    assert row.completion == [*tokenizer("b").input_ids, tokenizer.eos_token_id]


def test_template_rows_whose_boundary_tokens_merge_keep_the_prompt(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}{{ 'a' if m['role'] == 'assistant' }}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    tokenizer = make_tokenizer(template, merges=[("a", "b")])
    [row] = tokenise([chat(USER, {"role": "assistant", "content": "b"})], tokenizer, 100).rows
    # The conversation is `Hello?ab`, where `ab` is one token; the prompt for generation is `Hello?a`.
    assert row.prompt == tokenizer("Hello?a").input_ids
    assert row.completion == tokenizer("b").input_ids


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
    assert texts(chat(USER, USER, ANSWER), tokenizer) == ("Hello?\n\nHello?|", "Hi.|")
    rejected = tokenise([chat(ANSWER, ANSWER, line=7)], tokenizer, 100)
    assert [(row.line, row.why) for row in rejected.bad] == [
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


def test_groups_are_prompts_before_truncation(make_tokenizer: MakeTokenizer) -> None:
    other: Message = {"role": "user", "content": "Bye?"}
    long: Message = {"role": "assistant", "content": "x" * 50}
    data = tokenise([chat(USER, ANSWER), chat(other, ANSWER), chat(USER, long)], make_tokenizer(), 16)
    assert [row.group for row in data.rows] == [0, 1, 0]
    assert data.rows[0].prompt != data.rows[2].prompt


def test_long_rows_are_truncated_and_counted(make_tokenizer: MakeTokenizer) -> None:
    data = tokenise(
        [chat(USER, {"role": "assistant", "content": "x" * 50}), chat(USER, ANSWER)], make_tokenizer(), 20
    )
    assert [len(row.prompt) + len(row.completion) for row in data.rows] == [20, 15]
    assert (data.cut_prompts, data.cut_completions) == (0, 1)


@pytest.mark.parametrize("max_length", [2, 3, 7, 16, 40])
@pytest.mark.parametrize("prompt_length", [1, 3, 20, 100])
@pytest.mark.parametrize("completion_length", [1, 3, 20, 100])
@pytest.mark.parametrize("begin", [None, 0])
def test_truncate_keeps_the_prompts_end_and_the_completions_beginning(
    max_length: int, prompt_length: int, completion_length: int, begin: int | None
) -> None:
    prompt = list(range(prompt_length))
    completion = list(range(1000, 1000 + completion_length))
    short_prompt, short_completion = truncate(prompt, completion, max_length, begin)
    assert len(short_prompt) + len(short_completion) == min(max_length, prompt_length + completion_length)
    assert short_prompt
    assert short_completion == completion[: len(short_completion)]
    assert short_completion
    kept = short_prompt[1:] if begin is not None and len(short_prompt) < prompt_length else short_prompt
    assert kept == prompt[prompt_length - len(kept) :]
    assert len(short_prompt) >= min(prompt_length, max_length // 2)
    if begin is not None and len(short_prompt) > 1:
        assert short_prompt[0] == begin


def test_beginning_of_text_is_written_once(make_tokenizer: MakeTokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer("{{ bos_token }}" + str(make_tokenizer().chat_template), bos="<|begin|>")
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A <|end|>",
        special_tokens=[("<|begin|>", begin), ("<|end|>", tokenizer.eos_token_id)],
    )
    data = tokenise([chat(USER, ANSWER), Example("2+2=", " 4", True, 2)], tokenizer, 100)
    for row in data.rows:
        assert row.prompt[0] == begin
        assert row.prompt.count(begin) == 1
        assert begin not in row.completion
        assert row.completion.count(tokenizer.eos_token_id) == 1
        assert tokenizer.eos_token_id not in row.prompt or row is data.rows[0]
