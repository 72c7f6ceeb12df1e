"""A sweep file: plain W&B sweep YAML in, a checked configuration to register out.

text --yaml_source--> data with lines --setting_checks, kto_sweep_block, parameters, data_files--> problems
                                      --normalise--> SweepConfig, or every problem with its file and line
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kto_sweep.errors import Problem, SweepFileError, UsageError
from kto_sweep.metrics import DEFAULT_METRIC, METRICS
from kto_sweep.search.options import BLOCK
from kto_sweep.search.space import Space
from kto_sweep.search.space_parser import parse_space
from kto_sweep.shipped_files import find_file, shipped_names
from kto_sweep.sweep_file.command import PROGRAM, read_command
from kto_sweep.sweep_file.command_checks import command_notices, fixed_parameters
from kto_sweep.sweep_file.data_files import DataFileChecker
from kto_sweep.sweep_file.kto_sweep_block import (
    check_block,
    first_objective,
    to_registered,
    with_replicate_seeds,
)
from kto_sweep.sweep_file.normalise import normalise_section
from kto_sweep.sweep_file.parameters import GivenValue, check_parameters
from kto_sweep.sweep_file.setting_checks import (
    check_settings,
    convert_settings,
    setting_notices,
    without_anchor_keys,
)
from kto_sweep.sweep_file.yaml_source import YamlSource, read_yaml
from kto_sweep.text import counted, nearest
from kto_sweep.trial import DATA_PARAMETERS, EVALUATIONS


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file that can be registered."""

    config: dict[str, Any]
    """The W&B sweep configuration, with metric, goal and program filled in and numbers as numbers."""
    space: Space
    method: str
    """grid, random or bayes."""
    metric_name: str
    goal: str
    """minimize or maximize."""
    expected_trials: int | None
    """Number of trials; None: it runs until a user stops it."""
    notices: tuple[str, ...]
    """Notes for the author, printed once."""
    project: str | None
    name: str | None
    warm_start: tuple[str, ...] = ()
    """Sweeps whose finished trials the search starts from."""


@dataclass(frozen=True)
class CheckedSweepFile:
    """A sweep file and all its problems, except those in the contents of its data files."""

    path: Path
    source: YamlSource
    problems: tuple[Problem, ...]
    """Empty if it can be registered."""
    values: Mapping[str, Sequence[GivenValue]]
    """For each parameter that the file sets, its listed values or the ends of its range."""
    sweep: SweepConfig | None
    """None if there are problems."""

    def located(self, problems: Iterable[Problem]) -> list[Problem]:
        """Distinct problems with their lines, in file order."""
        at_lines = (
            replace(problem, file=str(self.path), line=problem.line or self.source.line(problem.path))
            for problem in problems
        )
        unique = {str(problem): problem for problem in at_lines}  # [0, 0] on one line has one problem
        return sorted(unique.values(), key=lambda problem: problem.line or 0)


def load_sweep_config(path: Path, *, dataset_check: bool = True) -> SweepConfig:
    """The sweep in a file; `dataset_check` False: local data files need not exist.

    Raises SweepFileError with every problem, UsageError if there is no such file.
    """
    checked = check_sweep_file(path, dataset_check=dataset_check)
    if checked.sweep is None:
        raise SweepFileError(str(path), checked.located(checked.problems))
    return checked.sweep


def check_sweep_file(path: Path, *, dataset_check: bool = True) -> CheckedSweepFile:
    """A sweep file and its problems; `dataset_check` False: local data files need not exist.

    Raises UsageError if there is no such file or it is not text.
    """
    file = find_file(str(path))
    if file is None:
        raise _no_such_file(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not UTF-8 text: {error}") from error
    data_files = DataFileChecker(Path.cwd(), file.resolve().parent.parent) if dataset_check else None
    return check_sweep_text(text, path, data_files)


def check_sweep_text(text: str, path: Path, data_files: DataFileChecker | None = None) -> CheckedSweepFile:
    """The sweep in a file's text and its problems; without `data_files`, data files need not exist."""
    source, syntax_errors = read_yaml(text)
    if source is None:
        return CheckedSweepFile(path, YamlSource(None, {(): 1}), tuple(syntax_errors), {}, None)
    if not isinstance(source.data, Mapping):
        what = "the file is empty" if source.data is None else "not a sweep: no top-level keys"
        problem = Problem((), what, hint="method: grid, and below it parameters:")
        return CheckedSweepFile(path, source, (problem,), {}, None)
    written = convert_settings(without_anchor_keys(source))
    fixed, command_problems = fixed_parameters(written)
    if fixed and isinstance(written.get("parameters"), Mapping | None):
        constants = {name: {"value": value} for name, value in fixed.items()}
        written["parameters"] = {**(written.get("parameters") or {}), **constants}
    config = with_replicate_seeds(written)
    checked = check_parameters(config.get("parameters"), config.get("method"))
    datasets = [value for name in DATA_PARAMETERS for value in checked.values.get(name, ())]
    problems = (
        *check_settings(config),
        *command_problems,
        *check_block(written),
        *checked.problems,
        *(data_files.problems(datasets) if data_files else ()),
    )
    if problems or checked.space is None:
        return CheckedSweepFile(path, source, problems, checked.values, None)
    parameters, notices = normalise_section(config["parameters"])
    space, _ = parse_space(parameters)
    assert space is not None
    notices += data_files.notices(datasets) if data_files else ()
    default = {"name": DEFAULT_METRIC, "goal": "minimize"}
    metric = {**default, **first_objective(written), **(config.get("metric") or {})}
    config = to_registered({"program": PROGRAM, **config, "metric": metric, "parameters": parameters})
    sweep = SweepConfig(
        config=config,
        space=space,
        method=config["method"],
        metric_name=metric["name"],
        goal=metric["goal"],
        expected_trials=expected_trials(config, space),
        notices=(
            *notices,
            *command_notices(read_command(config)),
            *setting_notices(config),
            *_deprecated(space),
            *_notices(config, "eval_steps" in checked.values),
        ),
        project=config.get("project"),
        name=config.get("name"),
        warm_start=tuple(written.get(BLOCK, {}).get("warm_start") or ()),
    )
    return CheckedSweepFile(path, source, (), checked.values, sweep)


def expected_trials(config: Mapping[str, Any], space: Space) -> int | None:
    """The number of trials of a sweep: the cells of its grid or its run_cap, whichever is smaller."""
    cells = space.grid_size() if config["method"] == "grid" else None
    return min((bound for bound in (cells, config.get("run_cap")) if bound is not None), default=None)


def _notices(config: Mapping[str, Any], sets_eval_steps: bool) -> Iterator[str]:
    """Settings that are allowed but probably not intended."""
    metric, goal = METRICS[config["metric"]["name"]], config["metric"]["goal"]
    if metric.caution:
        yield f"the metric is {metric.name}: {metric.caution}"
    if metric.goal not in (None, goal):
        better = "higher" if metric.goal == "maximize" else "lower"
        yield f"{metric.name} is better when {better}, but goal: {goal} searches for the opposite"
    if config["method"] != "grid" and config.get("run_cap") is None:
        yield f"a {config['method']} sweep without run_cap runs until you stop it"
    seeds = config.get(BLOCK, {}).get("replicates")
    if seeds and config.get("run_cap"):
        full, rest = divmod(config["run_cap"], seeds)
        more = f", plus {counted(rest, 'run')} of another" if rest else ""
        yield (
            f"run_cap counts runs: {config['run_cap']} runs are {counted(full, 'configuration')} with "
            f"{seeds} seeds{more}"
        )
    first = first_band(band_settings(config))
    if first > EVALUATIONS and metric.name.startswith("eval/") and not sets_eval_steps:
        rule = "hyperband" if config.get("early_terminate") else "asha"
        yield (
            f"{rule} compares trials from evaluation {first} on, but without eval_steps a trial has "
            f"{EVALUATIONS} evaluations: no trial would be stopped"
        )


def _deprecated(space: Space) -> Iterator[str]:
    for parameter in space.parameters:
        name = parameter.distribution.name
        if name.endswith("log_uniform"):
            low, high = (f"{end:.3g}" for end in parameter.distribution.extremes())
            yield (
                f"{parameter.name}: {name} (here {low} to {high}) is deprecated; use {name}_values, "
                "whose min and max are values"
            )


def band_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration's hyperband or asha section, which sets when trials are compared; or empty."""
    return config.get("early_terminate") or config.get(BLOCK, {}).get("asha") or {}


def first_band(section: Mapping[str, Any]) -> int:
    """The number of metric values after which trials are first compared; 0 for an empty section."""
    if "max_iter" not in section:
        return int(section.get("min_iter", 0))
    bands = [int(section["max_iter"] / section.get("eta", 3) ** k) for k in range(1, section["s"] + 1)]
    return min((band for band in bands if band >= 1), default=0)


def _no_such_file(path: Path) -> UsageError:
    if path.is_dir():
        files = sorted(str(file) for file in path.glob("*.yaml"))
        return UsageError(f"{path} is a folder", hint=f"name a file in it: {files[0]}" if files else "")
    folder = path.parent if path.parent.is_dir() else Path()
    names = [str(file) for file in sorted(folder.glob("*.y*ml"))] + list(shipped_names())
    near = nearest(str(path), names) or nearest(path.name, names)
    shipped = [name for name in names if name.startswith("sweeps/")]
    return UsageError(f"{path}: no such file", hint=near or f"shipped sweeps: {', '.join(shipped)}")
