"""A picture of a comparison: curves of four metrics, and the ranking."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kto_sweep.compare.comparison import CURVES, Comparison, Curves
from kto_sweep.compare.ranking import RankedTrial
from kto_sweep.compare.sentences import settings_text
from kto_sweep.text import counted
from kto_sweep.trial import lookup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 60
MAX_RANKED = 20
MAX_LABEL = 64


def save_picture(comparison: Comparison, curves: Curves, path: Path) -> None:
    """Write the picture as PNG. Raises OSError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may contain characters that the font lacks
        draw_picture(comparison, curves).savefig(path, format="png")


def draw_picture(comparison: Comparison, curves: Curves) -> "Figure":
    """The picture: curves of four metrics, and the ranked trials."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic([["0", "1", "rank"], ["2", "3", "rank"]], width_ratios=[1, 1, 1.1])
    drawn = [item for item in comparison.trials if item.trial.run_id in curves][:MAX_CURVES]
    shades = colormaps["viridis"]
    colours = {
        item.trial.run_id: shades(0.9 * index / max(1, len(comparison.trials) - 1))
        for index, item in enumerate(comparison.trials)
    }
    for index, metric in enumerate(CURVES):
        _curves(axes[str(index)], metric, drawn, curves, colours)
    _ranking(axes["rank"], comparison, colours)
    figure.suptitle(
        _plain(f"{comparison.view.name}: {counted(len(comparison.trials), 'trial')} ({comparison.view.ref})")
    )
    return figure


def _curves(
    axes: Any, metric: str, drawn: Sequence[RankedTrial], curves: Curves, colours: dict[str, Any]
) -> None:
    axes.set_title(metric, fontsize=10)
    axes.grid(alpha=0.25)
    for index, item in enumerate(reversed(drawn)):
        curve = curves[item.trial.run_id].get(metric)
        if curve is None:
            continue
        best = index == len(drawn) - 1
        dot = "o" if len(curve["value"]) == 1 else None
        axes.plot(
            curve["step"],
            curve["value"],
            color=colours[item.trial.run_id],
            linewidth=2.4 if best else 1.0,
            marker=dot,
        )
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing yet", ha="center", transform=axes.transAxes, color="grey")
        axes.set_axis_off()
        return
    axes.set_xlabel("step", fontsize=8)
    axes.locator_params(axis="x", integer=True)


def _ranking(axes: Any, comparison: Comparison, colours: dict[str, Any]) -> None:
    shown = [item for item in comparison.trials if item.rank is not None][:MAX_RANKED]
    better = "higher" if comparison.goal == "maximize" else "lower"
    axes.set_title(_plain(f"{comparison.metric} ({better} is better)"), fontsize=10)
    if not shown:
        axes.text(0.5, 0.5, "no trial has finished yet", ha="center", transform=axes.transAxes, color="grey")
        axes.set_axis_off()
        return
    values = [item.value or 0.0 for item in shown]
    # Dots, not bars: a bar's axis must start at 0, which would hide differences that are small.
    axes.scatter(
        values, range(len(shown)), color=[colours[item.trial.run_id] for item in shown], s=60, zorder=2
    )
    axes.set_yticks(range(len(shown)), [_label(comparison, item) for item in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(alpha=0.25)
    if math.isclose(min(values), max(values)):
        axes.margins(x=0.5)


def _label(comparison: Comparison, item: RankedTrial) -> str:
    settings = settings_text({name: lookup(item.trial.config, name) for name in comparison.differing()})
    star = "★ " if item.rank == 1 else ""  # of each ranking, if trials were judged on different rows
    return _plain(f"{star}{item.rank}  {item.trial.printable_name}  {settings}"[:MAX_LABEL])


def _plain(text: str) -> str:
    """The text with $ escaped, because matplotlib typesets text between two $ as mathematics."""
    return text.replace("\\", "\\\\").replace("$", r"\$")
