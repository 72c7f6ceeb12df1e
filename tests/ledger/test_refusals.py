"""A server that knows what is asked for, and does not tell it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from wandb.errors import CommError
from wandb.proto.wandb_api_pb2 import ApiErrorResponse
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from kto_sweep.errors import ServerError
from kto_sweep.sweep import push
from kto_sweep.sweep.ref import SweepRef
from kto_sweep.wandb_client.connection import Target, is_deleted, trouble
from kto_sweep.wandb_client.reader import read_sweep

TARGET = Target("https://wandb.example.com", "https://wandb.example.com", local=False)
REF = SweepRef("me", "kto", "ab12cd34")
REFUSED = WandbApiFailedError("permission denied", ApiErrorResponse(http_status=403))


def server(error: Exception) -> Any:
    def refuse(*args: object, **options: object) -> None:
        raise error

    return SimpleNamespace(flush=lambda: None, sweep=refuse, runs=refuse)


NONSENSE = json.JSONDecodeError("permission denied", "<html>", 0)


@pytest.mark.parametrize(
    "error", [REFUSED, CommError("permission denied", REFUSED), CommError("permission denied", NONSENSE)]
)
def test_a_refusal_is_told_and_not_taken_for_a_sweep_that_is_not_there(error):
    api = server(error)
    with pytest.raises(ServerError, match=r"does not tell of the sweep.*permission denied"):
        read_sweep(api, TARGET, REF)
    with pytest.raises(ServerError, match=r"me/kto cannot be looked at: permission denied"):
        push._runs_there(api, "me/kto", ["run1"])
    with pytest.raises(ServerError, match="does not tell"):
        push._find_sweep(api, TARGET, REF, REF, [], {})
    assert not is_deleted(api, REF)


def test_what_the_server_said_comes_with_its_status():
    assert trouble(REFUSED) == "permission denied (HTTP 403)"


@pytest.mark.parametrize("error", [ValueError("not found"), CommError("not found", ValueError("not found"))])
def test_a_sweep_that_is_not_there_is_unknown(error):
    api = server(error)
    with pytest.raises(ServerError, match="does not know the sweep"):
        read_sweep(api, TARGET, REF)
    assert push._runs_there(api, "me/kto", ["run1"]) == {}
    assert push._find_sweep(api, TARGET, REF, REF, [], {}) is None
    assert is_deleted(api, REF)
