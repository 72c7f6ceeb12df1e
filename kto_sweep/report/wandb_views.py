"""A saved W&B workspace with a sweep's panels in reading order."""

import unicodedata
import warnings
from importlib import import_module
from typing import Any

from kto_sweep.compare.ranking import searched_parameters
from kto_sweep.errors import ServerError, UsageError
from kto_sweep.metrics import METRICS
from kto_sweep.search.distributions import Continuous
from kto_sweep.sweep.view import SweepView

LINES = (
    ("Reward margins", ("rewards/margins",)),
    ("Rewards: chosen and rejected", ("rewards/chosen", "rewards/rejected")),
    ("Loss", ("loss", "eval/common_loss")),
    ("KL", ("kl", "kl_raw")),
    ("GPU memory", ("gpu/memory_peak_gb", "gpu/memory_allocated_gb")),
)
"""Titles and metrics of the line plots."""

INSTALL = "pip install 'kto-sweep[wandb-views]'"


def save_workspace(view: SweepView) -> str:
    """The URL of a new saved workspace in the sweep's project, on the server that wandb uses.

    Raises UsageError without the wandb-workspaces package, ServerError if the server rejects the workspace.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package uses deprecated pydantic features
            panels: Any = import_module("wandb_workspaces.reports.v2")
            workspaces: Any = import_module("wandb_workspaces.workspaces")
    except ImportError as error:
        raise UsageError("W&B's saved views need the package wandb-workspaces", hint=INSTALL) from error
    curves = [
        panels.LinePlot(
            title=_title(title, metrics[0]), x="Step", y=list(metrics), layout=panels.Layout(w=12, h=8)
        )
        for title, metrics in LINES
    ]
    log = {
        parameter.name
        for parameter in view.space.searched
        if isinstance(parameter.distribution, Continuous) and parameter.distribution.log
    }
    columns = [
        panels.ParallelCoordinatesPlotColumn(metric=panels.Config(name), log=name in log)
        for name in searched_parameters(view)
    ]
    columns.append(panels.ParallelCoordinatesPlotColumn(metric=panels.SummaryMetric(view.metric)))
    wide = panels.Layout(w=24, h=10)
    searched = [
        panels.ParallelCoordinatesPlot(title="Parameters and metric", columns=columns, layout=wide),
        panels.ParameterImportancePlot(with_respect_to=view.metric, layout=wide),
    ]
    workspace = workspaces.Workspace(
        entity=view.ref.entity,
        project=view.ref.project,
        name=_allowed(f"KTO: {view.name}"),
        sections=[
            workspaces.Section(name="KTO", panels=curves, is_open=True),
            workspaces.Section(name="Parameters", panels=searched, is_open=True),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Sweep") == view.ref.id],
            order=[workspaces.Ordering(workspaces.Summary(view.metric), ascending=view.goal != "maximize")],
        ),
    )
    try:
        return str(workspace.save().url)
    except Exception as error:  # neither package has a common error class
        raise ServerError(f"{view.ref}: the server rejected the workspace: {error}") from error


def _title(title: str, metric: str) -> str:
    unit = METRICS[metric].unit
    return f"{title} ({unit})" if unit else title


def _allowed(name: str) -> str:
    """The name without the characters that W&B rejects in a workspace's name."""
    return "".join(char for char in name if not unicodedata.category(char).startswith(("S", "C")))
