"""Which models are causal decoders that KTO can train, and what the others are; without torch."""

import re
from collections.abc import Mapping
from typing import Any

from kto_sweep.errors import UsageError
from kto_sweep.models.model_config import USE_CAUSAL, text_part

_TASKS = {
    "SequenceClassification": "a classification or reward model (a score in place of an output layer)",
    "RewardModel": "a reward model (a score in place of an output layer)",
    "TokenClassification": "a token classification model",
    "QuestionAnswering": "a question answering model",
    "MultipleChoice": "a multiple choice model",
    "MaskedLM": "an encoder (masked language model)",
    "PreTraining": "an encoder (masked language model)",
    "NextSentencePrediction": "an encoder",
    "ImageClassification": "an image model",
    "CTC": "a speech recognition model",
}
"""By the end of a class's name."""

_ENCODERS = frozenset(
    {
        "albert", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "deberta",
        "deberta-v2", "distilbert", "electra", "ernie", "megatron-bert", "modernbert", "mpnet", "nomic_bert",
        "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta",
        "xlm-roberta-xl", "xlnet", "xmod",
    }
)  # fmt: skip
"""`model_type`s in which a token sees those after it, unless the configuration has is_decoder."""

_ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5", "t5encoder"})
"""Those whose GGUF header does not say so."""

_DIFFUSION = frozenset({"llada", "dream", "sdar"})


def kind_error(model: str, config: Mapping[str, Any]) -> UsageError | None:
    """Why the model with this configuration cannot be trained; None: it can, as far as that shows."""
    sizes = text_part(config)
    family = str(sizes.get("model_type", config.get("model_type", "")))
    what = _other_kind(config, sizes, family, _class_name(config))
    return None if what is None else not_causal(model, config, f"{what}, not")


def not_causal(model: str, config: Mapping[str, Any], what: str = "not") -> UsageError:
    """The error for a model that is `what` a causal language model: `an encoder, not`."""
    name = _class_name(config) or "this"
    return UsageError(f"{model}: {name} is {what} a causal language model", hint=USE_CAUSAL)


def _class_name(config: Mapping[str, Any]) -> str:
    return str(next(iter(config.get("architectures") or ()), "") or config.get("model_type", ""))


def _other_kind(config: Mapping[str, Any], sizes: Mapping[str, Any], family: str, name: str) -> str | None:
    if config.get("is_encoder_decoder") or family in _ENCODER_DECODERS:
        return "an encoder-decoder model"
    task = re.search(rf"({'|'.join(_TASKS)})$", name)
    if task is not None:
        return _TASKS[task[1]]
    if "diffusion" in f"{family} {config.get('model_type', '')}" or family.lower() in _DIFFUSION:
        return "a diffusion model"
    bidirectional = sizes.get("use_bidirectional_attention") in (True, "all")
    if bidirectional or (family in _ENCODERS and not sizes.get("is_decoder")):
        return "an encoder (a token sees those after it)"
    headless = re.search(r"(?<!LMHead)Model$", name) and "auto_map" not in config
    if headless and (sizes.get("tie_word_embeddings") is False or is_multimodal(config)):
        return "an embedding model (it has no output layer)"
    return None


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Whether the model also reads images or sound."""
    return any(f"{sense}_config" in config for sense in ("vision", "audio"))
