"""Writes docs/pictures/rivals.svg from benchmarks/rivals.json: `make pictures`.

One panel per model, one bar per trainer, each panel with a scale of its own. A result without `seconds` shows
its `note`; what was not measured has no bar and is named below the panels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DATA = ROOT / "benchmarks" / "rivals.json"
CHART = ROOT / "docs" / "pictures" / "rivals.svg"
OURS = "kto-sweep"

WIDTH = 880
COLUMNS = 2
MARGIN = 20
HEAD = 58
FOOT = 34
ROW = 25
NAMES = 154
BARS = 150
"""In pixels. A panel has its trainers' names on the left, then bars of at most BARS, then their values."""

# A viewer that knows no media queries gets the light colours; the background makes either readable anywhere.
STYLE = """\
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.panel { font-size: 14px; font-weight: 600; }
.small { font-size: 12px; fill: #59636e; }
.ours { font-weight: 600; }
.ground { fill: #f6f8fa; stroke: #d0d7de; }
.bar { fill: #8c959f; }
.bar.ours { fill: #0969da; }
.range { stroke: #8c959f; stroke-width: 2; }
.range.ours { stroke: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9198a1; }
  .ground { fill: #0d1117; stroke: #3d444d; }
  .bar { fill: #656c76; }
  .range { stroke: #656c76; }
  .bar.ours { fill: #4493f8; }
  .range.ours { stroke: #4493f8; }
}"""

Result = Mapping[str, Any]


def lead(results: Sequence[Result]) -> float:
    """How many times as fast our fastest result is as the fastest of the others; `results` of one model."""
    timed = [result for result in results if "seconds" in result]
    ours = min(result["seconds"] for result in timed if result["trainer"] == OURS)
    others = min(result["seconds"] for result in timed if result["trainer"] != OURS)
    return float(others / ours)


def by_model(data: Mapping[str, Any]) -> dict[str, list[Result]]:
    """The results of each model."""
    return {
        model: [result for result in data["results"] if result["model"] == model] for model in data["models"]
    }


def chart(data: Mapping[str, Any]) -> str:
    """The whole picture, as SVG."""
    panels = by_model(data)
    rows = max(map(len, panels.values()))
    panel_height = (rows + 1) * ROW + 18
    height = HEAD + -(-len(panels) // COLUMNS) * panel_height + FOOT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(data['title'])}</title>",
        f"<desc>{escape(summary(data))}</desc>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        _text(MARGIN, 28, data["title"], "title"),
        _text(MARGIN, 47, f"{data['setting']}. Lower is better.", "small"),
    ]
    for number, (model, results) in enumerate(panels.items()):
        x = MARGIN + number % COLUMNS * (WIDTH // COLUMNS)
        y = HEAD + number // COLUMNS * panel_height + ROW
        lines += _panel(x, y, model, results)
    notes = f"Ratios are against the fastest alternative. Not measured: {data['not_measured']}."
    lines += [_text(MARGIN, height - 14, notes, "small"), "</svg>"]
    return "\n".join(lines) + "\n"


def summary(data: Mapping[str, Any]) -> str:
    """The picture in words."""
    parts = (
        f"{model}: " + ", ".join(f"{_name(result)} {_value(result)}" for result in results)
        for model, results in by_model(data).items()
    )
    return "; ".join(parts)


def _panel(x: int, y: int, model: str, results: Sequence[Result]) -> Iterator[str]:
    longest = max(result.get("slowest", result.get("seconds", 0.0)) for result in results)
    fastest = min(result["seconds"] for result in results if "seconds" in result)
    start = x + NAMES
    yield _text(x, y, model, "panel")
    for number, result in enumerate(results, 1):
        middle = y + number * ROW
        kind = "ours" if result["trainer"] == OURS else ""
        yield _text(start - 8, middle + 4, _name(result), kind, anchor="end")
        if "seconds" not in result:
            yield _text(start + 6, middle + 4, _value(result), "small")
            continue
        end = bar_end = start + BARS * result["seconds"] / longest
        yield (
            f'<rect class="bar {kind}" x="{start}" y="{middle - 8}" '
            f'width="{bar_end - start:.1f}" height="16" rx="2"/>'
        )
        if "slowest" in result:
            end = start + BARS * result["slowest"] / longest
            yield (
                f'<line class="range {kind}" x1="{bar_end:.1f}" y1="{middle}" x2="{end:.1f}" y2="{middle}"/>'
            )
        is_lead = kind == "ours" and result["seconds"] == fastest
        ratio = f", {lead(results):.1f}x as fast" if is_lead else ""
        yield _text(end + 6, middle + 4, _value(result) + ratio, kind)


def _name(result: Result) -> str:
    if "processes" in result:
        return f"{result['processes']} x {result['trainer']}"  # that many at once on the GPU
    if result["trainer"] == OURS:
        return f"{OURS}, {result['trials']} {'trial' if result['trials'] == 1 else 'trials'}"
    return str(result["trainer"])


def _value(result: Result) -> str:
    if "seconds" not in result:
        return str(result["note"])
    values: list[float] = [result[key] for key in ("seconds", "slowest") if key in result]
    return " to ".join(f"{value:.2g}" if value < 0.1 else f"{value:.2f}" for value in values)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    CHART.write_text(chart(json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"Written: {CHART}")
