// Tables of names and values: of one run, or of several runs side by side.

import { h, put, debounce } from "./dom.js";
import { show } from "./format.js";

/** A table of names and values with a filter. @param {Record<string, any>} values @param {string} label */
export class ValueTable {
  constructor(label) {
    this.filter = h("input", {
      type: "search",
      placeholder: "filter",
      "aria-label": `Filter ${label}`,
      oninput: debounce(() => this.render()),
    });
    this.body = h("tbody");
    this.element = h(
      "div",
      { class: "scroll tall", tabindex: 0, role: "region", "aria-label": label },
      h("table", { class: "values" }, this.body),
    );
    this.values = {};
  }

  update(values) {
    this.values = values;
    this.render();
  }

  render() {
    const query = this.filter.value.trim().toLowerCase();
    const names = Object.keys(this.values)
      .filter((name) => name.toLowerCase().includes(query))
      .sort();
    const rows = names.map((name) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, name),
        h(
          "td",
          { class: typeof this.values[name] === "number" ? "number" : "text" },
          show(this.values[name]),
        ),
      ),
    );
    put(
      this.body,
      rows.length
        ? rows
        : h("tr", {}, h("td", { class: "quiet" }, query ? "No match." : "No data yet.")),
    );
  }
}

/** Runs side by side: differing keys first, identical ones collapsed. */
export class SideBySide {
  /** @param {string} title of the keys @param {(run: object) => Record<string, any>} pick */
  constructor(title, pick) {
    this.title = title;
    this.pick = pick;
    this.differing = h("div", { class: "scroll", tabindex: 0 });
    this.count = h("summary");
    this.same = h("div", { class: "scroll", tabindex: 0 });
    this.folded = h("details", {}, this.count, this.same);
    this.element = h("div", {}, this.differing, this.folded);
  }

  /** @param {object[]} runs */
  update(runs) {
    const names = [...new Set(runs.flatMap((run) => Object.keys(this.pick(run))))].sort();
    const differs = (name) => new Set(runs.map((run) => show(this.pick(run)[name]))).size > 1;
    const same = names.filter((name) => !differs(name));
    put(this.differing, this.table(runs, names.filter(differs), "differs"));
    put(this.same, this.table(runs, same));
    this.count.textContent = `${same.length} the same in all runs`;
    this.folded.hidden = !same.length;
  }

  table(runs, names, kind = null) {
    const heads = runs.map((run) => h("th", { scope: "col", class: "name", title: run.title }, run.title));
    const cells = (name) => runs.map((run) => cell(this.pick(run)[name]));
    const row = (name) => h("tr", { class: kind }, h("th", { scope: "row" }, name), cells(name));
    return h(
      "table",
      { class: "values" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, this.title), heads)),
      h("tbody", {}, names.map(row)),
    );
  }
}

function cell(value) {
  return h("td", { class: typeof value === "number" ? "number" : "text" }, show(value));
}
