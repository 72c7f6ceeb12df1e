"""One picture of a comparison: the four curves of its runs, and the ranking."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kto_sweep.compare.comparison import CURVES, Comparison, Curves
from kto_sweep.compare.ranking import Ranked
from kto_sweep.trial import lookup

MOST_CURVES = 60
MOST_BARS = 20
LONGEST_LABEL = 46


def save_picture(comparison: Comparison, curves: Curves, path: Path) -> None:
    """Writes the picture. Raises OSError."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), dpi=120, layout="constrained")
    places = figure.subplot_mosaic([["0", "1", "rank"], ["2", "3", "rank"]], width_ratios=[1, 1, 1.1])
    drawn = [item for item in comparison.ranked if item.trial.run_id in curves][:MOST_CURVES]
    shades = colormaps["viridis"]
    colours = {
        item.trial.run_id: shades(0.9 * place / max(1, len(comparison.ranked) - 1))
        for place, item in enumerate(comparison.ranked)
    }
    for place, metric in enumerate(CURVES):
        _curves(places[str(place)], metric, drawn, curves, colours)
    _ranking(places["rank"], comparison, colours)
    figure.suptitle(
        _plain(f"{comparison.view.name}: {len(comparison.ranked)} trials ({comparison.view.ref})")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may have letters that the font lacks
        figure.savefig(path, format="png")


def _curves(axes: Any, metric: str, drawn: Sequence[Ranked], curves: Curves, colours: dict[str, Any]) -> None:
    axes.set_title(metric, fontsize=10)
    axes.grid(alpha=0.25)
    for place, item in enumerate(reversed(drawn)):
        curve = curves[item.trial.run_id].get(metric)
        if curve is None:
            continue
        best = place == len(drawn) - 1
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
    shown = [item for item in comparison.ranked if item.value is not None][:MOST_BARS]
    better = "higher" if comparison.goal == "maximize" else "lower"
    axes.set_title(_plain(f"{comparison.metric} ({better} is better)"), fontsize=10)
    if not shown:
        axes.text(0.5, 0.5, "no trial has a value yet", ha="center", transform=axes.transAxes, color="grey")
        axes.set_axis_off()
        return
    values = [item.value or 0.0 for item in shown]
    # Dots and not bars: the differences are small beside the values, and the axis need not begin at 0.
    axes.scatter(
        values, range(len(shown)), color=[colours[item.trial.run_id] for item in shown], s=60, zorder=2
    )
    axes.set_yticks(range(len(shown)), [_label(comparison, item) for item in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(_plain(", ".join(["run", *comparison.differing()])), fontsize=8)
    axes.grid(alpha=0.25)
    if math.isclose(min(values), max(values)):
        axes.margins(x=0.5)


def _label(comparison: Comparison, item: Ranked) -> str:
    values = (lookup(item.trial.config, name) for name in comparison.differing())
    told = " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)
    star = "★ " if item.rank == 1 else ""
    return _plain(f"{star}{item.trial.run_id}  {told}"[:LONGEST_LABEL])


def _plain(text: str) -> str:
    """The text as it is: matplotlib reads what stands between two $ as mathematics."""
    return text.replace("\\", "\\\\").replace("$", r"\$")
