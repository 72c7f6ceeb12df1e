"""Whether a trial's base model can be trained as the trial says, without loading its weights."""

from typing import TYPE_CHECKING

from kto_sweep.errors import Problem, Severity, TrialConfigError
from kto_sweep.models.model_checks import check_model
from kto_sweep.trial import Trial

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_trainable(trial: Trial, tokenizer: "PreTrainedTokenizerBase | None" = None) -> list[Problem]:
    """What to know about the trial's model. `tokenizer`: as in check_model.

    Raises TrialConfigError with every reason why it cannot be trained.
    """
    problems = check_model(
        trial.base_model,
        tokenizer,
        max_length=trial.max_length,
        lora_targets=trial.lora_targets,
        full_finetune=trial.full_finetune,
        quantization=trial.effective_quantization,
    )
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    if errors:
        raise TrialConfigError("the base model", errors)
    return problems
