"""Whether a model can be trained as configured, from its files' headers; loads no weights, and no torch.

Only what is known is reported: nothing about a model that is neither on this machine nor on the hub.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kto_sweep.errors import Problem, Severity, UsageError
from kto_sweep.models.hub import as_object, read_json
from kto_sweep.models.model_config import (
    CONFIG,
    find_config,
    find_file,
    find_generation_config,
    is_only_tokenizer,
    text_part,
)
from kto_sweep.models.model_kind import is_multimodal, kind_error, not_causal
from kto_sweep.models.presets import PRESETS, Quantization, names_a_path
from kto_sweep.models.weights import Shapes, check_files, embedding_rows, is_embedding, weight_shapes
from kto_sweep.paths import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALL_LINEAR = "all-linear"
Targets = str | Sequence[str]

_PRESETS = {preset.model: preset for preset in PRESETS.values()}

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
"""Names of the number of positions in configurations."""

_STATE_SPACE = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_NOT_ADAPTED = frozenset({"out_proj", "conv1d"})
"""Layers of state-space models whose weights the kernels read past an adapter; PEFT refuses them."""

_NOT_LINEAR = frozenset({"lm_head", "embed_out", "output", "wpe", "embed_positions", "score"})
"""Last parts of names of weights that are matrices of no layer with adapters."""


def max_positions(model: str) -> int | None:
    """Tokens that the model can hold, extended by its rope scaling; None: unknown or unlimited."""
    if model in _PRESETS:
        return _PRESETS[model].positions
    try:
        return _positions(text_part(find_config(model)))
    except UsageError:
        return None


def held_max_length(model: str, max_length: int) -> int:
    """`max_length`, or the model's positions if they are fewer: what rows are cut to."""
    positions = max_positions(model)
    return max_length if positions is None else min(max_length, positions)


def stop_tokens(model: str, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids of the tokens after which generation with the model stops."""
    ids: set[int] = set()
    sources: list[Any] = [tokenizer.eos_token_id]
    if model != PRESETS["tiny"].model:  # which is made here: it has no files before that
        try:
            config = find_config(model)
        except UsageError:  # only a tokenizer
            config = {}
        sources += [config.get("eos_token_id"), text_part(config).get("eos_token_id")]
        sources.append(find_generation_config(model).get("eos_token_id"))
    for source in sources:
        ids |= {
            id for id in (source if isinstance(source, list | tuple) else [source]) if isinstance(id, int)
        }
    return frozenset(ids)


def forbidden_targets(model_type: str) -> frozenset[str]:
    """Last parts of the names of layers that must not have adapters."""
    return _NOT_ADAPTED if model_type in _STATE_SPACE else frozenset()


def check_model(
    model: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    max_length: int,
    lora_targets: Targets = ALL_LINEAR,
    full_finetune: bool = False,
    quantization: Quantization = "none",
) -> list[Problem]:
    """The problems of training `model` so; each has the parameter as its path.

    `tokenizer` None: the model's, if its files are on this machine.
    """
    if model in _PRESETS:
        preset = _PRESETS[model]
        stored = {"quantization_config": {"quant_method": preset.published_in}}
        return [
            *_check_length(preset.positions, max_length),
            *_check_quantization(stored, quantization, full_finetune=full_finetune),
        ]
    if names_a_path(model) and not user_path(model).exists():
        return []  # it may be on the machine that trains
    try:
        config = find_config(model)
        if (error := kind_error(model, config)) is not None:
            raise error
        check_files(model)
        _check_loadable(model, config, transformers_is_loaded=tokenizer is not None)
    except UsageError as error:
        # Lint counts tokens with a tokenizer alone.
        severity = Severity.WARNING if is_only_tokenizer(model) else Severity.ERROR
        return [Problem(("model",), error.message, hint=error.hint, severity=severity)]
    sizes, shapes = text_part(config), weight_shapes(model)
    problems = [
        *_check_found(model, config),
        *_check_vocabulary(model, tokenizer, sizes, shapes),
        *_check_length(_positions(sizes), max_length),
        *_check_quantization(config, quantization, full_finetune=full_finetune),
        *_check_senses(model, config),
    ]
    if not full_finetune:
        problems += _check_targets(sizes, shapes, lora_targets, quantized="quantization_config" in config)
    return problems


def _check_found(model: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    """A hub id without a configuration: it could not be checked, or is not there."""
    if config or user_path(model).exists():
        return
    if read_json(model, CONFIG) is None:
        yield Problem(
            ("model",),
            f"could not reach the hub to check {model}",
            "The trials will need it.",
            "on the box that trains, connect to the network or download the model before",
            Severity.NOTE,
        )
    else:
        yield Problem(
            ("model",),
            f"{model}: not a model that you can access on the hub",
            "Its trials would fail.",
            "check the name; for a gated or private model, request access and set HF_TOKEN",
            Severity.WARNING,
        )


def _positions(sizes: Mapping[str, Any]) -> int | None:
    attention = sizes.get("attn_config")  # MPT
    nested = attention if isinstance(attention, Mapping) else {}
    encoding = sizes.get("position_embedding_type")
    if sizes.get("alibi") or nested.get("alibi") or encoding in ("alibi", "nope"):
        return None
    trained = next((n for name in _POSITIONS if isinstance(n := sizes.get(name), int) and n > 0), None)
    if trained is None:
        return None
    ropes = [sizes.get("rope_scaling"), sizes.get("rope_parameters")]
    # One set of parameters, or one for each type of layer (Gemma 3).
    ropes += [nested for rope in ropes if isinstance(rope, Mapping) for nested in rope.values()]
    return max([trained, *(_scaled(rope, trained) for rope in ropes if isinstance(rope, Mapping))])


def _scaled(rope: Mapping[str, Any], trained: int) -> int:
    """Positions with a rope scaling; some configurations count them in `trained` already, hence the max."""
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not isinstance(factor, int | float):
        return 0
    return int(factor * (original if isinstance(original, int) else trained))


def _check_length(positions: int | None, max_length: int) -> Iterator[Problem]:
    if positions is not None and max_length > positions:
        yield Problem(
            ("max_length",),
            f"{max_length} is more than the model can hold: rows are cut to its {positions} positions",
            hint=f"max_length: {positions}, or a model with a longer context",
            severity=Severity.NOTE,
        )


def _check_senses(model: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    if is_multimodal(config):
        what = f"{model} is trained as a text model: its layers for images or sound stay as they are"
        yield Problem(("model",), what, severity=Severity.NOTE)


def _check_loadable(model: str, config: Mapping[str, Any], *, transformers_is_loaded: bool) -> None:
    """Raise UsageError for an architecture that the installed transformers does not have."""
    path = user_path(model)
    gguf = path.suffix == ".gguf"
    if not config or not (transformers_is_loaded or gguf or "auto_map" in config):
        return  # importing it takes seconds
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    name = str(path.parent) if gguf else str(path) if path.is_dir() else model
    arguments = {"gguf_file": path.name} if gguf else {}
    try:
        family = AutoConfig.from_pretrained(
            name, trust_remote_code=False, local_files_only=True, **arguments
        ).model_type
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise unknown_architecture(model, error) from error
    except OSError:
        return  # not in the hub's cache
    classes = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    if not any(family in names for names in classes):
        raise not_causal(model, config)


def unknown_architecture(model: str, error: Exception) -> UsageError:
    """The error for a model that the installed transformers cannot load."""
    reason = str(error).strip().partition("\n")[0] or repr(error)
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{model}: needs custom Python code, which kto-sweep does not run",
            hint="choose a model with an architecture that transformers includes",
        )
    hint = "pip install --upgrade transformers, or choose another model"
    if model.endswith(".gguf"):
        hint = "use the model's folder or hub id with safetensors weights"
    return UsageError(f"{model}: transformers cannot load it: {reason}", hint=hint)


# The tokenizer against the embedding.


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer's ids."""

    size: int
    """The highest id plus one."""
    added: Mapping[int, str]
    """Tokens beside those of the tokenizer's model."""
    used: str
    """The chat template and the tokens that mark begin and end: what occurs in every row."""


def _vocabulary(model: str, tokenizer: "PreTrainedTokenizerBase | None") -> _Vocabulary | None:
    if tokenizer is not None:
        added = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
        template = tokenizer.chat_template or ""
        marks = [tokenizer.bos_token, tokenizer.eos_token]
        size = max([tokenizer.vocab_size - 1, *added], default=0) + 1
    else:
        file = find_file(model, "tokenizer.json")
        if file is None:
            return None
        from tokenizers import Tokenizer  # transformers takes seconds to import, this does not

        try:
            core = Tokenizer.from_file(str(file))
        except Exception:  # whatever is wrong with it is reported when it is loaded
            return None
        added = {id: token.content for id, token in core.get_added_tokens_decoder().items()}
        size = max([core.get_vocab_size(with_added_tokens=False) - 1, *added], default=0) + 1
        settings = _read(model, "tokenizer_config.json")
        marks = [settings.get("bos_token"), settings.get("eos_token")]
        written = find_file(model, "chat_template.jinja")
        template = written.read_text(encoding="utf-8") if written else settings.get("chat_template") or ""
    return _Vocabulary(size, added, f"{template} {marks}")


def _read(model: str, file: str) -> Mapping[str, Any]:
    path = find_file(model, file)
    try:
        return as_object(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}


def _check_vocabulary(
    model: str, tokenizer: "PreTrainedTokenizerBase | None", sizes: Mapping[str, Any], shapes: Shapes
) -> Iterator[Problem]:
    rows = embedding_rows(shapes) or sizes.get("vocab_size")
    vocabulary = _vocabulary(model, tokenizer)
    if not isinstance(rows, int) or vocabulary is None or vocabulary.size <= rows:
        return
    beyond = [token for id, token in sorted(vocabulary.added.items()) if id >= rows]
    always = [token for token in beyond if token in vocabulary.used]
    # Some published models have a token too many that no text uses (Gemma 3 1B: its image token).
    severity = Severity.ERROR if always or not beyond else Severity.WARNING
    named = f" ({', '.join((always or beyond)[:3])})" if beyond else ""
    yield Problem(
        ("model",),
        f"{model}: its tokenizer has ids up to {vocabulary.size - 1}{named}, and it has {rows} embeddings",
        "A row with such a token cannot be trained.",
        RESIZE,
        severity,
    )


RESIZE = (
    "the tokenizer of the model, or its embeddings made larger: "
    "model.resize_token_embeddings(len(tokenizer)); model.save_pretrained(folder)"
)


# Adapters and precision.


def _check_targets(
    sizes: Mapping[str, Any], shapes: Shapes, targets: Targets, *, quantized: bool
) -> Iterator[Problem]:
    here, family = ("lora_targets",), str(sizes.get("model_type", ""))
    experts = int(sizes.get("num_local_experts") or sizes.get("num_experts") or 1)
    wanted = [] if targets == ALL_LINEAR else [targets] if isinstance(targets, str) else list(targets)
    linear = _linear_layers(shapes)
    forbidden = forbidden_targets(family)
    known = sorted({name.rpartition(".")[2] for name in linear} - forbidden)
    hint = f"{ALL_LINEAR}, or some of {', '.join(known)}" if known else ALL_LINEAR
    if not wanted and experts > 1:
        what = f"{ALL_LINEAR}: attention layers get adapters, the {experts} experts of a layer do not"
        why = "The weights of all experts of a layer are one tensor, not linear layers."
        yield Problem(here, what, why, severity=Severity.NOTE)
    for target in wanted:
        if target.rpartition(".")[2] in forbidden:
            why = f"Its weights are read past the adapter in a {family} model."
            yield Problem(here, f"{target} cannot have adapters", why, hint)
        # Names in files of mixtures of experts and of quantized weights are not those of the layers.
        elif linear and experts == 1 and not quantized and not any(matches(name, target) for name in linear):
            yield Problem(here, f"the model has no linear layer named {target}", hint=hint)


def _linear_layers(shapes: Shapes) -> list[str]:
    names = [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight")
    ]
    return [name for name in names if not is_embedding(name) and name.rpartition(".")[2] not in _NOT_LINEAR]


def matches(layer: str, target: str) -> bool:
    """Whether a name in lora_targets means this layer: PEFT's rule, whole parts of the name."""
    return layer == target or layer.endswith(f".{target}")


def _check_quantization(
    config: Mapping[str, Any], quantization: Quantization, *, full_finetune: bool
) -> Iterator[Problem]:
    stored = config.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, Mapping) else None
    if not method:
        return
    what = f"the model's weights are quantized already ({method})"
    if quantization != "none" and method != "bitsandbytes":
        yield Problem(
            ("quantization",), what, f"They cannot be loaded in {quantization}.", "quantization: none"
        )
    if full_finetune and method in ("bitsandbytes", "gptq", "awq"):
        why = "Quantized weights cannot be trained."
        yield Problem(("full_finetune",), what, why, "full_finetune: false, or the model in 16 bit")
