"""Ranges of a generated sweep file, and for each parameter the reason and its source."""

from collections.abc import Mapping
from dataclasses import dataclass

from kto_sweep.models.presets import PRESETS

PAPER = "KTO, arXiv 2402.01306"


@dataclass(frozen=True)
class Reason:
    """Why a parameter is searched in its range."""

    why: str
    source: str

    def __str__(self) -> str:
        return f"{self.why} [{self.source}]"


REASONS: Mapping[str, Reason] = {
    "learning_rate": Reason(
        "The most important parameter. The authors' code uses 5e-6, TRL's documentation 5e-7 to 5e-6; "
        "published LoRA configurations go up to 2e-4, where some diverged.",
        f"{PAPER}; TRL's documentation of KTO",
    ),
    "batch_size": Reason(
        "Each step estimates the KL term from its own batch: below 4 it is mostly noise. 8 to 128 are usual; "
        "a smaller batch gives more steps per epoch.",
        f"{PAPER}; TRL's documentation of KTO",
    ),
    "beta": Reason(
        "Strength of the pull toward the reference model. Usually 0.1; published optima are 0.01 to 0.3.",
        f"{PAPER}; published KTO configurations",
    ),
    "rho": Reason(
        "Weight of all desirable examples over all undesirable ones; the authors recommend 1 to 4/3.",
        f"{PAPER}, section 4",
    ),
    "epochs": Reason("One to three passes are usual.", "published KTO configurations"),
    "warmup_ratio": Reason("0.05 to 0.15 are usual.", "published KTO configurations"),
    "lora_r": Reason(
        "Alpha is twice the rank. Preference tuning seldom needs more than 64.",
        "published KTO configurations take 8 to 64; LoRA, arXiv 2106.09685, section 7.2",
    ),
    "model_size": Reason(
        "Sizes a factor of 2 to 3 apart: closer ones seldom differ by more than seed noise.",
        "rule of thumb",
    ),
    "seed": Reason(
        "Repeating a trial with other seeds shows how much of a difference is noise.", "rule of thumb"
    ),
    "loss_type": Reason(
        "apo_zero_unpaired has no KL term and raises the likelihood of desirable answers directly.",
        "APO, arXiv 2408.06266",
    ),
    "lora_dropout": Reason(
        "0 unless trials overfit: with dropout a step takes more memory and time.",
        "to see how much: kto-sweep plan FILE",
    ),
    "quantization": Reason(
        "4bit needs a third of the memory for the base model, with little loss of quality.",
        "QLoRA, arXiv 2305.14314",
    ),
}

SMALL, MIDDLE, LARGE = (2e-6, 1e-5, 5e-5), (1e-6, 5e-6, 2e-5), (5e-7, 2e-6, 1e-5)
"""Learning rates of a grid for models below 1B, up to 4B and above: smaller models need higher rates."""

_RATES = {
    "tiny": (3e-4, 1e-3, 3e-3),
    "135m": SMALL,
    "360m": SMALL,
    "0.5b": SMALL,
    "1.5b": MIDDLE,
    "3b": MIDDLE,
}

GRID_BATCHES = (8, 16, 32)
SEARCH_BATCHES = (8, 16, 32, 64)
SEARCH_RANKS = (8, 16, 32, 64)
SEARCH_BETA = (0.02, 0.5)
SEARCH_RATES = (5e-7, 1e-4)

PRESET_NAMES = tuple(f"{kind}-{size}" for size in PRESETS for kind in ("lora", "qlora") if size != "tiny")
"""Values of `--preset`: LoRA with the preset's quantization, or QLoRA with 4 bit."""


def grid_rates(size: str | None) -> tuple[float, ...]:
    """Learning rates of a grid for a model of this size; None: unknown size."""
    return MIDDLE if size is None else _RATES.get(size, LARGE)


def search_rates(size: str | None) -> tuple[float, float]:
    """The range of learning rates for a search."""
    rates = grid_rates(size)
    return SEARCH_RATES if rates in (MIDDLE, LARGE, SMALL) else (rates[0] / 3, rates[-1] * 3)
