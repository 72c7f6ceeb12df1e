// The metric of each run by its creation, with the best ranked value so far.

import { h, put } from "./dom.js";
import { isolated, count, show } from "./format.js";
import { TICKS, draw, drawNothing, escapeMarkup } from "./plot.js";
import { byCreation } from "./run_values.js";
import { colour } from "./theme.js";

const FEW_POINTS = 200;

/**
 * A run with a value: `rank` is null if it does not rank; `judged_on` names the held-out rows, if others had other ones.
 * @typedef {{name: string, title: string, colour: string, created: number, value: number, rank: number | null,
 *   judged_on: string}} Point
 */

export class ScatterPanel {
  constructor() {
    this.chart = h("div", { class: "chart", role: "img", "aria-label": "metric against time: loading" });
    this.summary = h("p", { class: "summary" });
    this.element = h("div", {}, this.chart, this.summary);
  }

  /**
   * @param {Point[]} points @param {{name: string, goal: string}} metric
   * @param {string} reason what to say if there is no point
   */
  async draw(points, metric, reason) {
    const ordered = [...points].sort(byCreation);
    const better = metric.goal === "maximize" ? Math.max : Math.min;
    const words = describe(ordered, metric, reason);
    put(this.summary, words);
    this.chart.setAttribute("aria-label", words);
    if (!ordered.length) {
      drawNothing(this.chart, "no data");
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

/** The ranked points of each ranking, by the rows that they were measured on. */
function rankings(points) {
  const ranked = points.filter((point) => point.rank !== null);
  return [...Map.groupBy(ranked, (point) => point.judged_on)];
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

function describe(points, metric, reason) {
  if (!points.length) return `${metric.name}: ${reason}.`;
  const winners = rankings(points).flatMap(([rows, members]) => {
    const winning = members.filter((point) => point.rank === 1);
    if (!winning.length) return []; // filtered out
    const runs = winning.map(
      (point) => `${isolated(point.title)} (${show(point.value)}, number ${points.indexOf(point) + 1})`,
    );
    return [`best configuration${rows ? ` on ${isolated(rows)}` : ""}: ${runs.join(", ")}`];
  });
  const better = `${metric.name} of ${count(points.length, "run")} by time of creation`;
  return `${[`${better}, ${metric.goal === "maximize" ? "higher" : "lower"} is better`, ...winners].join("; ")}.`;
}
