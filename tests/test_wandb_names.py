"""The names of projects and entities that W&B accepts."""

import pytest
from wandb import Settings
from wandb.errors import UsageError as WandbUsageError

from kto_sweep.errors import UsageError
from kto_sweep.wandb_names import name_problem, require_name

NAMES = ["kto", "kto (v2)", "höhe+1", "a" * 128, "a" * 129, "a/b", "a\\b", "a#b", "a?b", "100%", "a:b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_project_is_refused_exactly_if_wandb_refuses_it(name: str) -> None:
    try:
        Settings(project=name)
        is_accepted = True
    except (WandbUsageError, ValueError):
        is_accepted = False
    assert (name_problem("project", name) is None) == is_accepted


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("project", "team/kto", "project kto, entity team"),
        ("project", "kto: v2", "kto-v2"),
        ("entity", "my/team", "my-team"),
    ],
)
def test_a_refused_name_has_a_hint_that_is_accepted(kind: str, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"--{kind}: {name} is not the name of") as caught:
        require_name(kind, name, f"--{kind}")
    assert caught.value.hint == hint
