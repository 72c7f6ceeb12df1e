import json
import shutil
from pathlib import Path

import pytest
from cotrainer_cases import Recorder

from kto_sweep.train.trial.metrics_log import MetricsLog
from kto_sweep.trial import Trial

TRIAL = Trial(model="tiny", dataset="x", max_steps=9)


def metrics_log(path: Path) -> tuple[MetricsLog, Recorder]:
    report = Recorder()
    return MetricsLog(path, report, TRIAL, (1, 1)), report


def write_rows(path: Path, steps: int) -> None:
    log, _ = metrics_log(path)
    log.resume(9, 0, None)
    for step in range(1, steps + 1):
        log.log(step, {"loss": 0.1 * step, "kl_raw": -1.0 / step, "logps/chosen": float("inf")})
    log.syncing()()
    log.close()


def test_resume_keeps_the_rows_before_its_step_and_drops_the_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    log, report = metrics_log(path)
    assert log.has(5)
    assert not log.has(6)
    log.resume(9, 3, None)
    assert report.rows == {}
    assert log.summary == {"loss": 0.1 * 3, "kl_raw": -1.0 / 3, "logps/chosen": float("inf")}
    log.log(4, {"loss": 7.0})
    log.close()
    assert [json.loads(line).get("loss") for line in path.read_text().splitlines()][2:] == [0.1 * 3, 7.0]
    assert report.rows == {4: {"loss": 7.0}}


@pytest.mark.parametrize("end", ["", '{"step": 3, "lo', "rubbish\n", '{"step": 5}\n', "[]\n"])
def test_a_row_that_a_crash_cut_off_does_not_count(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, 2)
    with path.open("a") as file:
        file.write(end)
    log, report = metrics_log(path)
    assert log.has(2)
    assert not log.has(3)
    log.resume(9, 2, 0)
    log.log(3, {"loss": 1.0})
    log.close()
    assert list(report.rows) == [1, 2, 3]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_removed_rows_are_written_again_with_the_next_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "rows.jsonl"
    log, _ = metrics_log(path)
    log.resume(9, 0, None)
    log.log(1, {"loss": 1.0})
    shutil.rmtree(path.parent)
    log.log(2, {"loss": 2.0})
    log.syncing()()
    log.log(3, {"loss": 3.0})
    assert log.has(3)
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0, 3.0]


def test_a_checkpoint_that_is_never_written_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    log, _ = metrics_log(tmp_path / "rows.jsonl")
    log.resume(9, 0, None)
    log.log(1, {"loss": 1.0})
    log.syncing()
    log.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
