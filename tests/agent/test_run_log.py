"""A trial's own files."""

import errno
import io
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kto_sweep.row_file import LineFile
from kto_sweep.run_log import HEADER_EVERY, RunLog, StepTable, clock_time, last_step

TRAIN = {
    "loss": 0.4987,
    "learning_rate": 5e-7,
    "rewards/chosen": 0.0123,
    "rewards/rejected": -0.2,
    "rewards/margins": 0.2123,
    "kl": 0.0,
    "grad_norm": 1.5,
    "tokens_per_second": 1234.6,
}


def test_the_table():
    seconds = iter([0.0, 0.0, 10.0])
    table = StepTable(clock=lambda: next(seconds))
    table.plan(20)
    header, row = table.lines(5, TRAIN)
    assert header.split() == "Step Loss LR Chosen Reject Margin KL Grad GPU GB Tok/s ETA".split()
    assert row.split() == "5/20 0.4987 5.0e-07 +0.012 -0.200 +0.212 0.000 1.5 - 1,235 0:30".split()
    assert len(header) == len(row) <= 110


GOLDEN = """
       Step     Loss       LR   Chosen   Reject   Margin       KL     Grad   GPU GB    Tok/s      ETA
       1/24   0.4987  5.0e-07   +0.012   -0.200   +0.212    0.000      1.5        -    1,235     0:00
       2/24   0.0000 1.0e-300   +0.000   +0.000   +0.000    0.000   1e-300      0.0        0     0:00
       3/24  -0.0000  -1e-300   -0.000   -0.000   -0.000   -0.000  -1e-300     -0.0       -0     0:00
       4/24   0.0000  4.5e-05   +0.000   +0.000   +0.000    0.000  4.5e-05      0.0        0     0:00
       5/24 123456.8  1.2e+05  +123457  +123457  +123457 123456.8 1.23e+05 123456.8  123,457     0:00
       6/24 -1.0e+09 -1.0e+09 -1.0e+09 -1.0e+09 -1.0e+09 -1.0e+09   -1e+09 -1.0e+09 -1.0e+09     0:00
       7/24  2.1e+17  2.1e+17 +2.1e+17 +2.1e+17 +2.1e+17  2.1e+17  2.1e+17  2.1e+17  2.1e+17     0:00
       8/24  3.4e+38  3.4e+38 +3.4e+38 +3.4e+38 +3.4e+38  3.4e+38  3.4e+38  3.4e+38  3.4e+38     0:00
       9/24  -2e+308  -2e+308  -2e+308  -2e+308  -2e+308  -2e+308  -2e+308  -2e+308  -2e+308     0:00
      10/24  1.0e+30  1.0e+30 +1.0e+30 +1.0e+30 +1.0e+30  1.0e+30    1e+30  1.0e+30  1.0e+30     0:00
      11/24      inf      inf     +inf     +inf     +inf      inf      inf      inf      inf     0:00
      12/24      nan      nan      nan      nan      nan      nan      nan      nan      nan     0:00
"""
SIZES = (1e-300, -1e-300, 4.5e-5, 123456.789, -1e9, 2.1e17, 3.4e38, -1.7e308, 10**30, math.inf, math.nan)


def table_of(values, total=24, width=None):
    """The lines of the steps 1, 2, ... that have these values in all columns; at the time of the start."""
    table = StepTable(clock=lambda: 0.0, width=width)
    table.plan(total)
    rows = [TRAIN, *(dict.fromkeys((*TRAIN, "gpu/memory_peak_gb"), value) for value in values)]
    return [line for step, row in enumerate(rows, 1) for line in table.lines(step, row)]


def test_numbers_of_any_size_in_the_table():
    assert table_of(SIZES) == GOLDEN.strip("\n").splitlines()


@pytest.mark.parametrize("width", [None, 120, 80, 60])
@given(
    values=st.lists(st.floats() | st.integers(-(10**300), 10**300), max_size=5),
    total=st.integers(9, 10**12),
)
def test_every_number_fits_its_column_and_is_legible(values, total, width):
    header, first, *rows = table_of(values, total, width)
    assert {len(first), *map(len, rows)} <= {len(header)}
    assert width is None or total > 10**6 or len(header) <= width
    for value, row in zip(values, rows, strict=True):
        for cell in row.split()[1:-1]:
            shown = float(cell.replace(",", ""))
            if shown == 0:
                assert abs(value) < 1
            elif math.isfinite(value) and abs(value) < 1e308:
                assert math.copysign(1, shown) == math.copysign(1, value)
                assert abs(math.log10(abs(shown)) - math.log10(abs(value))) < 0.5
            else:
                assert shown == pytest.approx(value, nan_ok=True, rel=1e308)


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (110, "Loss LR Chosen Reject Margin KL Grad GPU GB Tok/s"),
        (100, "Loss LR Chosen Reject Margin KL Grad Tok/s"),
        (80, "Loss LR Chosen Margin KL Grad"),
        (60, "Loss LR Margin Grad"),
        (20, "Loss LR Margin Grad"),
    ],
)
def test_a_narrow_table_leaves_out_columns(width, heads):
    header, row = table_of([], width=width)
    assert header.split() == ["Step", *heads.split(), "ETA"]
    assert len(header) == len(row) <= max(width, 56)


def test_a_narrow_evaluation_breaks_between_metrics():
    table = StepTable(width=60)
    table.plan(24)
    names = ("common_loss", "loss", "kl_raw", "desirable_below_ref")
    lines = table.lines(24, {f"eval/{name}": -1.234e-300 for name in names})
    assert lines == [
        "      24/24  eval  common_loss -1.234e-300  loss -1.234e-300",
        "                   kl_raw -1.234e-300",
        "                   desirable_below_ref -1.234e-300",
    ]


def test_the_header_is_repeated():
    table = StepTable()
    lines = [line for step in range(1, HEADER_EVERY + 2) for line in table.lines(step, TRAIN)]
    assert sum("Loss" in line for line in lines) == 2


def test_an_evaluation_is_a_separate_line():
    lines = StepTable().lines(7, {"eval/auc": 0.75, "eval/common_loss": 0.4})
    assert [line.split() for line in lines] == [["7/0", "eval", "auc", "0.75", "common_loss", "0.4"]]


def test_files_hold_every_metric_and_every_line(tmp_path):
    said = []
    log = RunLog(tmp_path / "run", echo=said.append)
    log.plan(2)
    log.metrics(1, TRAIN)
    log.metrics(2, {"loss": math.nan, "eval/auc": 0.5})
    log.note("the end")
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["rewards/margins"] == 0.2123
    assert math.isnan(rows[1]["loss"])
    assert (tmp_path / "run/console.log").read_text().splitlines() == said
    assert said[-1] == "the end"


@pytest.mark.parametrize(
    "damage", [b"\xff\x00\x80\n", b"[1]\n", b"7\n", b'{"step": "2"}\n', b"{}\n", b'{"step": 2']
)
def test_rows_from_the_first_damaged_one_on_are_dropped_and_logged_again(tmp_path, damage):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.metrics(step, TRAIN)
    log.close()
    path = tmp_path / "log.jsonl"
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + third)
    assert last_step(tmp_path) in {1, 3}
    again = RunLog(tmp_path, keep=3)
    assert list(again.kept) == [1]
    again.close()
    assert path.read_bytes() == first


def test_a_damaged_console_log_is_echoed_as_far_as_it_can_be_read(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "console.log").write_bytes(b"first\n\xff\x80\x00\nlast\n")
    said = []
    log = RunLog(tmp_path, keep=1, echo=said.append)
    log.echo_earlier()
    log.close()
    assert (said[0], said[-1]) == ("first", "last")


class Gone(io.RawIOBase):
    """A file on a network disk whose server is gone."""

    def _fail(self, *_: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    write = truncate = _fail

    def close(self) -> None:
        self.close = lambda: None  # it closes itself at its end
        self._fail()


def test_a_full_disk_raises_no_error(tmp_path):
    lines = LineFile(tmp_path / "log")
    lines.write("first")
    taken, lines._file = lines._file, Gone()
    lines.write("second")
    stale, lines._file = lines._file, taken
    lines.write("third")
    lines.close()
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n"
    lines._file = stale
    lines.close()


def test_lines_from_several_threads_are_written_whole_and_once(tmp_path):
    class Slow(io.FileIO):
        def write(self, data):
            time.sleep(0.0005)  # the others' turn
            return super().write(data)

    lines = LineFile(tmp_path / "log")
    lines.close()
    lines._file = Slow(tmp_path / "log", "ab")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: lines.write(f"line {number}"), range(200)))
    lines.close()
    found = (tmp_path / "log").read_text().splitlines()
    assert sorted(found) == sorted(f"line {number}" for number in range(200))


def test_times():
    assert [clock_time(seconds) for seconds in (0, 75, 4000)] == ["0:00", "1:15", "1:06:40"]
    assert [clock_time(seconds) for seconds in (359999, 360000, 8e7, 1e300)] == [
        "99:59:59",
        "4 days",
        "926 days",
        "> 2 years",
    ]
