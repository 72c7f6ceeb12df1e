// The metric of each run by start time, with the best value so far.

import { h, put } from "./dom.js";
import { isolated, count, show } from "./format.js";
import { TICKS, draw, drawNothing, escapeMarkup } from "./plot.js";
import { judgedOn } from "./rankings.js";
import { colour } from "./theme.js";

const FEW_POINTS = 200;

/**
 * `judged_on`: the rows that the value was measured on, if others were measured on other rows.
 * @typedef {{name: string, title: string, colour: string, created: number, value: number, judged_on?: string}} Point
 */

export class ScatterPanel {
  constructor() {
    this.chart = h("div", { class: "chart", role: "img", "aria-label": "metric against time: loading" });
    this.summary = h("p", { class: "summary" });
    this.element = h("div", {}, this.chart, this.summary);
  }

  /** @param {Point[]} points @param {{name: string, goal: string}} metric */
  async draw(points, metric) {
    const ordered = [...points].sort((a, b) => a.created - b.created);
    const better = metric.goal === "maximize" ? Math.max : Math.min;
    const words = describe(ordered, metric, better);
    put(this.summary, words);
    this.chart.setAttribute("aria-label", words);
    if (!ordered.length) {
      drawNothing(this.chart, "no data yet");
      return;
    }
    const dense = ordered.length > FEW_POINTS; // edges would hide the colours
    const times = ordered.map((point) => new Date(point.created * 1000));
    await draw(
      this.chart,
      [
        ...rankings(ordered).map(([, points]) => bestSoFar(points, better)),
        {
          type: "scatter",
          mode: "markers",
          x: times,
          y: ordered.map((point) => point.value),
          marker: {
            color: ordered.map((point) => point.colour),
            size: dense ? 5 : 8,
            line: { width: dense ? 0 : 1, color: colour("panel") },
          },
          customdata: ordered.map((point) => escapeMarkup(point.title)),
          hovertemplate: "%{customdata}<br>%{y:.4g}<extra></extra>",
        },
      ],
      { yaxis: { title: { text: escapeMarkup(metric.name) }, tickformat: TICKS } },
    );
  }
}

/** The points of each ranking, by the rows that they were measured on. */
function rankings(points) {
  const groups = new Map();
  for (const point of points) groups.set(judgedOn(point), [...(groups.get(judgedOn(point)) ?? []), point]);
  return [...groups];
}

function bestSoFar(points, better) {
  let best = null;
  return {
    type: "scatter",
    mode: "lines",
    x: points.map((point) => new Date(point.created * 1000)),
    y: points.map((point) => (best = best === null ? point.value : better(best, point.value))),
    line: { shape: "hv", color: colour("accent"), width: 1.5 },
    hoverinfo: "skip",
  };
}

function describe(points, metric, better) {
  if (!points.length) return `No run has logged ${metric.name} yet.`;
  const bests = rankings(points).map(([rows, members]) => {
    const value = members.map((point) => point.value).reduce((a, b) => better(a, b));
    const place = points.findIndex((point) => judgedOn(point) === rows && point.value === value);
    return `best ${rows ? `on ${isolated(rows)} ` : ""}${show(value)} by ${isolated(points[place].title)}, number ${place + 1} of ${count(points.length, "run")} by time`;
  });
  return `${metric.name}, ${metric.goal === "maximize" ? "higher" : "lower"} is better: ${bests.join("; ")}.`;
}
