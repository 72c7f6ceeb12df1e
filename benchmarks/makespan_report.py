"""The results of makespan.py for people: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODES = ("trl", "tuned", "ours")
SHOWN = {"trl": "TRL defaults", "tuned": "TRL tuned", "ours": "kto-sweep"}
COLOURS = {"trl": "#9a9a9a", "tuned": "#c9c9c9", "ours": "#2a6f97"}

SETTING = (
    "model",
    "memory_gib",
    "learning_rates",
    "batch_sizes",
    "trial_steps",
    "max_length",
    "held_out_rows",
    "gpus",
)
"""What results must agree in to be compared."""

Result = dict[str, Any]


def same_setting(a: Result, b: Result) -> bool:
    """Whether two results are of the same sweep."""
    return all(a[name] == b[name] for name in SETTING)


def slower_than_ours(result: Result, results: Sequence[Result]) -> float | None:
    """How many times as long as ours a baseline takes, where both are known."""
    for other in results:
        if other["mode"] == "ours" and result["mode"] != "ours" and same_setting(result, other):
            return float(result["makespan_s"] / other["makespan_s"])
    return None


def table(results: Sequence[Result]) -> list[Result]:
    """The results for people."""
    return [
        {
            "model": result["model"],
            "GPU GiB": result["memory_gib"] or "all",
            "GPUs": result["gpus"],
            "trials x steps": f"{len(result['learning_rates']) * len(result['batch_sizes'])}"
            f" x {result['trial_steps']}",
            "trainer": SHOWN[result["mode"]]
            + (" (extrapolated)" * bool(result.get("extrapolated_from_steps"))),
            "makespan, min": result.get("error") or f"{result['makespan_s'] / 60:.2f}",
            "x ours": slower_than_ours(result, results),
            "start-up, s": result.get("start_s"),
            "s per step and trial": result["step_s"],
            "evaluation, s": result.get("evaluation_s"),
            "CPU s": result.get("cpu_s"),
            "peak GiB": result.get("peak_gib"),
            "of ceiling in steps": result.get("of_ceiling_in_steps"),
            "of ceiling": result.get("of_ceiling"),
            "load": result.get("load"),
        }
        for result in results
    ]


def plot(results: Sequence[Result], path: Path) -> None:
    """Makespans as bars, a picture for each sweep."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sweeps: list[list[Result]] = []
    for result in results:
        group = next((group for group in sweeps if same_setting(group[0], result)), None)
        if group is None:
            sweeps.append([result])
        else:
            group.append(result)
    figure, axes = pyplot.subplots(
        len(sweeps), squeeze=False, figsize=(8, 0.6 + 1.5 * len(sweeps)), layout="constrained"
    )
    for axis, group in zip(axes[:, 0], sweeps, strict=True):
        shown = sorted(group, key=lambda result: -MODES.index(result["mode"]))
        minutes = [0.0 if "error" in result else result["makespan_s"] / 60 for result in shown]
        bars = axis.barh(
            [SHOWN[result["mode"]] for result in shown],
            minutes,
            color=[COLOURS[result["mode"]] for result in shown],
        )
        words = []
        for result, value in zip(shown, minutes, strict=True):
            times = slower_than_ours(result, results)
            words.append(result.get("error") or f"{value:.1f} min" + (f"   {times:.1f}x" if times else ""))
        axis.bar_label(bars, words, padding=4)
        first = group[0]
        trials = len(first["learning_rates"]) * len(first["batch_sizes"])
        card = f" on {first['memory_gib']:g} GiB" if first["memory_gib"] else ""
        axis.set_title(f"{first['model']}{card}: {trials} trials of {first['trial_steps']} steps", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.25)
    axes[-1, 0].set_xlabel("minutes for the whole sweep")
    figure.savefig(path, dpi=150)
