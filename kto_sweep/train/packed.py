"""One trial trained by the packed engine, from rows to saved adapters."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from kto_sweep.data.dataset import TrainingData
from kto_sweep.errors import UsageError
from kto_sweep.train.adapter_files import save_adapters
from kto_sweep.train.engine import UNSPLIT, Engine
from kto_sweep.train.evaluate import evaluate
from kto_sweep.train.limit import Limit
from kto_sweep.train.models import LoadedBase
from kto_sweep.train.reference import Progress
from kto_sweep.train.referenced import References
from kto_sweep.train.result import Report, TrainResult
from kto_sweep.train.support import packed_decoder
from kto_sweep.trial import Trial


def train_packed(
    trial: Trial,
    base: LoadedBase,
    data: TrainingData,
    out_dir: Path,
    report: Report,
    should_stop: Callable[[], bool],
    *,
    cache: Path,
    limit: Limit = UNSPLIT,
    recompute: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train `trial` in one slot; its adapters are in `out_dir`/adapter at the end, in PEFT's format.

    `cache` is the folder of reference log-probs. `limit` bounds one training forward; with `recompute`,
    backward passes recompute activations to save memory. Every step is reported, and an evaluation every
    eval_steps and at the end. The base model is left as it was.

    Raises NotPackableError for a model that only the trl trainer can train, UsageError for lora_targets that
    the model has not, TrialFailure when the base model's log-probs are not finite, torch.OutOfMemoryError
    when a single example does not fit.
    """
    if trial.full_finetune:
        raise UsageError("the packed trainer trains adapters only", hint="train it with the trl trainer")
    begin = clock()
    decoder = packed_decoder(base.model)
    engine = None
    try:
        decoder.set_recompute(recompute)
        references = References(decoder, base, data, trial.max_length, cache)
        references.fill(trial, progress, report.note)
        engine = Engine(decoder, references.train, references.held_out, limit=limit)
        engine.join(0, trial)
        return _train(engine, trial, base, out_dir, report, should_stop, clock, begin)
    finally:
        if engine is None:
            decoder.release()
        else:
            engine.close()


def _train(
    engine: Engine,
    trial: Trial,
    base: LoadedBase,
    out_dir: Path,
    report: Report,
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
    begin: float,
) -> TrainResult:
    total = engine.total_steps(0)
    report.plan(total)
    every = trial.eval_every(total)
    summary: dict[str, float | int | str] = {}
    step, stopped = 0, False
    while not engine.done(0) and not stopped:
        started = clock()
        measured = engine.step().read()[0]
        step = measured.known.step
        values = {**measured.values, "tokens_per_second": measured.known.tokens / (clock() - started)}
        values |= gpu_memory(engine.decoder.device)
        report.metrics(step, values)
        summary |= values
        if not measured.applied:
            report.note(f"step {step}: the gradient is not finite; the adapters stay as they are")
        stopped = should_stop()
        if engine.held_out.rows and (step % every == 0 or engine.done(0)):
            evaluated = evaluation(engine, 0, trial)
            report.metrics(step, evaluated)
            summary |= evaluated
    save_adapters(out_dir / "adapter", *engine.adapters(0), base.model.name_or_path)
    summary |= {"trial/seconds": clock() - begin, "trial/examples": engine.examples(0)}
    return TrainResult(summary, step, stopped and not engine.done(0))


def evaluation(engine: Engine, slot: int, trial: Trial) -> dict[str, float]:
    """All `eval/*` metrics of one slot's trial."""
    ratios = engine.evaluate(slot)
    return evaluate(
        ratios.matched,
        ratios.mismatched,
        [row.desirable for row in engine.held_out.rows],
        beta=trial.beta,
        weights=trial.weights(*engine.train.counts),
        loss_type=trial.loss_type,
    )


def gpu_memory(device: torch.device) -> dict[str, float]:
    """`gpu/memory_*` in GiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    amounts = {
        "allocated": torch.cuda.memory_allocated(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
    }
    return {f"gpu/memory_{name}_gb": amount / 2**30 for name, amount in amounts.items()}
