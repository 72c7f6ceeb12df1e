"""Does a sweep on an FP8 base rank its trials as one in bf16 does? Exit code 1 if it does not.

    PYTHONPATH=. python benchmarks/fp8_check.py --data rows.jsonl --model FOLDER_OR_GGUF [--steps 100]

A grid of four learning rates and four betas, all trials at once, on the base in bf16 with two seeds and in
FP8 with the first of them. Held-out losses (eval/common_loss) in FP8 may differ from those in bf16 as much as
the second seed's do: the median difference, and Spearman's correlation of the ranking. The loss of the first
step must be near 0.5 times the mean weight in both, since policy and reference take the same path.
"""

import argparse
import statistics
import sys
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from common import describe_machine, matmul_ceiling, print_table, write_json

from kto_sweep.data.dataset import TrainingData, prepare_data
from kto_sweep.data.load import load_tokens
from kto_sweep.home import Home
from kto_sweep.models.presets import Quantization
from kto_sweep.train.base_model import load_base
from kto_sweep.train.device import pick_device
from kto_sweep.train.packed.compatibility import packed_decoder
from kto_sweep.train.packed.engine import SCORING_LIMIT, Engine
from kto_sweep.train.packed.pack import PairedRows
from kto_sweep.train.packed.slot import ReferenceRows
from kto_sweep.train.packed.step import score
from kto_sweep.train.trial.evaluate import evaluate
from kto_sweep.trial import Trial

RATES, BETAS = (1e-5, 5e-5, 2e-4, 8e-4), (0.03, 0.1, 0.3, 1.0)
SLACK = 1.5
"""How much more than another seed FP8 may differ."""


def held_out_losses(options: argparse.Namespace, quantization: Quantization, seed: int) -> list[float]:
    """eval/common_loss of each cell after its last step."""
    device = pick_device()
    base = load_base(options.model, quantization=quantization, device=device, home=Home.from_environment())
    data: TrainingData = prepare_data(
        load_tokens(options.data, base.tokenizer), eval_fraction=0.1, max_length=options.max_length
    )
    decoder = packed_decoder(base.model)
    train, held_out = (
        ReferenceRows(rows, score(decoder, rows, SCORING_LIMIT).cpu().numpy())
        for rows in (
            PairedRows(data.train, data.train_partners, options.max_length),
            PairedRows(data.eval, data.eval_partners, options.max_length),
        )
    )
    cells = list(product(RATES, BETAS))
    engine = Engine(decoder, train, held_out, slots=len(cells))
    for slot, (rate, beta) in enumerate(cells):
        trial = Trial(
            model=options.model, dataset=options.data, learning_rate=rate, beta=beta, seed=seed,
            batch_size=8, max_steps=options.steps, max_length=options.max_length,
        )  # fmt: skip
        engine.join(slot, trial)
    first = engine.step().read()[0].values
    print(f"{quantization}, seed {seed}: loss of the first step {first['loss']:.6f}", flush=True)
    for _ in range(options.steps - 1):
        engine.step()
    losses = []
    for slot, (_, beta) in enumerate(cells):
        ratios = engine.evaluate(slot)
        metrics = evaluate(
            ratios.matched, ratios.mismatched, held_out.rows.desirable, beta=beta, weights=(1.0, 1.0),
            loss_type="kto",
        )  # fmt: skip
        losses.append(metrics["eval/common_loss"])
    engine.close()
    return losses


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    matrix: NDArray[np.float64] = np.corrcoef(np.stack(ranks))
    return float(matrix[0, 1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True, help="a folder or .gguf file")
    parser.add_argument("--quantization", choices=["fp8", "4bit-fp8"], default="fp8")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(describe_machine(matmul_ceiling()), flush=True)
    plain: Quantization = "none" if options.quantization == "fp8" else "4bit"
    one, seed, fp8 = (
        held_out_losses(options, quantization, seed)
        for quantization, seed in ((plain, 0), (plain, 1), (options.quantization, 0))
    )
    table = [
        {"learning_rate": rate, "beta": beta, plain: round(a, 4), "seed 1": round(b, 4), "fp8": round(c, 4)}
        for (rate, beta), a, b, c in zip(product(RATES, BETAS), one, seed, fp8, strict=True)
    ]
    print_table(table)
    by_seed, by_fp8 = (
        statistics.median(abs(x - y) for x, y in zip(one, other, strict=True)) for other in (seed, fp8)
    )
    ranks = rank_correlation(one, seed), rank_correlation(one, fp8)
    passed = by_fp8 <= SLACK * by_seed and 1 - ranks[1] <= SLACK * (1 - ranks[0]) + 0.02
    print(f"median difference: another seed {by_seed:.4f}, FP8 {by_fp8:.4f}")
    print(f"rank correlation: another seed {ranks[0]:.3f}, FP8 {ranks[1]:.3f}")
    print(f"best cell: {plain} {np.argmin(one)}, another seed {np.argmin(seed)}, FP8 {np.argmin(fp8)}")
    print("PASS" if passed else "FAIL")
    if options.out:
        write_json(options.out, table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
