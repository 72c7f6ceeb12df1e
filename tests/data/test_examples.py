import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from kto_sweep.data.auc import auc
from kto_sweep.data.examples import read_examples

EXAMPLES = Path(__file__).parents[2] / "examples"
REPLIES = EXAMPLES / "support_replies.jsonl"


def test_the_generator_reproduces_the_shipped_file(tmp_path: Path) -> None:
    out = tmp_path / "again.jsonl"
    subprocess.run([sys.executable, EXAMPLES / "make_support_replies.py", out], check=True)
    assert out.read_bytes() == REPLIES.read_bytes()


def test_the_replies_are_clean_balanced_and_varied() -> None:
    notes, rows = read_examples(str(REPLIES))
    examples = list(rows)
    assert not notes.bad
    assert len(examples) == 360
    assert 0.45 < np.mean([example.label for example in examples]) < 0.55
    labels = defaultdict(set)
    for example in examples:
        labels[json.dumps(example.prompt)].add(example.label)
    assert len(labels) > 200
    assert sum(len(both) == 2 for both in labels.values()) > 40
    assert {len(example.prompt) for example in examples} == {1, 2, 3, 4}
    assert len({json.dumps([e.prompt, e.completion]) for e in examples}) == 360


def test_length_does_not_predict_the_label() -> None:
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for example in read_examples(str(REPLIES))[1]:
        lengths[example.label].append(len(example.completion[0]["content"]))  # type: ignore[index]
    assert 0.4 < auc(np.array(lengths[True], float), np.array(lengths[False], float)) < 0.6
