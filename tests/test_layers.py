"""The dependency direction: who may import whom, directly or through others."""

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = (
    (
        "errors",
        "text",
        "terminal",
        "metrics",
        "protocol",
        "home",
        "http",
        "paths",
        "memory_limit",
        "json_file",
        "env_vars",
        "backoff",
        "locks",
        "streams",
        "compact_mapping",
        "provenance",
    ),
    ("wandb_names", "models", "disk", "row_file", "shipped_files", "model_card"),
    ("alerts", "parameter_types", "run_record", "run_log", "throughput"),
    ("trial",),
    ("search", "fingerprints", "data"),
    ("sweep_file",),
    ("plan",),
    (
        "sweep.ref",
        "sweep.view",
        "sweep.trial_state",
        "sweep.grid_status",
        "sweep.sweep_state",
        "sweep.gpu_hours",
    ),
    ("compare", "local_server"),
    ("sweep.trial_rows",),
    ("wandb_client",),
    ("sweep",),
    ("server", "train"),
    ("agent",),
    ("report", "train_command"),
    ("cli",),
    ("__main__",),
)
"""From the bottom up; a module belongs to the longest name that it begins with.

It may import from lower layers, from its own part, and, where its layer's parts are single modules, from the
others of its layer. `models` is below `trial`: a trial names its base model by a preset.
"""
TORCH = ("torch", "trl", "peft", "accelerate", "bitsandbytes", "triton")
OUT_OF_REACH = {
    "kto_sweep.server": (*TORCH, "wandb", "kto_sweep.train", "kto_sweep.agent"),
    "kto_sweep.compare": (*TORCH, "wandb", "kto_sweep.train", "kto_sweep.agent", "kto_sweep.server"),
    "kto_sweep.plan": (*TORCH, "wandb", "kto_sweep.train"),
    "kto_sweep.train": ("wandb", "kto_sweep.server", "kto_sweep.agent", "kto_sweep.wandb_client"),
    "kto_sweep.agent": (*TORCH, "kto_sweep.train"),
}
"""What a package must not reach through anybody, not even when a function is called."""
BOTH_SIDES = {"kto_sweep.agent.wandb_agent"}
"""Under wandb's own agents one process both logs and trains."""
WANDB = ("kto_sweep.wandb_client", "kto_sweep.agent", "kto_sweep.sweep.push", "kto_sweep.sweep.push_files")
"""Parts that may import wandb."""

Graph = dict[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "kto_sweep").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Every name that a file imports: at the top, inside a function, or for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def graph() -> Graph:
    """Of each module the modules of the project, and the top names of packages, that it imports."""
    known = modules()
    found: Graph = {}
    for name, path in known.items():
        found[name] = set()
        for imported in imports(path):
            if imported.startswith("kto_sweep"):
                target = imported if imported in known else imported.rpartition(".")[0]
                if target not in ("kto_sweep", name):
                    found[name].add(target)
            else:
                found[name].add(imported.partition(".")[0])
    return found


def is_in(name: str, parts: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def layer_of(module: str) -> tuple[int, str]:
    """The layer's number and the part of it that the module belongs to."""
    inside = module.removeprefix("kto_sweep.")
    fitting = [
        (len(part), number, part)
        for number, parts in enumerate(LAYERS)
        for part in parts
        if is_in(inside, [part])
    ]
    assert fitting, f"{module} is in no layer"
    _, number, part = max(fitting)
    return number, part


def test_modules_import_from_lower_layers_alone() -> None:
    packages = {path.parent.name for path in (ROOT / "kto_sweep").glob("*/__init__.py")}
    offenders = []
    for module, imported in graph().items():
        if module == "kto_sweep":
            continue
        number, part = layer_of(module)
        for other in sorted(name for name in imported if name.startswith("kto_sweep.")):
            theirs, other_part = layer_of(other)
            same_layer = theirs == number and part not in packages and other_part not in packages
            if theirs >= number and part != other_part and not same_layer:
                offenders.append(f"{module} -> {other}")
    assert not offenders, "\n".join(offenders)


def test_there_is_no_circle() -> None:
    links = {
        name: {other for other in found if other.startswith("kto_sweep.")} for name, found in graph().items()
    }
    left = dict(links)
    while free := {name for name, found in left.items() if not found & left.keys()}:
        left = {name: found for name, found in left.items() if name not in free}
    circles = {name: found & left.keys() for name, found in left.items()}
    assert not circles, "\n".join(f"{name} -> {', '.join(sorted(found))}" for name, found in circles.items())


def test_nothing_is_reached_that_is_out_of_reach() -> None:
    links = graph()
    offenders = []
    for package, forbidden in OUT_OF_REACH.items():
        for start in (name for name in links if is_in(name, [package]) and name not in BOTH_SIDES):
            ways = {start: start}
            queue = [start]
            while queue:
                here = queue.pop()
                for other in links.get(here, set()) - ways.keys():
                    ways[other] = f"{ways[here]} -> {other}"
                    queue.append(other)
            offenders += [way for name, way in ways.items() if is_in(name, forbidden)]
    assert not offenders, "\n".join(sorted(offenders))


def test_torch_and_wandb_are_known_to_few() -> None:
    offenders = []
    for module, imported in graph().items():
        if imported & set(TORCH) and not is_in(module, ["kto_sweep.train"]):
            offenders.append(f"{module} -> torch")
        if "wandb" in imported and not is_in(module, WANDB) and not only_for_types(module, "wandb"):
            offenders.append(f"{module} -> wandb")
    assert not offenders, "\n".join(offenders)


def only_for_types(module: str, package: str) -> bool:
    """Whether every import of the package stands below `if TYPE_CHECKING`."""
    tree = ast.parse(modules()[module].read_text())
    typed = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    return not any(
        alias.name.partition(".")[0] == package
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in typed
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    )


def test_no_two_test_modules_have_one_name() -> None:
    """Test folders are no packages: the second module of a name would be taken for the first."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
