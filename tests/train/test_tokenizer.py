import importlib.util
from pathlib import Path

import huggingface_hub.constants
import pytest
from tokenizers import pre_tokenizers

from kto_sweep.errors import UsageError
from kto_sweep.models.tiny import Recipe, make_tokenizer
from kto_sweep.models.tokenizer import load_tokenizer

SMALL = Recipe(vocabulary=400, tokenizer_texts=50)
TEXT = "Where is my parcel?"


def test_a_folder_with_only_a_tokenizer(tmp_path: Path) -> None:
    made = make_tokenizer(SMALL)
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded(TEXT).input_ids == made(TEXT).input_ids
    assert loaded.chat_template == made.chat_template


def test_tiny_is_the_tokenizer_of_the_tiny_model() -> None:
    assert load_tokenizer("tiny")(TEXT).input_ids == make_tokenizer(Recipe())(TEXT).input_ids


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "small.gguf"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_vocab_size(len(alphabet) + 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|end|>", *alphabet, "ab"])
    writer.add_token_types([3] + [1] * (len(alphabet) + 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    ids = load_tokenizer(str(path))("abc", add_special_tokens=False).input_ids
    assert ids == [len(alphabet) + 1, 1 + alphabet.index("c")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/absent.gguf", "no such model file"),
        ("{folder}/absent", "no such model folder"),
        ("./absent", "no such model folder"),
        ("{folder}/broken/tokenizer.json", "no such model folder"),
        ("{folder}", "no tokenizer in this folder"),
        ("{folder}/broken", "could not load its tokenizer"),
        ("{folder}/broken.gguf", "could not load its tokenizer"),
    ],
)
def test_a_path_without_a_tokenizer_is_named(tmp_path: Path, name: str, message: str) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, then nothing")
    name = name.format(folder=tmp_path)
    with pytest.raises(UsageError) as raised:
        load_tokenizer(name)
    assert raised.value.message.startswith(f"{name}: {message}")
    assert "\n" not in raised.value.message
    assert raised.value.hint


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="absent/no-such-model: could not load its tokenizer") as raised:
        load_tokenizer("absent/no-such-model")
    assert "network" in raised.value.hint


def test_a_gguf_file_without_its_package_gives_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as raised:
        load_tokenizer(str(tmp_path / "model.gguf"))
    assert raised.value.hint == "pip install 'kto-sweep[gguf]'"
