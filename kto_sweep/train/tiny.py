"""The `tiny` base model: a Llama with under a million weights, a tokenizer and a chat template, made locally.

It is made once per KTO_SWEEP_HOME, from a seed, in seconds on a CPU: the demo and the tests need neither a
network nor a licence. It is pre-trained on a little small talk, so that some answers are likelier than
others.
"""

import itertools
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kto_sweep.models import tiny_corpus
from kto_sweep.models.tiny import Recipe, make_tokenizer


def tiny_model(folder: Path, recipe: Recipe | None = None) -> Path:
    """The tiny model's folder in `folder`, as transformers saves models; made if it does not exist.

    Two processes may make it at once: each works in a temporary folder, and the first rename wins.
    """
    recipe = recipe or Recipe()
    final = folder / recipe.name
    if final.is_dir():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{recipe.name}-", dir=folder))
    try:
        tokenizer = make_tokenizer(recipe)
        make_model(recipe, tokenizer).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.rename(final)
    except OSError:
        if not final.is_dir():  # otherwise another process was first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
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
        _pretrain(model, tokenizer, recipe)
    return model


def _pretrain(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
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
