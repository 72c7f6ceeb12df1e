"""Answers of a base model and its tuned version to the same prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kto_sweep.data.rows import Example
from kto_sweep.data.tokenise import tokenise
from kto_sweep.errors import UsageError
from kto_sweep.home import Home
from kto_sweep.json_file import parse_json
from kto_sweep.models.model_checks import held_max_length
from kto_sweep.text import counted
from kto_sweep.train.base_model import LoadedBase, load_base
from kto_sweep.train.context import WorkerContext
from kto_sweep.train.device import pick_device
from kto_sweep.train.merge import tuned, where_else
from kto_sweep.trial import Trial


@dataclass(frozen=True)
class Answers:
    """Two answers to one prompt."""

    prompt: str
    base: str
    tuned: str


def compare_answers(
    home: Home,
    run: Path,
    prompts: Sequence[str],
    *,
    count: int,
    max_tokens: int,
    best: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Answers]:
    """Greedy answers to `prompts`, or without any to `count` held-out prompts of the run.

    `say` gets a line before each part that takes long.

    Raises UsageError for a run without trained weights, and as loading its model and data does.
    """
    try:
        about = parse_json((run / "lineage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    whole, adapters = run / "model", run / ("best" if best else "adapter")
    if about is None or not (whole.is_dir() or adapters.is_dir()):
        raise UsageError(f"run {run.name} has no trained weights", hint=where_else(run))
    trial = Trial.from_config(about["trial"])
    context = WorkerContext(home)
    say(f"Loading {trial.base_model}")
    base = context.base(trial)
    prompt_ids = _typed(prompts, base, trial) if prompts else _held_out(context, trial, count)
    say(f"Generating {counted(len(prompt_ids), 'answer')} with the base model, and with the tuned one")
    model: Any = base.model
    if not whole.is_dir():
        model = tuned(base, adapters)
        with model.disable_adapter():
            before = [_answer(model, base, ids, max_tokens) for ids in prompt_ids]
    else:
        before = [_answer(model, base, ids, max_tokens) for ids in prompt_ids]
        model = load_base(str(whole), quantization="none", device=pick_device(), home=home).model
    after = [_answer(model, base, ids, max_tokens) for ids in prompt_ids]
    texts = [str(base.tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in prompt_ids]
    return [Answers(p, b, a) for p, b, a in zip(texts, before, after, strict=True)]


def _typed(prompts: Sequence[str], base: LoadedBase, trial: Trial) -> list[list[int]]:
    """Token ids of user messages, with the chat template as in training."""
    answer = ({"role": "assistant", "content": "-"},)
    examples = [
        Example(({"role": "user", "content": text},), answer, label=True, line=line)
        for line, text in enumerate(prompts, start=1)
    ]
    length = held_max_length(trial.base_model, trial.max_length)
    return [row.prompt for row in tokenise(examples, base.tokenizer).table.cut(length)]


def _held_out(context: WorkerContext, trial: Trial, count: int) -> list[list[int]]:
    """Token ids of the first held-out prompts."""
    held_out = context.data(trial).eval
    _, first = np.unique(held_out.prompt_keys, return_index=True)
    return [row.prompt for row in held_out.take(np.sort(first)[:count])]


def _answer(model: Any, base: LoadedBase, ids: Sequence[int], max_tokens: int) -> str:
    tokens: Tensor = torch.tensor([ids], device=base.model.device)
    with torch.no_grad():
        tokens_out = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    return str(base.tokenizer.decode(tokens_out[0, len(ids) :], skip_special_tokens=True)).strip()
