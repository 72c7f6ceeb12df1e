import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forked_python import TORCH, forked_python
from transformers import AutoModelForCausalLM, AutoTokenizer

from kto_sweep.models.tiny import Recipe, make_tokenizer
from kto_sweep.train.tiny import MAKING, make_model, tiny_model

SMALL = Recipe(hidden=16, vocabulary=400, tokenizer_texts=50, steps=3, batch=2, length=16)
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is my kettle?"}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def models(folder: Path) -> list[str]:
    """The folders in `folder`, also temporary ones."""
    return [child.name for child in folder.iterdir() if child.is_dir()]


def test_the_tiny_model_is_made_once_and_loads_like_any_model(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, SMALL)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_model(tmp_path, SMALL) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert models(tmp_path) == [SMALL.name]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>\nBe kind.<|end|>\n<|user|>\nWhere is my kettle?<|end|>\n<|assistant|>\n"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_what_an_interrupted_process_leaves_is_removed(tmp_path: Path) -> None:
    reported = []

    def progress(what: str, done: int, total: int) -> None:
        reported.append((what, done, total))
        if reported == [(MAKING, 0, 3), (MAKING, 1, 3)]:
            (tmp_path / f".{SMALL.name}" / "half").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_model(tmp_path, SMALL, progress)
    assert not (tmp_path / SMALL.name).exists()
    folder = tiny_model(tmp_path, SMALL, progress)
    assert models(tmp_path) == [SMALL.name]
    assert not (folder / "half").exists()
    assert reported[2:] == [(MAKING, done, 3) for done in range(4)]


def test_the_same_recipe_gives_the_same_weights_and_keeps_the_random_state() -> None:
    tokenizer = make_tokenizer(SMALL)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = make_model(SMALL, tokenizer)
    assert torch.equal(torch.rand(3), expected)
    other = make_model(SMALL, tokenizer)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_recipe_gets_another_folder() -> None:
    assert Recipe(hidden=32).name != Recipe().name == Recipe().name


def test_two_processes_can_make_the_tiny_model_at_once(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from kto_sweep.models.tiny import Recipe
from kto_sweep.train.tiny import tiny_model
print(tiny_model(Path({str(tmp_path)!r}), {SMALL!r}))
"""
    command = [*forked_python(TORCH), "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] == f"{tmp_path / SMALL.name}\n"
    assert models(tmp_path) == [SMALL.name]
    AutoModelForCausalLM.from_pretrained(tmp_path / SMALL.name)


def test_the_default_recipe_gives_a_model_that_prefers_likely_text(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)

    def nats_per_token(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return float(F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]))

    likely = nats_per_token(
        "<|user|>\nWhere is my lamp?<|end|>\n<|assistant|>\nA new one is on its way.<|end|>\n"
    )
    unlikely = nats_per_token("lamp xq?<|assistant|> my my<|user|> 8 way way<|end|>zz<|user|>")
    uniform = torch.tensor(float(len(tokenizer))).log().item()
    assert likely < 0.7 * uniform < uniform < unlikely
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
