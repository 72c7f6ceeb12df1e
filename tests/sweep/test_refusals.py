"""Server errors are distinguished from sweeps that do not exist."""

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
from kto_sweep.wandb_client.connection import Target, error_text, is_deleted
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
def test_a_rejected_request_is_not_reported_as_a_missing_sweep(error):
    api = server(error)
    with pytest.raises(ServerError, match=r"could not read the sweep.*permission denied"):
        read_sweep(api, TARGET, REF)
    with pytest.raises(ServerError, match=r"could not list the runs of me/kto: permission denied"):
        push._existing_runs(api, "me/kto", ["run1"])
    with pytest.raises(ServerError, match="could not read"):
        push._find_pushed_sweep(api, TARGET, REF, REF, [], {})
    assert not is_deleted(api, REF)


def test_the_servers_message_includes_the_http_status():
    assert error_text(REFUSED) == "permission denied (HTTP 403)"


@pytest.mark.parametrize("error", [ValueError("not found"), CommError("not found", ValueError("not found"))])
def test_a_missing_sweep_is_not_found(error):
    api = server(error)
    with pytest.raises(ServerError, match="has no sweep"):
        read_sweep(api, TARGET, REF)
    assert push._existing_runs(api, "me/kto", ["run1"]) == {}
    assert push._find_pushed_sweep(api, TARGET, REF, REF, [], {}) is None
    assert is_deleted(api, REF)
