from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """A tokenizer with one token per byte and one per merge: (`a`, `b`) makes `ab` one token."""

    def make(
        template: str | None = CHATML,
        *,
        merges: Sequence[tuple[str, str]] = (),
        bos: str | None = None,
        special: Sequence[str] = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"),
    ) -> PreTrainedTokenizerBase:
        words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
        core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core, eos_token="<|end|>", bos_token=bos, extra_special_tokens=list(special)
        )
        tokenizer.chat_template = template
        return tokenizer

    return make
