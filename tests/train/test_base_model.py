import errno
import importlib.util
import re
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save, small_model
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

from kto_sweep.data.dataset import TrainingData
from kto_sweep.data.rows import TokenRow
from kto_sweep.data.table import RowTable
from kto_sweep.errors import FailureCause, TrialFailure, UsageError
from kto_sweep.home import Home
from kto_sweep.models.presets import Quantization
from kto_sweep.models.tiny import Recipe, make_tokenizer
from kto_sweep.train import tiny
from kto_sweep.train.base_model import LoadedBase, check_token_ids, load_base

CPU = torch.device("cpu")
SMALL = Recipe(vocabulary=400, tokenizer_texts=50)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer has no pad token."""
    folder = tmp_path_factory.mktemp("saved") / "small-llama"
    tokenizer = make_tokenizer(SMALL)
    tokenizer.pad_token = None
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(name: str | Path, home: Path, quantization: Quantization = "none") -> LoadedBase:
    return load_base(str(name), quantization=quantization, device=CPU, home=Home(home))


def test_a_folder_is_loaded_frozen_in_fp32_with_a_pad_token(saved: Path, tmp_path: Path) -> None:
    base = load(saved, tmp_path)
    assert base.dtype == base.model.dtype == torch.float32
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.tokenizer.pad_token == base.tokenizer.eos_token
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id


def test_the_tiny_model_is_made_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "Recipe", partial(tiny.Recipe, steps=1))  # pre-trained for less long
    base = load("tiny", tmp_path)
    assert list((tmp_path / "models").glob("tiny-*/model.safetensors"))
    assert base.tokenizer.chat_template


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_model_on_a_cpu_is_close_to_the_exact_one(
    saved: Path, tmp_path: Path, quantization: Quantization
) -> None:
    import bitsandbytes as bnb

    base = load(saved, tmp_path, quantization)
    kind = bnb.nn.Linear4bit if quantization == "4bit" else bnb.nn.Linear8bitLt
    assert isinstance(base.model.model.layers[0].mlp.up_proj, kind)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        quantised, exact = base.model(input_ids=ids).logits, load(saved, tmp_path).model(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(quantised, exact, dim=-1).min() > 0.9


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_model_can_be_trained_after_an_evaluation(
    saved: Path, tmp_path: Path, quantization: Quantization
) -> None:
    def gradient(base: LoadedBase) -> torch.Tensor:
        with torch.no_grad():
            base.model(input_ids=torch.tensor([[5, 6, 7]]))
        embedded = base.model.get_input_embeddings()(torch.tensor([[5, 6, 7]])).requires_grad_()
        base.model(inputs_embeds=embedded).logits[0, -1, 9].backward()
        assert embedded.grad is not None
        return embedded.grad.flatten()

    quantised, exact = gradient(load(saved, tmp_path, quantization)), gradient(load(saved, tmp_path))
    assert torch.nn.functional.cosine_similarity(quantised, exact, dim=0) > 0.9


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("{saved}/../small-lama", "no such model folder", "did you mean {saved}/../small-llama?"),
        ("{saved}/model.gguf", "no such model file", "check the path"),
        ("{saved}/nowhere/model.gguf", "no such model file", "the folder {saved}/nowhere does not exist"),
        ("{saved}/..", "no model in this folder (it has no config.json)", "save_pretrained"),
        ("{saved}/config.json", "not a model folder", "use the model's folder"),
    ],
)
def test_wrong_paths_give_a_hint(saved: Path, tmp_path: Path, name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(name.format(saved=saved), tmp_path)
    assert message in raised.value.message
    assert hint.format(saved=saved) in raised.value.hint


def test_a_hub_id_without_a_network_is_a_network_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TrialFailure) as raised:
        load("absent/no-such-model", tmp_path)
    assert raised.value.cause is FailureCause.NETWORK
    assert raised.value.message == "absent/no-such-model: no such local folder, and the hub cannot be reached"
    assert "a local folder or a .gguf file" in raised.value.hint


def test_weights_that_can_contain_code_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in saved.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"anything": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="has no safetensors weights"):
        load(folder, tmp_path)


def test_an_unknown_architecture_is_a_one_line_error(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text('{"model_type": "odd"}')
    with pytest.raises(UsageError, match=r"transformers cannot load it: .*`odd`") as raised:
        load(folder, tmp_path)
    assert "\n" not in raised.value.message


def test_a_broken_gguf_file_is_an_error(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF, then nothing")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(path, tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded in 4bit"):
        load(path, tmp_path, "4bit")


def test_a_gguf_file_without_its_package_gives_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as raised:
        load(tmp_path / "model.gguf", tmp_path)
    assert raised.value.hint == "pip install 'kto-sweep[gguf]'"


def change(folder: Path, name: str, weight: torch.Tensor | None) -> Path:
    """Replace a weight in a model's file, or leave it out."""
    weights = load_file(folder / "model.safetensors")
    weights.pop(name)
    if weight is not None:
        weights[name] = weight
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_weights_that_are_missing_or_of_another_shape_are_an_error(tmp_path: Path) -> None:
    """transformers would make them up, and train on."""
    name = "model.layers.1.mlp.up_proj.weight"
    missing = change(save(small_model("llama"), tmp_path / "missing"), name, None)
    with pytest.raises(UsageError, match=f"its files lack weights of LlamaForCausalLM: {name}"):
        load(missing, tmp_path)
    other = change(save(small_model("llama"), tmp_path / "other"), name, torch.zeros(40, 32))
    with pytest.raises(UsageError, match=re.escape(f"{name} is (40, 32) in its files and (48, 32) in")):
        load(other, tmp_path)


def test_what_is_no_causal_decoder_is_refused_as_what_it_is(tmp_path: Path) -> None:
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    bert = save(BertLMHeadModel(BertConfig(**sizes, num_attention_heads=2)), tmp_path / "bert")
    with pytest.raises(UsageError, match="BertLMHeadModel is an encoder"):
        load(bert, tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UsageError, match="adapters"):
        load(tmp_path / "adapter", tmp_path)


def test_a_failing_device_or_drive_says_nothing_about_the_model(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (
        torch.AcceleratorError("CUDA error: unspecified"),
        OSError(errno.EIO, "Input/output error"),
    ):
        monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", Mock(side_effect=error))
        with pytest.raises(type(error)) as raised:
            load(saved, tmp_path)
        assert raised.value is error


def test_a_row_with_a_token_beyond_the_embedding_is_an_error(saved: Path, tmp_path: Path) -> None:
    base = load(saved, tmp_path)
    rows = base.model.get_input_embeddings().weight.shape[0]

    def data(token: int) -> TrainingData:
        table = RowTable.from_rows([TokenRow([1, 2], [3, token], True, 0), TokenRow([1], [2], False, 1)])
        return TrainingData.paired("rows", table, table, 16)

    check_token_ids(base, data(rows - 1))
    with pytest.raises(UsageError, match=f"a row has token {rows} .*, and the model has {rows} embeddings"):
        check_token_ids(base, data(rows))
