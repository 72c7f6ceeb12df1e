"""A model's architecture from a preset, a folder, a .gguf file or the hub."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hub_stub import CONFIG

from kto_sweep.errors import UsageError
from kto_sweep.models.architecture import Architecture, find_architecture

SIZES = Architecture(64, 160, 3, 4, 2, 32, 500, tied=True, head_norms=True)


def test_a_model_on_the_hub_takes_one_request(hub: list[str]) -> None:
    assert find_architecture("org/model") == find_architecture("org/model") == SIZES
    assert hub == ["/org/model/resolve/main/config.json"]


def test_what_has_no_configuration_may_be_adapters(hub: list[str]) -> None:
    assert find_architecture("org/absent") is None
    assert [path.rpartition("/")[2] for path in hub] == ["config.json", "adapter_config.json"]
    with pytest.raises(UsageError, match="org/adapters: adapters") as caught:
        find_architecture("org/adapters")
    assert caught.value.hint.startswith("model: org/model;")


def test_presets_need_no_network(hub: list[str]) -> None:
    architecture = find_architecture("Qwen/Qwen2.5-7B-Instruct")
    assert architecture is not None
    assert architecture.weights == pytest.approx(7.615e9, rel=1e-3)
    assert hub == []


def test_without_the_hub_the_architecture_is_unknown(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert find_architecture("org/model") is None


def test_a_folder_and_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert find_architecture(str(tmp_path)) == SIZES
    writer = GGUFWriter(tmp_path / "base.gguf", "qwen3")
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(160)
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_tensor("token_embd.weight", np.zeros((500, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert find_architecture(str(tmp_path / "base.gguf")) == SIZES


def test_other_kinds_of_models() -> None:
    mixture = Architecture.from_config(
        {**CONFIG, "model_type": "x", "num_local_experts": 8, "num_experts_per_tok": 2}
    )
    assert (mixture.experts, mixture.active_experts, mixture.fused) == (8, 2, False)
    assert mixture.linear_weights > 4 * mixture.used_weights / 2
    nested = Architecture.from_config({"text_config": CONFIG, "final_logit_softcapping": 30.0})
    assert not nested.plain_head
    with pytest.raises(KeyError):
        Architecture.from_config({"model_type": "rwkv", "hidden_size": 64})


def test_a_path_without_a_model_is_an_error(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "absent.gguf"), "./no/such/folder"):
        with pytest.raises(UsageError):
            find_architecture(name)
