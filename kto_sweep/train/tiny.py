"""The `tiny` base model: a Llama with under a million weights, a tokenizer and a chat template, made locally.

It is made once per KTO_SWEEP_HOME, from a seed, in seconds on a CPU: the demo and the tests need neither a
network nor a licence. It is pre-trained on a little small talk, so that some answers are likelier than
others.
"""

import itertools
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kto_sweep.locks import try_lock
from kto_sweep.models import tiny_corpus
from kto_sweep.models.tiny import Recipe, make_tokenizer
from kto_sweep.train.load_progress import LoadProgress, no_progress

MAKING = "making the tiny model"


def tiny_model(folder: Path, recipe: Recipe | None = None, progress: LoadProgress = no_progress) -> Path:
    """The tiny model's folder in `folder`, as transformers saves models; made if it does not exist.

    One process makes it, in a temporary folder that is renamed at the end; others wait for it. What a killed
    one leaves behind is removed. Raises what `progress` raises.
    """
    recipe = recipe or Recipe()
    final = folder / recipe.name
    if final.is_dir():
        return final
    progress(MAKING, 0, recipe.steps)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{recipe.name}"
    with try_lock(folder / f".{recipe.name}.lock", seconds=-1):
        if not final.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
            tokenizer = make_tokenizer(recipe)
            make_model(recipe, tokenizer, progress).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            scratch.rename(final)
    progress(MAKING, recipe.steps, recipe.steps)
    return final


def make_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, progress: LoadProgress = no_progress
) -> LlamaForCausalLM:
    """The model after its few steps of pre-training, in fp32 on the CPU."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random state does not change
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
        _pretrain(model, tokenizer, recipe, progress)
    return model


def _pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, progress: LoadProgress
) -> None:
    """Plain language modelling on the corpus, one long stream of conversations."""
    tokens = _stream(tokenizer, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
    model.train()
    for step in range(recipe.steps):
        ids = tokens[step]
        logits = model(input_ids=ids[:, :-1]).logits
        # Smoothed: the corpus is narrow, and an overconfident model would give other text no probability.
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step + 1 < recipe.steps:  # the end is reported once the files are written
            progress(MAKING, step + 1, recipe.steps)
    model.train(False)


def _stream(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> torch.Tensor:
    """Token ids of the corpus, (steps, batch, length + 1)."""
    needed = recipe.steps * recipe.batch * (recipe.length + 1)
    ids: list[int] = []
    spoken = tiny_corpus.conversations(recipe.seed + 1)
    while len(ids) < needed:
        texts = [
            str(tokenizer.apply_chat_template(turns, tokenize=False))
            for turns in itertools.islice(spoken, 500)
        ]
        ids += itertools.chain.from_iterable(tokenizer(texts, add_special_tokens=False)["input_ids"])
    return torch.tensor(ids[:needed]).view(recipe.steps, recipe.batch, recipe.length + 1)
