"""Base models: found, loaded, frozen and fingerprinted, with a clear error when that fails."""

import hashlib
import importlib.util
import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from kto_sweep.data.dataset import TrainingData
from kto_sweep.errors import KtoSweepError, UsageError
from kto_sweep.home import Home
from kto_sweep.models.model_checks import RESIZE
from kto_sweep.models.model_config import check_folder
from kto_sweep.models.model_kind import kind_error, not_causal
from kto_sweep.models.presets import IN_FP8, Quantization, names_a_path
from kto_sweep.paths import user_path
from kto_sweep.plan.gpus import NoFp8Error
from kto_sweep.train.load_errors import (
    explained,
    nearest_path,
    require_all_weights,
    says_nothing_about_the_model,
)
from kto_sweep.train.load_progress import LoadProgress, no_progress, reported_loading
from kto_sweep.train.packed.fp8 import multiply_in_fp8, supports_fp8
from kto_sweep.train.tiny import tiny_model

TINY = "tiny"
"""The model that is made locally."""


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory: all weights frozen, in evaluation mode, without dropout."""

    name: str
    """As in the trial."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    """Of the weights that are not quantised."""
    quantization: Quantization


@dataclass(frozen=True)
class _Source:
    """What transformers loads."""

    name: str
    """Hub id or folder."""
    gguf_file: str | None = None
    """File in the folder."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of every from_pretrained."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of the model's: GGUF weights are unpacked, as packed ones cannot train."""
        if self.gguf_file is None or not hasattr(transformers, "GgufConfig"):
            return self.arguments
        return {**self.arguments, "quantization_config": transformers.GgufConfig(dequantize=True)}


def load_base(
    name: str,
    *,
    quantization: Quantization,
    device: torch.device,
    home: Home,
    attn_implementation: str | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    shards: int = 1,
    progress: LoadProgress = no_progress,
) -> LoadedBase:
    """The model `name`, frozen, on `device`: `tiny`, a .gguf file, a local folder or a hub id.

    `dtype`: by default fp32 on a CPU, bf16 on CUDA. With several `shards` the weights are divided among as
    many processes (FSDP), which must all call this and every forward of the model. Weights are read from
    safetensors or GGUF only: other formats can contain code. `progress` may be called by another thread.

    Raises UsageError (no such model, not a model, no access) and TrialFailure (the hub cannot be reached).
    """
    _quieten()
    source = _find(name, home, progress)
    if source.gguf_file is not None and quantization not in ("none", "fp8"):
        raise UsageError(
            f"{name}: a .gguf file cannot be loaded in {quantization}",
            hint="quantization: none, or the same model as a folder or hub id",
        )
    in_fp8 = quantization in IN_FP8
    if in_fp8 and not supports_fp8(device):
        raise NoFp8Error(quantization, _device_name(device))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    with nullcontext() if name == TINY else reported_loading(name, progress):
        try:
            config = AutoConfig.from_pretrained(
                source.name, trust_remote_code=trust_remote_code, **source.arguments
            )
            if (error := kind_error(name, config.to_dict())) is not None:
                raise error
            tokenizer = AutoTokenizer.from_pretrained(
                source.name, trust_remote_code=trust_remote_code, **source.arguments
            )
            model, report = _model_class(name, config).from_pretrained(
                source.name,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported with the missing ones
                **source.model_arguments,
                **_placement(quantization, device, dtype, shards),
                **({} if attn_implementation is None else {"attn_implementation": attn_implementation}),
            )
        except KtoSweepError:
            raise
        except Exception as error:  # a damaged file can raise anything
            if says_nothing_about_the_model(error):
                raise
            raise explained(name, error) from error
    require_all_weights(name, model, report)
    if source.gguf_file is not None:
        model.name_or_path = name  # the folder alone does not name the file
        quantizer: Any = getattr(model, "hf_quantizer", None)
        if quantizer is not None:  # its weights are unpacked: an ordinary model from here on
            quantizer.remove_quantization_config(model)
    _agree_on_special_tokens(model, tokenizer)
    _without_dropout(model)
    _keep_trainable(model)
    if in_fp8:
        multiply_in_fp8(model, device)
    model.requires_grad_(False)
    model.train(False)
    return LoadedBase(name, model, tokenizer, dtype, quantization)


def _model_class(name: str, config: PreTrainedConfig) -> Any:
    """What loads the model: of the class that its checkpoint is of, so that weights keep their names.

    Raises UsageError for a model that transformers has no language model class for.
    """
    kinds: list[Any] = [AutoModelForCausalLM, AutoModelForImageTextToText]
    stored = next(iter(config.architectures or ()), "")
    fitting = [kind for kind in kinds if type(config) in kind._model_mapping]
    if not fitting and not hasattr(config, "auto_map"):
        raise not_causal(name, config.to_dict())
    # Some have both: a text model alone, and one that also reads images, such as Qwen 3.5.
    exact = (kind for kind in fitting if kind._model_mapping[type(config)].__name__ == stored)
    return next(exact, fitting[0] if fitting else AutoModelForCausalLM)


def check_token_ids(base: LoadedBase, data: TrainingData) -> None:
    """Raise UsageError for rows with a token that the model has no embedding for.

    The forward would fail on it: on a GPU with an error that says nothing, and ends the process.
    """
    embedding: Any = base.model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    largest = max(int(part.ids.max()) for part in (data.train, data.eval) if part.ids is not None)
    if largest >= rows:
        raise UsageError(
            f"{base.name}: a row has token {largest} ({base.tokenizer.convert_ids_to_tokens(largest)}), "
            f"and the model has {rows} embeddings",
            hint=f"use {RESIZE}",
        )


def _quieten() -> None:
    """Silence messages that users can do nothing about."""
    # Several progress bars per model, written to log files.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # One line per 8-bit matrix product, about rounding its inputs to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _find(name: str, home: Home, progress: LoadProgress) -> _Source:
    """What to load for `name`. Raises UsageError for a file or folder that does not exist or is no model."""
    if name == TINY:
        return _Source(str(tiny_model(home.models, progress=progress)))
    path = user_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"{name}: no such model file", hint=nearest_path(path))
        if importlib.util.find_spec("gguf") is None:
            raise UsageError(
                f"{name}: .gguf files need a package that is not installed",
                hint="pip install 'kto-sweep[gguf]'",
            )
        return _Source(str(path.parent), path.name)
    if path.is_dir():
        check_folder(path)
        return _Source(str(path))
    if path.is_file():
        raise UsageError(f"{name}: not a model folder or .gguf file", hint="use the model's folder")
    if names_a_path(name):
        raise UsageError(f"{name}: no such model folder", hint=nearest_path(path))
    return _Source(name)


def _placement(
    quantization: Quantization, device: torch.device, dtype: torch.dtype, shards: int
) -> dict[str, Any]:
    """Arguments of from_pretrained for the weights' precision and device."""
    if shards > 1:
        from transformers.distributed.configuration_utils import DistributedConfig  # not in older versions

        return {"distributed_config": DistributedConfig(fsdp_size=shards)}
    # Weights that become FP8 are put on the device one by one: it never holds the model in 16 bits.
    arguments: dict[str, Any] = {"device_map": {"": "cpu" if quantization == "fp8" else device}}
    if quantization == "8bit":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    elif quantization in ("4bit", "4bit-fp8"):
        # NF4 with double quantisation, as in QLoRA (arXiv 2305.14314).
        arguments["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return arguments


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def _agree_on_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Copy the tokenizer's BOS, EOS and padding tokens to the model's configuration, as trainers expect.

    A tokenizer without a padding token gets any token: padding is masked everywhere.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    configs: list[Any] = [model.config.get_text_config(), model.generation_config]
    for config in configs:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token, known = getattr(tokenizer, name), getattr(config, name, None)
            if config is None or token is None or token == known:
                continue
            # Some models have several EOS tokens: keep them all.
            setattr(config, name, sorted({token, *known}) if isinstance(known, list) else token)


def _keep_trainable(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from converting 4-bit weights on a CPU to a layout without gradients.

    Its Linear4bit does so at the first forward in evaluation mode; training would then be silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _without_dropout(model: PreTrainedModel) -> None:
    """Disable the base model's dropout: its log-probs are the reference. Adapters have their own."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


_CHUNK = 2**22
"""Words hashed at once."""

_VOLATILE = {
    "attn_implementation",
    "distributed_config",
    "dtype",
    "name_or_path",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Configuration that log-probs do not depend on, or that the weights imply."""


def fingerprint_model(model: PreTrainedModel) -> str:
    """64 hex digits that change with any bit of any weight and with the configuration; the same on all
    devices.

    Reads every weight once, at memory speed. Attached adapters are not included.
    """
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith("_") and key not in _VOLATILE
    }
    state = {name: _whole(tensor) for name, tensor in model.state_dict().items()}
    factors = _factors(min(_CHUNK, max(tensor.nbytes for tensor in state.values())), model.device)
    hashes = torch.stack([_hash(tensor, factors) for tensor in state.values()]).tolist()
    described = [
        [name, str(tensor.dtype), list(tensor.shape), number]
        for (name, tensor), number in zip(state.items(), hashes, strict=True)
    ]
    text = json.dumps([class_name(model), config, described], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def class_name(model: PreTrainedModel) -> str:
    """The architecture's class: FSDP makes a subclass of it for a sharded model."""
    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


def _whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded: all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _factors(n: int, device: torch.device) -> Tensor:
    """`n` odd pseudo-random numbers: int64 (n,)."""
    index = torch.arange(n, device=device)
    return (index * 0x9E3779B97F4A7C1 ^ (index * 0x3C6EF372FE94F82B >> 29)) | 1


@torch.no_grad()
def _hash(tensor: Tensor, factors: Tensor) -> Tensor:
    """The sum of the words times odd factors, modulo 2^64: one changed word always changes it."""
    # The format of 4-bit layers is described by tensors on the host.
    data = tensor.detach().to(factors.device).contiguous().view(-1)
    size = data.element_size()
    words = data.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    total = torch.zeros((), dtype=torch.int64, device=factors.device)
    for chunk in torch.split(words, len(factors)):
        total = total * 0x5851F42D4C957F2D + (chunk.long() * factors[: len(chunk)]).sum()
    return total
