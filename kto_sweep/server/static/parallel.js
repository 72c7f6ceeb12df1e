// Parallel coordinates: a line per run through its parameters to the metric. The two handles of each axis select the
// runs between them; drag them or move them with the arrow keys.

import { makeAxis } from "./axis.js";
import { h, keepingFocus, put, s } from "./dom.js";
import { count, show } from "./format.js";

const HEIGHT = 260;
const TOP = 34;
const BOTTOM = 18;
const NARROWEST = 110;
const LETTER = 7.6; // pixels per letter of an axis name
const MARGIN = 0.22; // space before the first axis, as a share of the gap
const STEP = 0.05; // share of an axis per press of an arrow key
const SLACK = 0.004; // tolerance, so that a value on the edge is inside

/**
 * @typedef {{name: string, log: boolean}} Dimension
 * @typedef {{name: string, title: string, colour: string, values: any[]}} Run values in the order of the dimensions
 */
export class ParallelPlot {
  /** @param {(names: Set<string> | null) => void} brushed gets the selected runs; null: all */
  constructor(brushed) {
    this.brushed = brushed;
    this.ranges = new Map(); // by name of the axis: [low, high], 0 to 1
    this.runs = [];
    this.dimensions = [];
    this.drawing = s("svg", { class: "parallel", role: "group" });
    this.summary = h("p", { class: "summary" });
    this.clear = h("button", { type: "button", hidden: true, onclick: () => this.reset() }, "clear selection");
    this.frame = h("div", { class: "scroll" }, this.drawing);
    this.element = h("div", {}, this.frame, this.summary);
    this.width = 0;
    const resized = () => this.frame.clientWidth !== this.width && this.render();
    new ResizeObserver(resized).observe(this.frame);
  }

  /** @param {Dimension[]} dimensions @param {Run[]} runs the best first */
  update(dimensions, runs) {
    this.dimensions = dimensions;
    this.runs = runs;
    this.axes = dimensions.map((dimension, i) =>
      makeAxis(
        dimension.name,
        runs.map((run) => run.values[i]),
        dimension.log,
      ),
    );
    this.render();
  }

  reset() {
    this.ranges.clear();
    this.render();
    this.notify();
  }

  /** The runs inside every range. */
  inside() {
    return this.runs.filter((run) =>
      this.axes.every((axis, i) => {
        const range = this.ranges.get(axis.name);
        if (!range) return true;
        const at = axis.place(run.values[i]);
        return at !== null && at >= range[0] - SLACK && at <= range[1] + SLACK;
      }),
    );
  }

  notify() {
    const all = ![...this.ranges.values()].some(([low, high]) => low > 0 || high < 1);
    this.clear.hidden = all;
    this.brushed(all ? null : new Set(this.inside().map((run) => run.name)));
  }

  render() {
    const width = (this.width = this.frame.clientWidth);
    if (!width || !this.axes?.length) return;
    const full = Math.max(width, NARROWEST * this.axes.length);
    this.length = HEIGHT - TOP - BOTTOM;
    this.drawing.setAttribute("viewBox", `0 0 ${full} ${HEIGHT}`);
    this.drawing.style.width = `${full}px`;
    this.drawing.style.height = `${HEIGHT}px`;
    const gap = full / this.axes.length;
    const x = (index) => gap * (index + MARGIN);
    const chosen = new Set(this.inside().map((run) => run.name));
    const lines = [...this.runs].reverse().map((run) => this.line(run, x, chosen.has(run.name)));
    keepingFocus(this.drawing, () =>
      put(
        this.drawing,
        s("g", {}, lines),
        this.axes.map((axis, i) => this.axis(axis, x(i), i < this.axes.length - 1 ? gap : gap * (1 - MARGIN))),
      ),
    );
    this.describe(chosen.size);
  }

  y(at) {
    return TOP + (1 - at) * this.length;
  }

  line(run, x, inside) {
    const points = this.axes
      .map((axis, i) => [x(i), axis.place(run.values[i])])
      .filter(([, at]) => at !== null)
      .map(([across, at]) => `${across.toFixed(1)},${this.y(at).toFixed(1)}`);
    return s(
      "polyline",
      { points: points.join(" "), class: inside ? "run-line" : "run-line out", stroke: run.colour },
      s("title", {}, run.title),
    );
  }

  axis(axis, x, room) {
    const letters = Math.max(4, Math.floor(room / LETTER) - 1);
    const [low, high] = this.ranges.get(axis.name) ?? [0, 1];
    return s(
      "g",
      { class: "axis" },
      s(
        "text",
        { x, y: 12, class: "axis-name" },
        axis.name.length > letters ? `…${axis.name.slice(1 - letters)}` : axis.name,
        s("title", {}, axis.name),
      ),
      s("line", { x1: x, x2: x, y1: this.y(0), y2: this.y(1) }),
      s("line", {
        x1: x,
        x2: x,
        y1: this.y(low),
        y2: this.y(high),
        class: low > 0 || high < 1 ? "range on" : "range",
      }),
      axis.ticks.map((tick) =>
        s("text", { x: x + 12, y: this.y(tick.at) + 4, class: "tick" }, show(tick.text).slice(0, 18)),
      ),
      this.handle(axis, x, 0, low, high),
      this.handle(axis, x, 1, low, high),
    );
  }

  handle(axis, x, end, low, high) {
    const at = end ? high : low;
    const name = `${end ? "upper" : "lower"} bound of ${axis.name}`;
    const handle = s("rect", {
      x: x - 8,
      y: this.y(at) + (end ? -9 : 3),
      width: 16,
      height: 6,
      rx: 3,
      class: "handle",
      tabindex: 0,
      role: "slider",
      "aria-orientation": "vertical",
      "aria-label": name,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": Math.round(at * 100),
      "aria-valuetext": show(axis.valueAt(at)),
      "data-focus": name,
    });
    handle.addEventListener("keydown", (event) => this.press(event, axis, end));
    handle.addEventListener("pointerdown", (event) => this.drag(event, axis, end));
    return handle;
  }

  press(event, axis, end) {
    const moves = { ArrowUp: STEP, ArrowRight: STEP, ArrowDown: -STEP, ArrowLeft: -STEP, Home: -1, End: 1 };
    if (event.key === "Escape") this.ranges.delete(axis.name);
    else if (event.key in moves) {
      const at = (this.ranges.get(axis.name) ?? [0, 1])[end];
      this.move(axis, end, at + moves[event.key]);
    } else return;
    event.preventDefault();
    this.render();
    this.notify();
  }

  drag(event, axis, end) {
    event.preventDefault();
    const move = (next) => {
      const box = this.drawing.getBoundingClientRect();
      const height = ((next.clientY - box.top) / box.height) * HEIGHT;
      this.move(axis, end, 1 - (height - TOP) / this.length);
      this.render();
    };
    const stop = () => {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", stop);
      removeEventListener("pointercancel", stop);
      this.notify();
    };
    addEventListener("pointermove", move);
    addEventListener("pointerup", stop);
    addEventListener("pointercancel", stop);
  }

  move(axis, end, at) {
    const range = [...(this.ranges.get(axis.name) ?? [0, 1])];
    range[end] = Math.min(Math.max(at, end ? range[0] : 0), end ? 1 : range[1]);
    this.ranges.set(axis.name, range);
  }

  describe(chosen) {
    const limits = this.axes
      .filter((axis) => this.ranges.has(axis.name))
      .map(
        (axis) =>
          `${axis.name} ${this.ranges
            .get(axis.name)
            .map((at) => show(axis.valueAt(at)))
            .join(" to ")}`,
      );
    const words = limits.length
      ? `${chosen} of ${count(this.runs.length, "run")} within ${limits.join(", ")}.`
      : `${count(this.runs.length, "run")} over ${this.axes.map((axis) => axis.name).join(", ")}. To select runs, drag the handles of an axis, or focus one and press the arrow keys.`;
    put(this.summary, words);
    this.drawing.setAttribute("aria-label", `Parallel coordinates: ${words}`);
  }
}
