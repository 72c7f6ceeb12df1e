// Curve panels: one metric each, many runs. Draws plain data and fetches nothing.

import { h, put, debounce } from "./dom.js";
import { isolated, count, duration, show } from "./format.js";
import { TICKS, draw, drawNothing, escapeMarkup } from "./plot.js";

/**
 * @typedef {{step: number[], time: number[], value: number[]}} Curve
 * @typedef {{name: string, title: string, colour: string, width?: number, curve: Curve}} Line
 * @typedef {{smoothing: number, axis: "step" | "time", logX: boolean, logY: boolean}} View
 */

const EVALUATIONS = "eval/"; // measured on all held-out rows: their values are exact, and are not smoothed
const FEW_LINES = 2; // up to this many lines, the raw values are drawn behind the smoothed ones

/** Default view of curves. */
export const VIEW = { smoothing: 0, axis: "step", logX: false, logY: false };

/**
 * Smoothed values: an exponential moving average with debiasing, as in W&B and TensorBoard.
 * @param {number[]} values
 * @param {number} amount the weight, 0 (no smoothing) <= amount < 1
 */
export function smooth(values, amount) {
  if (!amount) return values;
  let mean = 0;
  let missing = 1; // the weight of the initial zero, removed by debiasing
  return values.map((value) => {
    missing *= amount;
    // As a step towards the value, so that a constant stays exactly constant.
    mean += (value - mean) * ((1 - amount) / (1 - missing));
    return mean;
  });
}

/**
 * Text summary of the chart, for screen readers.
 * @param {string} title @param {Line[]} lines @param {"step" | "time"} axis
 * @param {string} reason what to say if no line has a point
 */
export function describe(title, lines, axis, reason) {
  const ends = lines
    .filter((line) => line.curve.value.length)
    .map(({ title, curve }) => ({ title: isolated(title), value: curve.value.at(-1), at: curve[axis].at(-1) }));
  if (!ends.length) return `${title}: ${reason}.`;
  ends.sort((a, b) => a.value - b.value);
  const [low, high] = [ends[0], ends.at(-1)];
  const last = Math.max(...ends.map((end) => end.at));
  const end = axis === "time" ? duration(last) : `step ${show(last)}`;
  if (ends.length === 1) return `${title}: ${show(low.value)} at ${end}.`;
  return (
    `${title}: ${count(ends.length, "run")}, up to ${end}; last values from ${show(low.value)} ` +
    `(${low.title}) to ${show(high.value)} (${high.title}).`
  );
}

/** A panel for one metric. */
export class CurvePanel {
  /** @param {string} title @param {string} [unit] */
  constructor(title, unit = "") {
    this.title = title;
    this.chart = h("div", { class: "chart", role: "img", "aria-label": `${title}: loading` });
    this.summary = h("p", { class: "summary" }, "Loading…");
    this.element = h(
      "figure",
      { class: "panel curve", "data-metric": title },
      h("figcaption", {}, title, unit ? h("span", { class: "unit" }, ` ${unit}`) : null),
      this.chart,
      this.summary,
    );
  }

  /**
   * @param {Line[]} lines the first is drawn on top @param {View} view
   * @param {string} [reason] what to say if there is nothing to draw
   */
  async draw(lines, view, reason = "not logged yet") {
    const words = describe(this.title, lines, view.axis, reason);
    put(this.summary, words);
    this.chart.setAttribute("aria-label", words);
    if (!lines.some((line) => line.curve.value.length)) {
      drawNothing(this.chart, "no data");
      return;
    }
    const traces = [...lines].reverse().map((line) => this.trace(line, view));
    if (lines.length <= FEW_LINES && this.smoothing(view)) {
      traces.unshift(
        ...lines.map((line) => ({
          ...this.trace(line, { ...view, smoothing: 0 }),
          opacity: 0.3,
          hoverinfo: "skip",
          hovertemplate: null,
        })),
      );
    }
    await draw(this.chart, traces, {
      xaxis: {
        title: { text: view.axis === "time" ? "seconds" : "step" },
        type: view.logX ? "log" : "linear",
      },
      yaxis: { type: view.logY ? "log" : "linear", tickformat: TICKS },
    });
  }

  smoothing(view) {
    return this.title.startsWith(EVALUATIONS) ? 0 : view.smoothing;
  }

  trace(line, view) {
    const { value } = line.curve;
    return {
      type: "scatter",
      mode: value.length > 1 ? "lines" : "markers",
      x: line.curve[view.axis],
      y: smooth(value, this.smoothing(view)),
      line: { color: line.colour, width: line.width ?? 1.4 },
      marker: { color: line.colour, size: 6 },
      meta: escapeMarkup(line.title),
      hovertemplate: `%{meta}<br>%{y:.4g} at ${view.axis === "time" ? "%{x:.0f} s" : "step %{x}"}<extra></extra>`,
    };
  }
}

/**
 * The controls of a set of panels: smoothing, step or time, log axes.
 * @param {View} view changed in place
 * @param {() => void} changed
 */
export function viewTools(view, changed) {
  const later = debounce(changed);
  const amount = h("output", {}, view.smoothing.toFixed(2));
  const slider = h("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    value: view.smoothing,
    "aria-label": "Smoothing",
    oninput: (event) => {
      view.smoothing = Number(event.target.value);
      amount.textContent = view.smoothing.toFixed(2);
      later();
    },
  });
  const axis = h(
    "select",
    {
      "aria-label": "Horizontal axis",
      onchange: (event) => {
        view.axis = event.target.value;
        later();
      },
    },
    h("option", { value: "step" }, "step"),
    h("option", { value: "time" }, "time"),
  );
  const check = (label, key) =>
    h(
      "label",
      {},
      h("input", {
        type: "checkbox",
        checked: view[key],
        onchange: (event) => {
          view[key] = event.target.checked;
          later();
        },
      }),
      label,
    );
  return [
    h("label", {}, "smoothing ", slider, amount),
    h("label", {}, "x axis ", axis),
    check("log x", "logX"),
    check("log y", "logY"),
  ];
}

/** Points per run that keep a panel with this many runs fast. */
export function pointsEach(runs) {
  return Math.max(100, Math.min(1000, Math.floor(12000 / Math.max(1, runs))));
}
