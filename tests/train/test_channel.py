"""A worker's connection to its supervisor."""

import os

import pytest

from kto_sweep.protocol import Failed, StartTrial, decode, encode
from kto_sweep.train.worker.admission_queue import AdmissionQueue
from kto_sweep.train.worker.channel import Channel

CONFIG = {"model": "tiny", "dataset": "rows.jsonl"}


@pytest.mark.parametrize("partial_order", [b"", b'{"kind": "st', b'{"kind": "stoptrial", "run_id": "run\xc3'])
def test_the_channel_closes_when_the_supervisor_is_killed_in_the_middle_of_an_order(tmp_path, partial_order):
    receive, send = os.pipe()
    with os.fdopen(receive, "rb") as orders, (tmp_path / "messages").open("wb") as messages:
        queue = AdmissionQueue()
        channel = Channel(orders, messages, queue)
        channel.listen()
        os.write(send, encode(StartTrial("run", CONFIG, str(tmp_path / "run"))) + partial_order)
        queue.wait()
        request = queue.first().request
        assert request.run_id == "run"
        assert not request.should_stop()
        assert not channel.closed
        os.close(send)
        queue.wait()
        assert len(queue) == 0
        assert channel.closed
        assert request.should_stop()
        channel._run_locks.pop("run").release()


def test_a_trial_with_an_invalid_configuration_fails_and_is_not_queued(tmp_path):
    receive, send = os.pipe()
    with os.fdopen(receive, "rb") as orders, (tmp_path / "messages").open("wb") as messages:
        queue = AdmissionQueue()
        Channel(orders, messages, queue).listen()
        os.write(send, encode(StartTrial("run", {**CONFIG, "beta": -1}, str(tmp_path / "run"))))
        os.close(send)
        queue.wait()
        assert len(queue) == 0
    failed = decode((tmp_path / "messages").read_bytes())
    assert isinstance(failed, Failed)
    assert "beta" in failed.message
