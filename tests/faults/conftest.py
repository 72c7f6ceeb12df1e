"""The losses without faults, with which the tests compare."""

import json
from pathlib import Path

import forked_python
import pytest
from machine import made_once
from sweep_harness import TWO_BY_TWO, Losses, SweepHarness


@pytest.fixture(scope="session")
def base_model(tiny_base: Path) -> None:
    """Real workers have the tiny model, and need not make it."""
    SweepHarness.base_model = tiny_base


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory, base_model: None) -> Losses:
    """The losses of real workers for the grid without faults."""
    with made_once(tmp_path_factory, "baseline.json") as path:
        if not path.exists():
            path.write_text(json.dumps(list(train(tmp_path_factory.mktemp("baseline")).items())))
        return {tuple(cell): losses for cell, losses in json.loads(path.read_text())}


def train(folder: Path) -> Losses:
    harness = SweepHarness(folder, TWO_BY_TWO, cli=forked_python.CLI)
    try:
        harness.create()
        harness.start_agent("--trials-per-gpu", "4")
        harness.finish()
        losses = harness.losses()
        harness.check(losses)
    finally:
        harness.close()
    return losses
