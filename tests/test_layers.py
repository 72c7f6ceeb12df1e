"""The dependency direction: what each part may import."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "kto_sweep"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(module: Path) -> set[str]:
    """Every module that `module` names in an import, at the top or inside a function; type checking aside."""
    tree = ast.parse((PACKAGE / module).read_text())
    only_types = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def uses(module: Path, *packages: str) -> set[str]:
    return {name for name in imports(module) for package in packages if f"{name}.".startswith(f"{package}.")}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_wandb_is_known_to_few(module):
    if str(module) in {
        "agent/link.py",
        "agent/runs.py",
        "agent/stock.py",
        "sweep/push.py",
        "sweep/remote.py",
        "sweep/target.py",
    }:
        return
    assert not uses(module, "wandb")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_torch_is_known_to_training_alone(module):
    if module.parts[0] == "train":
        return
    assert not uses(module, "torch", "trl", "peft", "accelerate")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_imports_the_command_line(module):
    if module.parts[0] in {"cli", "__main__.py"}:
        return
    assert not uses(module, "kto_sweep.cli")


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in {"server", "search"}], ids=str)
def test_the_server_knows_no_trainer_and_no_agent(module):
    assert not uses(module, "kto_sweep.train", "kto_sweep.data", "kto_sweep.agent", "kto_sweep.trial")


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in {"train", "data"}], ids=str)
def test_training_knows_no_server_and_no_agent(module):
    assert not uses(
        module, "kto_sweep.server", "kto_sweep.search", "kto_sweep.agent", "kto_sweep.sweep.remote"
    )


def test_no_two_test_modules_have_one_name() -> None:
    """Test folders are no packages: the second module of a name would be taken for the first."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
