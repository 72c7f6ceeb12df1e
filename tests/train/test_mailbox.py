"""A worker's end of the lines to its supervisor."""

import os

import pytest

from kto_sweep.protocol import StartTrial, encode
from kto_sweep.train.mailbox import Mailbox


@pytest.mark.parametrize("cut_off", [b"", b'{"kind": "st', b'{"kind": "stoptrial", "run_id": "run\xc3'])
def test_a_worker_ends_with_its_supervisor_even_one_that_was_killed_in_the_middle_of_an_order(
    tmp_path, cut_off
):
    receive, send = os.pipe()
    with os.fdopen(receive, "rb") as orders, (tmp_path / "messages").open("wb") as messages:
        mailbox = Mailbox(orders, messages)
        mailbox.listen()
        os.write(send, encode(StartTrial("run", {}, str(tmp_path / "run"))) + cut_off)
        assert [start.run_id for start in mailbox.starts(wait=True)] == ["run"]
        assert not mailbox.closed
        os.close(send)
        assert mailbox.starts(wait=True) == []
        assert mailbox.closed
        mailbox._claims.pop("run").release()
