// Parameter importance for the metric: share, rank correlation, and the best of the tried values.

import { empty, h, put } from "./dom.js";

/** @typedef {{name: string, importance: number, correlation: number | null, best_region: string}} Importance */

export class ImportancePanel {
  constructor() {
    this.element = h("div", {}, h("p", { class: "quiet" }, "Computing…"));
  }

  /** @param {Importance[]} rows @param {string} note how reliable it is, or why it is empty */
  draw(rows, note) {
    if (!rows.length) {
      put(this.element, empty(note));
      return;
    }
    const largest = Math.max(...rows.map((row) => row.importance), 1e-9);
    const heads = ["parameter", "importance", "correlation", "best at"].map((text) => h("th", { scope: "col" }, text));
    put(
      this.element,
      h(
        "div",
        { class: "scroll", tabindex: 0 },
        h(
          "table",
          { class: "importance" },
          h("thead", {}, h("tr", {}, heads)),
          h(
            "tbody",
            {},
            rows.map((row) => line(row, largest)),
          ),
        ),
      ),
      h("p", { class: "summary" }, note),
    );
  }
}

function line(row, largest) {
  const bar = h(
    "span",
    { class: "meter" },
    h("span", { style: { width: `${(100 * row.importance) / largest}%` } }),
  );
  const known = row.correlation !== null;
  const size = known ? Math.min(Math.abs(row.correlation), 1) * 50 : 0;
  const from = known && row.correlation < 0 ? 50 - size : 50;
  const signed = h(
    "span",
    { class: "meter signed" },
    h("span", {
      class: known && row.correlation < 0 ? "below" : "",
      style: { left: `${from}%`, width: `${size}%` },
    }),
  );
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, row.name),
    h("td", {}, bar, h("span", { class: "number" }, `${Math.round(100 * row.importance)}%`)),
    h(
      "td",
      {},
      signed,
      h("span", { class: "number" }, known ? signedText(row.correlation) : ""),
    ),
    h("td", {}, row.best_region),
  );
}

/** `+0.12`, `-0.50` */
function signedText(value) {
  return `${value < 0 ? "" : "+"}${value.toFixed(2)}`;
}
