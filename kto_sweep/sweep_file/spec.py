"""A sweep file: plain W&B sweep YAML in, a checked configuration out.

text --yaml_source--> data with lines --spec_checks, spec_parameters, spec_data--> findings
     --spec_numbers--> what to register, numbers as numbers, or every problem with its file and line
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kto_sweep.errors import Problem, SpecError, UsageError
from kto_sweep.metrics import DEFAULT_METRIC, METRICS
from kto_sweep.search.options import BLOCK
from kto_sweep.search.space import Space
from kto_sweep.shipped_files import find_file, shipped_names
from kto_sweep.sweep_file.block import check_block, first_objective, replicated, unpacked
from kto_sweep.sweep_file.checks import check_settings, convert_settings
from kto_sweep.sweep_file.data_files import DataFinder
from kto_sweep.sweep_file.numbers import convert_section
from kto_sweep.sweep_file.parameters import Use, check_parameters
from kto_sweep.sweep_file.yaml_source import Finding, YamlSource, read_yaml
from kto_sweep.text import counted, nearest
from kto_sweep.trial import EVALUATIONS

PROGRAM = "agent.py"
"""What the stock `wandb agent` starts for a trial when the file names no program."""


@dataclass(frozen=True)
class SweepSpec:
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
    """How many trials it takes in all; None: it has no end of its own."""
    notices: tuple[str, ...]
    """What its author should know, in sentences to be said once."""
    project: str | None
    name: str | None
    warm_start: tuple[str, ...] = ()
    """Sweeps whose runs its search learns from."""


@dataclass(frozen=True)
class ExaminedSpec:
    """A sweep file with all that is wrong with it, data files' contents aside."""

    path: Path
    source: YamlSource
    findings: tuple[Finding, ...]
    """Empty when it can be registered."""
    uses: Mapping[str, Sequence[Use]]
    """The values known beforehand of each parameter that the file sets."""
    spec: SweepSpec | None
    """None when something is wrong."""

    def problems(self, findings: Iterable[Finding]) -> list[Problem]:
        """Findings with their places in the file, in its order, each once."""
        problems: dict[Problem, int] = {}
        for finding in findings:
            line = finding.line or self.source.line(finding.path)
            where = " ".join(part for part in (f"{self.path}:{line}", _dotted(finding.path)) if part)
            problems.setdefault(Problem(where, finding.what, finding.why, finding.hint), line)
        return sorted(problems, key=lambda problem: problems[problem])


def load_spec(path: Path, *, dataset_check: bool = True) -> SweepSpec:
    """The sweep that a file describes; `dataset_check` False: local data files need not exist.

    Raises SpecError with every problem; UsageError when there is no such file.
    """
    examined = examine_spec(path, dataset_check=dataset_check)
    if examined.spec is None:
        raise SpecError(str(path), examined.problems(examined.findings))
    return examined.spec


def examine_spec(path: Path, *, dataset_check: bool = True) -> ExaminedSpec:
    """A sweep file and what is wrong with it; `dataset_check` False: local data files need not exist.

    Raises UsageError when there is no such file, or it is no text.
    """
    found = find_file(str(path))
    if found is None:
        raise _no_such_file(path)
    try:
        text = found.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    finder = DataFinder(Path.cwd(), found.resolve().parent.parent) if dataset_check else None
    return examine_text(text, path, finder)


def examine_text(text: str, path: Path, finder: DataFinder | None = None) -> ExaminedSpec:
    """What stands in a sweep file; `finder` looks for its data files, None: they need not exist."""
    source, broken = read_yaml(text)
    if source is None:
        return ExaminedSpec(path, YamlSource(None, {(): 1}), tuple(broken), {}, None)
    if not isinstance(source.data, Mapping):
        what = "the file is empty" if source.data is None else "not a sweep: no keys at the top"
        nothing = Finding((), what, hint="method: grid, and below it parameters:")
        return ExaminedSpec(path, source, (nothing,), {}, None)
    written = convert_settings(source.data)
    config = replicated(written)
    checked = check_parameters(config.get("parameters"), config.get("method"))
    datasets = checked.uses.get("dataset", ())
    findings = (
        *check_settings(config),
        *check_block(written),
        *checked.findings,
        *(finder.findings(datasets) if finder else ()),
    )
    if findings or checked.space is None:
        return ExaminedSpec(path, source, findings, checked.uses, None)
    parameters, notices = convert_section(config["parameters"])
    notices += finder.notices(datasets) if finder else ()
    usual = {"name": DEFAULT_METRIC, "goal": "minimize"}
    metric = {**usual, **first_objective(written), **(config.get("metric") or {})}
    config = unpacked({"program": PROGRAM, **config, "metric": metric, "parameters": parameters})
    spec = SweepSpec(
        config=config,
        space=checked.space,
        method=config["method"],
        metric_name=metric["name"],
        goal=metric["goal"],
        expected_trials=expected_trials(config, checked.space),
        notices=(*notices, *_deprecated(checked.space), *_notices(config, "eval_steps" in checked.uses)),
        project=config.get("project"),
        name=config.get("name"),
        warm_start=tuple(written.get(BLOCK, {}).get("warm_start") or ()),
    )
    return ExaminedSpec(path, source, (), checked.uses, spec)


def expected_trials(config: Mapping[str, Any], space: Space) -> int | None:
    """How many trials a sweep takes in all: the cells of its grid or its run_cap, whichever is smaller."""
    cells = space.grid_size() if config["method"] == "grid" else None
    return min((bound for bound in (cells, config.get("run_cap")) if bound is not None), default=None)


def _notices(config: Mapping[str, Any], sets_eval_steps: bool) -> Iterator[str]:
    """What is allowed and probably not meant."""
    metric, goal = METRICS[config["metric"]["name"]], config["metric"]["goal"]
    if metric.caution:
        yield f"the sweep is judged by {metric.name}: {metric.caution}"
    if metric.goal not in (None, goal):
        better = "higher" if metric.goal == "maximize" else "lower"
        yield f"{metric.name} is better when it is {better}, and goal: {goal} looks for the opposite"
    if config["method"] != "grid" and config.get("run_cap") is None:
        yield f"a {config['method']} sweep without run_cap has no end of its own"
    seeds = config.get(BLOCK, {}).get("replicates")
    if seeds and config.get("run_cap"):
        full, rest = divmod(config["run_cap"], seeds)
        cut = f", and {counted(rest, 'run')} of one more" if rest else ""
        yield (
            f"run_cap counts runs: {config['run_cap']} are {counted(full, 'configuration')} with {seeds} "
            f"seeds{cut}"
        )
    first = first_band(bands(config))
    if first > EVALUATIONS and metric.name.startswith("eval/") and not sets_eval_steps:
        which = "hyperband" if config.get("early_terminate") else "asha"
        yield (
            f"{which} compares trials from evaluation {first} on, and a trial makes {EVALUATIONS} "
            "unless eval_steps is set: it would stop none"
        )


def _deprecated(space: Space) -> Iterator[str]:
    for parameter in space.parameters:
        name = parameter.distribution.name
        if name.endswith("log_uniform"):
            yield f"{parameter.name}: W&B wants {name}_values, with min and max as values, in place of {name}"


def bands(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of a configuration that says when trials are compared, hyperband's or asha's; or empty."""
    return config.get("early_terminate") or config.get(BLOCK, {}).get("asha") or {}


def first_band(section: Mapping[str, Any]) -> int:
    """After how many values of the metric such a section first compares trials; 0: it is empty."""
    if "max_iter" not in section:
        return int(section.get("min_iter", 0))
    found = [int(section["max_iter"] / section.get("eta", 3) ** k) for k in range(1, section["s"] + 1)]
    return min((band for band in found if band >= 1), default=0)


def _dotted(path: tuple[str, ...]) -> str:
    """The path as a person says it: list positions are told by the line."""
    return ".".join(part for part in path if not part.isdigit())


def _no_such_file(path: Path) -> UsageError:
    if path.is_dir():
        files = sorted(str(file) for file in path.glob("*.yaml"))
        return UsageError(f"{path} is a folder", hint=f"name a file in it: {files[0]}" if files else "")
    folder = path.parent if path.parent.is_dir() else Path()
    names = [str(file) for file in sorted(folder.glob("*.y*ml"))] + list(shipped_names())
    near = nearest(str(path), names) or nearest(path.name, names)
    shipped = [name for name in names if name.startswith("sweeps/")]
    return UsageError(f"{path}: no such file", hint=near or f"shipped sweeps: {', '.join(shipped)}")
