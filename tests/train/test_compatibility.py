import pytest
import torch
from packed_cases import EXTRA_CONFIG, SIZES, tiny_model, token_rows
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kto_sweep.train.packed.attention import NAME
from kto_sweep.train.packed.compatibility import NotPackableError, check_lengths, packed_decoder
from kto_sweep.train.packed.pack import PairedRows


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "gpt_neox", "opt", "starcoder2", "glm", "qwen3_moe", "helium"]
)
def test_standard_decoders_are_packable(kind: str) -> None:
    decoder = packed_decoder(tiny_model(kind))
    assert decoder.model.config._attn_implementation == NAME
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())


def refusal(model: PreTrainedModel) -> str:
    """The error of a model that cannot be packed; its attention is not changed."""
    before = model.config._attn_implementation
    with pytest.raises(NotPackableError) as caught:
        packed_decoder(model)
    assert caught.value.hint == "train it with the trl trainer"
    assert model.config._attn_implementation == before
    return str(caught.value)


def test_attention_sinks_are_refused() -> None:
    sizes = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 8192}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt_oss"](**sizes), dtype=torch.float32)
    assert "attention sinks" in refusal(model)


def test_attention_that_is_not_in_the_registry_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["stablelm"](**SIZES), dtype=torch.float32)
    assert refusal(model) == "StableLmForCausalLM cannot be trained packed: its attention cannot be replaced"


def test_layers_that_are_not_linear_are_refused() -> None:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](**sizes), dtype=torch.float32)
    assert "no nn.Linear" in refusal(model)


def test_layers_that_mix_neighbouring_tokens_are_refused() -> None:
    config = CONFIG_MAPPING["lfm2"](**{**SIZES, "layer_types": ["conv", "full_attention"]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert "layers of type conv" in refusal(model)


class CausalMean(torch.nn.Module):
    """Adds to each state the mean of all states before it, those of other packed sequences included."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        counts = torch.arange(1, states.shape[1] + 1)[None, :, None]
        return states + states.cumsum(1) / counts


class UnusualLlama(LlamaForCausalLM):
    """Has the modules of a Llama, but packed sequences affect each other."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model.norm = CausalMean()


def test_a_model_whose_log_probs_change_when_packed_is_refused() -> None:
    model = UnusualLlama(LlamaConfig(**SIZES))
    model.load_state_dict(tiny_model().state_dict(), strict=False)
    assert "log-probs change when rows are packed" in refusal(model)


def test_a_model_whose_output_layer_differs_from_its_configuration_is_refused() -> None:
    model = tiny_model("cohere")
    model.logit_scale = 0.7  # its configuration has another value
    assert EXTRA_CONFIG["cohere"]["logit_scale"] != 0.7
    assert "log-probs change" in refusal(model)


def test_rows_that_change_the_position_encoding_of_others_are_refused() -> None:
    """With longrope, one row beyond the original length changes the frequencies of all rows of a forward."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    sizes = {**SIZES, "rope_parameters": {**rope, "original_max_position_embeddings": 32}}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**sizes), dtype=torch.float32)
    short, long = (PairedRows(token_rows(4, longest=n), [1, 2, 3, 0], 40) for n in (8, 20))
    check_lengths(model, short)
    with pytest.raises(NotPackableError, match=r"changes beyond 32 tokens, and a row has [34]") as caught:
        check_lengths(model, long)
    assert caught.value.hint == "use max_length: 32, or train it with the trl trainer"
    check_lengths(tiny_model(), long)


def test_release_restores_the_models_own_attention() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    packed_decoder(model).release()
    assert model.config._attn_implementation == before
    model(torch.arange(3, 9)[None])
