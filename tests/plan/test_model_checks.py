"""What is known about a base model before its weights are loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from small_models import POSITIONS, VOCABULARY, save, small_model, small_tokenizer
from transformers import (
    BartConfig,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from kto_sweep.errors import Problem, Severity
from kto_sweep.models.model_checks import check_model, held_max_length, max_positions, stop_tokens
from kto_sweep.models.presets import PRESETS
from kto_sweep.train.packed.lora import AdapterSpec
from kto_sweep.train.trial.adapters import save_adapters

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


def check(model: Path | str, **settings: Any) -> list[Problem]:
    return check_model(str(model), None, **{"max_length": POSITIONS, **settings})


def error(model: Path | str, **settings: Any) -> Problem:
    """The only error."""
    [problem] = [p for p in check(model, **settings) if p.severity is Severity.ERROR]
    return problem


def configured(folder: Path, **config: Any) -> str:
    """A folder with nothing but a configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_model("llama"), tmp_path_factory.mktemp("models") / "llama")


def test_a_model_that_fits_has_no_problems(llama: Path) -> None:
    assert check(llama) == []
    assert check_model(str(llama), small_tokenizer(), max_length=16, lora_targets=["q_proj"]) == []


# Length.


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        (
            {  # Llama 3.1: the extended length is given, and the factor is of another one
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192
                },
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096
                },
            },
            131072,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        (
            {  # Phi 3
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
            },
            131072,
        ),
        (
            {  # Gemma 3: one set of parameters for each type of layer
                "text_config": {
                    "max_position_embeddings": 8192,
                    "rope_parameters": {
                        "full_attention": {"rope_type": "linear", "factor": 4.0},
                        "sliding_attention": {"rope_type": "default"},
                    },
                }
            },
            32768,
        ),
        ({"model_type": "bloom"}, None),
        ({"model_type": "mpt", "max_seq_len": 2048, "attn_config": {"alibi": True}}, None),
        ({"model_type": "mpt", "max_seq_len": 2048, "attn_config": {"alibi": False}}, 2048),
        ({"model_type": "falcon", "max_position_embeddings": 2048, "alibi": True}, None),
        ({"max_position_embeddings": 131072, "position_embedding_type": "nope"}, None),
    ],
)  # fmt: skip
def test_positions_count_the_rope_scaling(
    tmp_path: Path, config: dict[str, Any], positions: int | None
) -> None:
    assert max_positions(configured(tmp_path, **config)) == positions


def test_the_positions_of_presets_need_no_network(hub: list[str]) -> None:
    assert all(preset.max_length <= preset.positions for preset in PRESETS.values())
    assert max_positions("meta-llama/Llama-2-13b-chat-hf") == 4096
    assert max_positions("tiny") == 4096
    assert hub == []


def test_an_unknown_model_is_at_most_noted_and_has_no_positions(
    hub: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for model in ("org/unknown", str(tmp_path / "on-the-gpu-box")):
        assert all(problem.severity is Severity.NOTE for problem in check(model))
        assert max_positions(model) is None
        assert held_max_length(model, 2048) == 2048


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_max_length_beyond_the_positions_is_noted(tmp_path: Path, kind: str) -> None:
    folder = str(save(small_model(kind), tmp_path / kind))
    assert check(folder, max_length=POSITIONS) == []
    [note] = check(folder, max_length=2048)
    assert (note.severity, note.path) == (Severity.NOTE, ("max_length",))
    assert note.what == "2048 is more than the model can hold: rows are cut to its 64 positions"
    assert [held_max_length(folder, n) for n in (16, 64, 2048)] == [16, 64, 64]


def test_a_gguf_file_has_its_positions(tmp_path: Path) -> None:
    file = tmp_path / "base.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(8192)
    writer.add_tensor("token_embd.weight", np.zeros((500, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert max_positions(str(file)) == 8192


# What it is.


def test_what_is_no_causal_decoder_is_named(tmp_path: Path) -> None:
    t5 = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    llama = LlamaConfig(**SIZES)
    models = {
        "BertLMHeadModel is an encoder": BertLMHeadModel(BertConfig(**SIZES)),
        "T5ForConditionalGeneration is an encoder-decoder model": T5ForConditionalGeneration(t5),
        "LlamaForSequenceClassification is a classification or reward": LlamaForSequenceClassification(llama),
        "LlamaModel is an embedding model": LlamaModel(llama),
    }
    for number, (what, model) in enumerate(models.items()):
        problem = error(save(model, tmp_path / str(number)))
        assert problem.path == ("model",)
        assert what in problem.what
        assert problem.what.endswith("not a causal language model")
        assert "Qwen/" in problem.hint
    decoder = save(BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)), tmp_path / "decoder")
    assert check(decoder) == []


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (BartConfig().to_dict() | {"architectures": ["BartModel"]}, "an encoder-decoder model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "an encoder"),
        ({"model_type": "roberta"}, "roberta is an encoder"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "an encoder"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "a reward model"),
        ({"model_type": "diffusion_gemma", "text_config": {"model_type": "gemma"}}, "a diffusion model"),
        ({"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": {}}, "an embedding model"),
    ],
)
def test_configurations_of_other_kinds(tmp_path: Path, config: dict[str, Any], what: str) -> None:
    assert what in error(configured(tmp_path, **config)).what


def test_adapters_are_named_with_their_base_model(tmp_path: Path, hub: list[str]) -> None:
    save_adapters(tmp_path / "adapter", AdapterSpec(2, 4.0, targets=("q_proj",)), {}, "org/base")
    for name, base in ((str(tmp_path / "adapter"), "org/base"), ("org/adapters", "org/model")):
        problem = error(name)
        assert problem.what == f"{name}: adapters (PEFT), not a model"
        assert problem.hint.startswith(f"model: {base}; to continue from the adapters, merge them")


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("model_index.json", "a diffusion pipeline"),
        ("modules.json", "an embedding model (sentence-transformers)"),
        ("README.md", "no model in this folder"),
        ("model.gguf", "no model in this folder"),
    ],
)
def test_folders_of_other_kinds(tmp_path: Path, file: str, what: str) -> None:
    (tmp_path / file).write_text("{}")
    problem = error(tmp_path)
    assert what in problem.what
    assert not file.endswith(".gguf") or file in problem.hint


def test_a_folder_with_only_a_tokenizer_is_enough_for_lint(tmp_path: Path) -> None:
    small_tokenizer().save_pretrained(tmp_path)
    [problem] = check(tmp_path)
    assert (problem.severity, "only a tokenizer" in problem.what) == (Severity.WARNING, True)
    assert stop_tokens(str(tmp_path), small_tokenizer()) == {1}


def test_custom_code_and_new_architectures_are_named(tmp_path: Path) -> None:
    custom = configured(tmp_path / "a", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    assert "needs custom Python code" in error(custom).what
    new = configured(tmp_path / "b", model_type="llama9", architectures=["Llama9ForCausalLM"])
    assert check(new) == [], "not without importing transformers, which takes seconds"
    [problem] = check_model(new, small_tokenizer(), max_length=16)
    assert "`llama9`" in problem.what
    assert "pip install --upgrade transformers" in problem.hint
    speech = configured(tmp_path / "c", model_type="wav2vec2", architectures=["Wav2Vec2ForXVector"])
    [problem] = check_model(speech, small_tokenizer(), max_length=16)
    assert problem.what == f"{speech}: Wav2Vec2ForXVector is not a causal language model"


def test_a_gguf_file_of_another_family_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    writer = GGUFWriter(file, "rwkv99")
    writer.add_tensor("token_embd.weight", np.zeros((500, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    problem = error(file)
    assert "rwkv99" in problem.what
    assert "safetensors" in problem.hint


def test_vision_language_models_are_trained_as_text_models(tmp_path: Path) -> None:
    folder = save(small_model("gemma3"), tmp_path / "gemma3")
    [note] = check(folder)
    assert note.severity is Severity.NOTE
    assert "trained as a text model" in note.what
    assert max_positions(str(folder)) == POSITIONS


def test_weights_that_are_incomplete_or_in_another_format_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    small_model("llama").save_pretrained(folder, max_shard_size="20KB")
    assert check(folder) == []
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    assert f"files of weights are missing, such as {lost.name}" in error(folder).what
    pickled = Path(configured(tmp_path / "pickled", model_type="llama"))
    (pickled / "pytorch_model.bin").write_bytes(b"")
    assert "has no safetensors weights" in error(pickled).what


# Tokens.


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_a_token_of_the_template_without_an_embedding_is_an_error(
    tmp_path: Path, with_tokenizer: bool
) -> None:
    tokenizer = small_tokenizer("<|reply|>")
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|assistant|>", "<|reply|>")
    folder = str(save(small_model("llama"), tmp_path / "added", tokenizer))
    [problem] = check_model(folder, tokenizer if with_tokenizer else None, max_length=POSITIONS)
    assert (problem.severity, problem.path) == (Severity.ERROR, ("model",))
    assert problem.what.endswith("its tokenizer has ids up to 400 (<|reply|>), and it has 400 embeddings")
    assert "resize_token_embeddings" in problem.hint


def test_a_token_that_no_row_needs_is_a_warning(tmp_path: Path) -> None:
    """Gemma 3 1B has a token for images and no embedding of it."""
    folder = save(small_model("llama"), tmp_path / "spare", small_tokenizer("<|image|>"))
    [problem] = check(folder)
    assert problem.severity is Severity.WARNING


def test_the_rows_of_the_embedding_count_and_not_the_configuration(tmp_path: Path) -> None:
    folder = save(small_model("llama"), tmp_path / "resized", small_tokenizer("<|image|>"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 999}))
    assert [problem.severity for problem in check(folder)] == [Severity.WARNING]


def test_generation_stops_at_the_tokens_of_tokenizer_and_model(llama: Path, tmp_path: Path) -> None:
    assert stop_tokens(str(llama), small_tokenizer()) == {1}
    folder = configured(tmp_path, eos_token_id=7, text_config={"eos_token_id": 8})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 1]}')
    assert stop_tokens(folder, small_tokenizer()) == {1, 7, 8, 9}


# Layers and precision.


def test_lora_targets_that_no_layer_has_are_found_in_the_header(llama: Path) -> None:
    assert check(llama, lora_targets=["q_proj", "mlp.up_proj"]) == []
    problem = error(llama, lora_targets=["q_proj", "c_attn"])
    assert problem.path == ("lora_targets",)
    assert problem.what == "the model has no linear layer named c_attn"
    assert problem.hint == (
        "all-linear, or some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
    for name in ("embed_tokens", "lm_head", "norm"):
        assert error(llama, lora_targets=[name]).path == ("lora_targets",)
    assert check(llama, lora_targets=["c_attn"], full_finetune=True) == []


def test_layers_that_must_not_have_adapters_are_refused(tmp_path: Path) -> None:
    folder = save(small_model("mamba"), tmp_path / "mamba")
    assert check(folder) == []
    assert "out_proj cannot have adapters" in error(folder, lora_targets=["in_proj", "out_proj"]).what


def test_experts_without_adapters_are_noted(tmp_path: Path) -> None:
    folder = configured(tmp_path, model_type="mixtral", num_local_experts=8)
    [note] = check(folder)
    assert note.severity is Severity.NOTE
    assert "the 8 experts of a layer do not" in note.what
    assert check(folder, lora_targets=["w1"]) == [], "names in the files are not those of the layers"


def test_weights_that_are_quantized_already(tmp_path: Path) -> None:
    folder = configured(tmp_path, model_type="llama", quantization_config={"quant_method": "gptq"})
    assert error(folder, quantization="4bit").hint == "quantization: none"
    assert error(folder, full_finetune=True).path == ("full_finetune",)
    assert check(folder) == []
