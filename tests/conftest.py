"""The order of all tests: folders whose tests start whole boxes come first, so that no process is left alone
with a long one at the end."""

import pytest

FIRST = ("agent", "faults", "train_command", "ledger")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in FIRST)
