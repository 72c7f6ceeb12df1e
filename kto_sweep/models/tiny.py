"""The recipe of the `tiny` base model, and its tokenizer; without torch."""

import hashlib
import inspect
import itertools
import json
from dataclasses import asdict, dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kto_sweep.models import tiny_corpus

_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_END, _PAD = "<|end|>", "<|pad|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Recipe:
    """Every setting of the tiny model; together with the corpus, it determines the weights."""

    hidden: int = 96
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    vocabulary: int = 1200
    tokenizer_texts: int = 2000
    """Conversations that the tokenizer is trained on."""
    steps: int = 150
    """Pre-training steps."""
    batch: int = 8
    """Sequences per pre-training step."""
    length: int = 96
    """Tokens per pre-training sequence."""
    learning_rate: float = 3e-3
    seed: int = 0

    @property
    def name(self) -> str:
        """Folder name of the model; it changes with the recipe and the corpus."""
        content = json.dumps(asdict(self)) + inspect.getsource(tiny_corpus) + _TEMPLATE
        return f"tiny-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the corpus, with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[_PAD, _END, *_ROLES],
        show_progress=False,
    )
    conversations = itertools.islice(tiny_corpus.conversations(recipe.seed), recipe.tokenizer_texts)
    core.train_from_iterator((turn["content"] for turns in conversations for turn in turns), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token=_PAD, eos_token=_END, extra_special_tokens=list(_ROLES)
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
