// Tables of names and values: one run's, or several runs' side by side.

import { h, put, soon } from "./dom.js";
import { show } from "./format.js";

/** A table of names and values with a filter. @param {Record<string, any>} values @param {string} label */
export class ValueTable {
  constructor(label) {
    this.filter = h("input", {
      type: "search",
      placeholder: "filter",
      "aria-label": `Filter ${label}`,
      oninput: soon(() => this.render()),
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
    const wanted = this.filter.value.trim().toLowerCase();
    const names = Object.keys(this.values)
      .filter((name) => name.toLowerCase().includes(wanted))
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
        : h("tr", {}, h("td", { class: "quiet" }, wanted ? "Nothing matches." : "Nothing yet.")),
    );
  }
}

/**
 * Runs side by side: the keys in which they differ first, the others folded away.
 * @param {string} title @param {object[]} runs @param {(run: object) => Record<string, any>} pick
 */
export function sideBySide(title, runs, pick) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(pick(run))))].sort();
  const differs = (name) => new Set(runs.map((run) => show(pick(run)[name]))).size > 1;
  const rows = (some) =>
    some.map((name) =>
      h(
        "tr",
        { class: differs(name) ? "differs" : null },
        h("th", { scope: "row" }, name),
        runs.map((run) =>
          h("td", { class: typeof pick(run)[name] === "number" ? "number" : "text" }, show(pick(run)[name])),
        ),
      ),
    );
  const table = (some) =>
    h(
      "div",
      { class: "scroll", tabindex: 0 },
      h(
        "table",
        { class: "values" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, title),
            runs.map((run) => h("th", { scope: "col" }, run.title)),
          ),
        ),
        h("tbody", {}, rows(some)),
      ),
    );
  const same = names.filter((name) => !differs(name));
  return [
    table(names.filter(differs)),
    same.length ? h("details", {}, h("summary", {}, `${same.length} that are the same`), table(same)) : null,
  ];
}
