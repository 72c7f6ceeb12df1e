"""A pytest plugin for wandb's system tests: they use the embedded server, and each result is recorded.

Its settings come from `wandb_suite.py` by environment variables.
"""

import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

PORT, RESULTS, REASONS = (f"KTO_SWEEP_SUITE_{name}" for name in ("PORT", "RESULTS", "REASONS"))
"""The server's port, the file for results, and the JSON of the tests that do not apply."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what cannot judge this server, and marks what uses a server."""
    rules = [(re.compile(pattern), reason) for pattern, reason in json.loads(os.environ[REASONS]).items()]
    for item in items:
        item.user_properties.append(("server", "local_wandb_backend" in getattr(item, "fixturenames", ())))
        for pattern, reason in rules:
            if pattern.search(item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))
                break


def pytest_collection_finish() -> None:
    """Gives wandb's fixtures the embedded server in place of a container."""
    fixtures = sys.modules["tests.system_tests.backend_fixtures"]
    address = fixtures.LocalWandbBackendAddress("localhost", *2 * [int(os.environ[PORT])])
    conftest = sys.modules["tests.system_tests.conftest"]
    conftest.connect_to_local_wandb_backend = lambda name: address  # type: ignore[attr-defined]
    # Fixtures of the sweep tests reset these, which later SDKs do not have.
    cli = vars(importlib.import_module("wandb.cli.cli"))
    cli.setdefault("_api", None)
    cli.setdefault("_get_cling_api", lambda reset: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Keeps the last line of a failure."""
    report = yield
    if call.excinfo is not None:
        report.user_properties.append(("line", _line(call.excinfo)))
    return report


def _line(problem: pytest.ExceptionInfo[BaseException]) -> str:
    place = problem.traceback[-1]
    text = " ".join(problem.exconly().split())
    return f"{text[:300]} ({Path(place.path).name}:{place.lineno + 1})"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes what counts of a report to the results, in the process that all reports reach."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    if report.skipped:
        expected = hasattr(report, "wasxfail")
        outcome = "xfailed" if expected else "skipped"
        line = report.wasxfail if expected else str(report.longrepr[2])  # type: ignore[index]
    else:
        outcome = report.outcome
        line = str(dict(report.user_properties).get("line", ""))
    entry = {
        "test": report.nodeid,
        "outcome": outcome,
        "line": line.removeprefix("Skipped: "),
        "server": dict(report.user_properties)["server"],
        "text": report.longreprtext,
    }
    with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")
