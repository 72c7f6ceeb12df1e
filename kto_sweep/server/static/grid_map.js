// Map of a grid's cells by state; a failed one with its cause.

import { h, put } from "./dom.js";
import { show } from "./format.js";
import { causeText } from "./run_values.js";

/** @typedef {{values: Record<string, any>, state: string, cause: string | null, run: string | null, value: number | null}} Cell */

const SIGNS = {
  finished: "●",
  "stopped early": "●",
  running: "▶",
  queued: "○",
  interrupted: "◌",
  paused: "‖",
  failed: "✕",
  canceled: "■",
  "not started": "·",
};
/** Classes of style.css. */
const KINDS = { finished: "done", "stopped early": "done", "not started": "missing" };

export class GridMap {
  /** @param {(run: string) => string} link */
  constructor(link) {
    this.link = link;
    this.summary = h("p", { class: "summary" });
    this.frame = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Map of the grid" });
    this.element = h("div", {}, this.frame, this.summary);
  }

  /**
   * @param {Cell[]} cells
   * @param {string[]} names of the parameters that vary; the last one makes the columns, the others the rows
   * @param {Map<string, string>} colours by run
   */
  draw(cells, names, colours) {
    const across = names.at(-1);
    const down = names.slice(0, -1);
    const columns = distinct(cells.map((cell) => cell.values[across]));
    const rows = new Map();
    for (const cell of cells) {
      const key = JSON.stringify(down.map((name) => cell.values[name]));
      if (!rows.has(key)) rows.set(key, { cell, byColumn: new Map() });
      rows.get(key).byColumn.set(JSON.stringify(cell.values[across]), cell);
    }
    const head = h(
      "tr",
      {},
      down.map((name) => h("th", { scope: "col", class: "corner" }, name)),
      columns.map((value) => h("th", { scope: "col" }, show(value))),
    );
    const body = [...rows.values()].map(({ cell, byColumn }) =>
      h(
        "tr",
        {},
        down.map((name) => h("th", { scope: "row" }, show(cell.values[name]))),
        columns.map((value) => this.cell(byColumn.get(JSON.stringify(value)), colours)),
      ),
    );
    const caption = h("caption", {}, down.length ? `columns: ${across}` : across);
    put(this.frame, h("table", { class: "map" }, caption, h("thead", {}, head), h("tbody", {}, body)));
    put(this.summary, describe(cells));
  }

  cell(cell, colours) {
    if (!cell) return h("td");
    const words = [causeText(cell.cause), cell.value === null ? null : show(cell.value)];
    const label = words.filter(Boolean).join(" ") || cell.state;
    const content = [
      h("span", { class: "sign", "aria-hidden": "true" }, SIGNS[cell.state]),
      h("span", {}, label),
    ];
    const colour = KINDS[cell.state] === "done" && cell.run ? colours.get(cell.run) : null;
    const title = `${cell.state}: ${Object.entries(cell.values)
      .map(([name, value]) => `${name} ${show(value)}`)
      .join(", ")}`;
    const inner = cell.run
      ? h("a", { href: this.link(cell.run), "aria-label": `${title} ${label}` }, content)
      : content;
    return h(
      "td",
      { class: `cell ${KINDS[cell.state] ?? cell.state}`, title, style: colour ? { "--swatch": colour } : {} },
      inner,
    );
  }
}

function distinct(values) {
  return [...new Map(values.map((value) => [JSON.stringify(value), value])).values()];
}

function describe(cells) {
  const counts = {};
  const causes = {};
  for (const cell of cells) {
    counts[cell.state] = (counts[cell.state] ?? 0) + 1;
    if (cell.state === "failed") causes[cell.cause ?? "unknown"] = (causes[cell.cause ?? "unknown"] ?? 0) + 1;
  }
  const why = Object.entries(causes)
    .map(([cause, number]) => `${cause} ${number}`)
    .join(", ");
  const parts = Object.keys(SIGNS)
    .filter((state) => counts[state])
    .map((state) => `${SIGNS[state]} ${counts[state]} ${state}${state === "failed" ? ` (${why})` : ""}`);
  return `${cells.length} cells: ${parts.join(", ")}.`;
}
