"""How many trials are worth training at once on one GPU, before any of their steps is measured.

`plan` shows it, and a worker starts with it: it measures from there (train/worker/concurrency.py).
"""

from kto_sweep.models.architecture import Architecture
from kto_sweep.plan.memory import StepLoad, peak_memory
from kto_sweep.plan.timing import TimingModel, adapter_shape
from kto_sweep.plan.workload import Workload
from kto_sweep.trial import Trial

MAX_TOGETHER = 16
"""Maximum number of trials that are planned together; measurements show no gain beyond it."""
MIN_GAIN = 0.05
"""What doubling the number of trials must gain, as a share of the throughput.

A step costs a fixed part (kernel launches, the host) and a part in proportion to its tokens. By that model,
where doubling gains 5 %, less than 10 % is left to gain in all, and each trial takes nearly twice as long:
its evaluations, on which early stopping and the search wait, come that much later.
"""


def count_together(
    trial: Trial, model: Architecture, workload: Workload, timing: TimingModel | None, usable_gib: float
) -> int:
    """The number of trials like this one that fit with whole steps and make each other faster.

    0 if a whole step of one does not fit. Without `timing` all that fit.
    """
    fitting = _count_fitting(trial, model, workload.peak_load(trial), usable_gib)
    if timing is None:
        return fitting
    count = min(1, fitting)
    while 0 < count < fitting:
        more = min(2 * count, fitting)
        rates = [_tokens_per_second(trial, workload, timing, slots) for slots in (count, more)]
        if rates[1] / rates[0] - 1 < MIN_GAIN * (more / count - 1):
            break
        count = more
    return count


def _tokens_per_second(trial: Trial, workload: Workload, timing: TimingModel, slots: int) -> float:
    load = _times(workload.mean_load(trial), slots)
    step = timing.step(load, adapter_shape(trial, slots))
    return 0.0 if step is None else load.tokens / step.seconds


def _count_fitting(trial: Trial, model: Architecture, load: StepLoad, usable_gib: float) -> int:
    """The number of trials whose largest steps fit at once without recomputing anything."""
    count = 0
    while count < MAX_TOGETHER:
        shape = adapter_shape(trial, count + 1)
        if peak_memory(model, trial.effective_quantization, shape, _times(load, count + 1)).gib > usable_gib:
            break
        count += 1
    return count


def _times(load: StepLoad, slots: int) -> StepLoad:
    return StepLoad(*(n * slots for n in (load.tokens, load.targets, load.mismatched)))
