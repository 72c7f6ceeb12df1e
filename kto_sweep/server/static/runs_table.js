// The table of runs in the order of the comparison: sort, filter, choose columns, hide runs, select some, save as CSV.

import { csv, save } from "./csv.js";
import { add, empty, h, keepingFocus, put, debounce } from "./dom.js";
import { matcher } from "./filter.js";
import { compare, count, duration, moment, show, thousands } from "./format.js";
import { FIXED, stateMark, valueOf } from "./run_values.js";

const FIRST_ROWS = 100;
const MAX_COMPARED = 10;
const JUDGED_ON = "judged on";
const EXTRA = ["rewards/margins", "kl", "gpu/memory_peak_gb"];
const CSV_FIELDS = ["rank", "judged_on", "run_id", "name", "state", "failure", "progress", "minutes"];
const IN_CSV_FIELDS = ["rank", JUDGED_ON, "id", "run", "state", "failure", "progress", "time"];

export class RunsTable {
  /**
   * @param {object} options
   * @param {string[]} options.parameters shown by default
   * @param {{name: string, goal: string} | null} options.metric
   * @param {(run: object) => string} options.link
   * @param {(names: string[]) => string} options.compareLink
   * @param {string} options.command starts an agent
   * @param {() => void} options.changed called when the set of visible runs changes
   * @param {() => void} options.selected called when the set of selected runs changes
   * @param {(query: object) => Promise<{total: number, runs: object[]} | null>} [options.page] matching runs from the
   *   server, for a sweep of which only the first runs are loaded; null if it does not answer
   */
  constructor(options) {
    this.options = options;
    this.runs = [];
    this.colours = new Map();
    this.hidden = new Set();
    this.selected = new Set();
    this.brushed = null; // names selected by another chart's brush, or null
    this.all = false;
    this.total = 0; // runs of the sweep; more than are loaded in a large one
    this.paged = null; // of a large sweep: the answers of the server to the filter and order that `key` names
    const metric = options.metric?.name;
    this.columns = ["rank", "run", "state", ...(metric ? [metric] : []), ...options.parameters];
    this.columns.push(...EXTRA.filter((name) => name !== metric), "time", "tags");
    this.sort = { name: "rank", descending: false };
    this.build();
  }

  build() {
    this.filter = h("input", {
      type: "search",
      placeholder: "state=failed  learning_rate<1e-4  a word",
      "aria-label": "Filter runs",
      oninput: debounce(() => this.refilter(), 120),
    });
    this.status = h("span", { class: "quiet", role: "status" });
    const unhide = () => {
      this.hidden.clear();
      this.refilter();
    };
    this.showAll = h("button", { type: "button", hidden: true, onclick: unhide });
    this.chooser = h(
      "details",
      { class: "menu" },
      h("summary", {}, "columns"),
      h("div", { class: "choices" }),
    );
    this.chooser.addEventListener("toggle", () => this.chooser.open && this.fillChooser());
    this.compareLink = h("a", { class: "button", "aria-disabled": "true" }, "compare");
    this.tools = [
      this.showAll,
      this.filter,
      this.chooser,
      h("button", { type: "button", onclick: () => this.save() }, "CSV"),
      this.compareLink,
    ];
    this.head = h("tr");
    this.body = h("tbody");
    this.more = h("div", { class: "more" });
    this.element = h(
      "div",
      {},
      this.status,
      h(
        "div",
        { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Table of runs" },
        h("table", { class: "runs" }, h("thead", {}, this.head), this.body),
      ),
      this.more,
    );
    this.showCompare();
  }

  /**
   * @param {object[]} runs in the order of the comparison; of a large sweep the first ones
   * @param {Map<string, string>} colours @param {number} [total] runs of the sweep
   * @param {number} [first] how many of `runs` are the first of all; the others run
   */
  update(runs, colours, total = runs.length, first = runs.length) {
    this.runs = runs;
    this.total = total;
    this.first = first;
    if (this.paged?.isFirst && this.paged.rows.length <= first) this.paged = null;
    this.places = new Map(runs.map((run, place) => [run.name, place]));
    this.colours = colours;
    if (runs.some((run) => run.judged_on) && !this.columns.includes(JUDGED_ON)) this.columns.splice(1, 0, JUDGED_ON);
    this.render();
  }

  /** A run's value by column name; the metric is the value by which the run ranks. */
  value(run, name) {
    return name === this.options.metric?.name ? (run.value ?? valueOf(run, name)) : valueOf(run, name);
  }

  /** What a column sorts by; ranks by the order of the comparison, in which those of each set of rows stand together. */
  sortValue(run, name) {
    if (name === "rank") return run.rank === null ? null : this.places.get(run.name);
    return this.value(run, name);
  }

  refilter() {
    this.render();
    this.options.changed();
  }

  /** Whether the server filters and orders the runs, as the page has only the first. */
  isPaged() {
    return this.total > this.runs.length && this.brushed === null;
  }

  /** The loaded rows of a large sweep, and how many match; those of the page until the server has answered. */
  pagedRows() {
    const key = JSON.stringify([this.filter.value.trim(), this.sort]);
    if (this.paged?.key !== key) {
      const isFirst = key === JSON.stringify(["", { name: "rank", descending: false }]);
      const rows = isFirst ? this.runs.slice(0, this.first) : [];
      this.paged = { key, isFirst, rows, total: isFirst ? this.total : null };
      if (!isFirst) this.loadPage();
    }
    const current = new Map(this.runs.map((run) => [run.name, run]));
    return { rows: this.paged.rows.map((run) => current.get(run.name) ?? run), total: this.paged.total };
  }

  /** Adds the next rows of the server to those that are shown. */
  async loadPage() {
    const asked = this.paged;
    const { name, descending } = this.sort;
    const query = { filter: this.filter.value.trim(), sort: name, from: asked.rows.length };
    const answer = await this.options.page(descending ? { ...query, descending: 1 } : query);
    if (answer) {
      const known = new Set(asked.rows.map((run) => run.name));
      asked.rows.push(...answer.runs.filter((run) => !known.has(run.name)));
      asked.total = answer.runs.length ? answer.total : asked.rows.length;
    }
    if (asked === this.paged) this.render();
  }

  /** Shows only runs with these names (null: all), as selected by another chart's brush. */
  brush(names) {
    this.brushed = names;
    this.refilter();
  }

  /** The runs that pass filter and brush, in the table's order; equal ones in the order of the comparison. */
  matching() {
    const fits = matcher(this.filter.value, (run, name) => this.value(run, name));
    const { name, descending } = this.sort;
    return this.runs
      .filter((run) => fits(run) && (this.brushed === null || this.brushed.has(run.name)))
      .sort((a, b) => compare(this.sortValue(a, name), this.sortValue(b, name), descending));
  }

  /** Those of them that are not hidden. */
  visible() {
    return this.matching().filter((run) => !this.hidden.has(run.name));
  }

  render() {
    keepingFocus(this.element, () => this.fill());
  }

  fill() {
    const paged = this.isPaged() ? this.pagedRows() : null;
    const rows = paged ? paged.rows : this.matching();
    const columns = this.shownColumns();
    this.numbers = new Set(columns.filter((name) => this.isNumber(name)));
    put(
      this.head,
      h("th", { class: "pick" }, h("span", { class: "hidden-text" }, "shown and selected")),
      columns.map((name) => this.heading(name)),
    );
    const shown = this.all ? rows : rows.slice(0, FIRST_ROWS);
    put(
      this.body,
      shown.map((run) => this.row(run, columns)),
    );
    put(this.status, this.countText(rows, paged));
    this.showAll.hidden = !this.hidden.size;
    this.showAll.textContent = `show ${this.hidden.size} hidden`;
    put(this.more);
    if (!this.runs.length)
      add(this.more, empty(`No runs yet. On each GPU machine, run: \`${this.options.command}\``));
    else if (!rows.length && paged?.total !== null)
      add(this.more, empty("No run matches. Try `state=failed`, `learning_rate<1e-4` or part of a name."));
    if (shown.length < rows.length) {
      const all = () => {
        this.all = true;
        this.render();
      };
      add(this.more, h("button", { type: "button", onclick: all }, `show all ${rows.length}${paged ? " loaded" : ""}`));
    } else if (paged && rows.length < paged.total) {
      const load = () => this.loadPage();
      add(this.more, h("button", { type: "button", onclick: load }, `load more of ${count(paged.total, "run")}`));
    }
  }

  countText(rows, paged) {
    if (paged) {
      if (paged.total === null) return "searching…";
      return paged.total === this.total
        ? count(this.total, "run")
        : `${thousands(paged.total)} of ${count(this.total, "run")}`;
    }
    return rows.length === this.runs.length
      ? count(rows.length, "run")
      : `${rows.length} of ${count(this.runs.length, "run")}`;
  }

  heading(name) {
    const active = this.sort.name === name;
    const sort = () => {
      this.sort = { name, descending: active ? !this.sort.descending : false };
      this.render();
    };
    const sign = active ? (this.sort.descending ? " ↓" : " ↑") : "";
    return h(
      "th",
      {
        scope: "col",
        class: this.numbers.has(name) ? "number" : null,
        "aria-sort": active ? (this.sort.descending ? "descending" : "ascending") : null,
      },
      h(
        "button",
        { type: "button", class: "sort", "data-focus": `sort ${name}`, onclick: sort },
        name + sign,
      ),
    );
  }

  /** The columns without those that are shown by default and that no run has a value for. */
  shownColumns() {
    return this.columns.filter(
      (name) => !EXTRA.includes(name) || this.runs.some((run) => this.value(run, name) !== null),
    );
  }

  isNumber(name) {
    return name === "time" || this.runs.some((run) => typeof this.value(run, name) === "number");
  }

  row(run, columns) {
    const best = run.rank === 1;
    const hidden = this.hidden.has(run.name);
    const toggle = () => {
      if (!this.hidden.delete(run.name)) this.hidden.add(run.name);
      this.refilter();
    };
    const swatch = h("button", {
      type: "button",
      class: hidden ? "swatch off" : "swatch",
      style: { "--swatch": this.colours.get(run.name) ?? "transparent" },
      "aria-pressed": String(!hidden),
      "aria-label": `show ${run.title} in the charts`,
      title: hidden ? "show in the charts" : "hide from the charts",
      "data-focus": `eye ${run.name}`,
      onclick: toggle,
    });
    const pick = h("input", {
      type: "checkbox",
      "aria-label": `select ${run.title} to compare`,
      checked: this.selected.has(run.name),
      "data-focus": `pick ${run.name}`,
      onchange: (event) => {
        if (event.target.checked) this.selected.add(run.name);
        else this.selected.delete(run.name);
        this.showCompare();
        this.options.selected();
      },
    });
    const cells = columns.map((name) => this.cell(run, name, best));
    return h(
      "tr",
      { class: best ? "best" : null, "data-run": run.name },
      h("td", { class: "pick" }, pick, swatch),
      cells,
    );
  }

  cell(run, name, best) {
    if (name === "run") {
      return h(
        "th",
        { scope: "row" },
        best ? h("span", { class: "star", title: "of the best configuration" }, "★ ") : null,
        h("a", { href: this.options.link(run) }, run.title),
      );
    }
    if (name === "state") return h("td", {}, stateMark(run));
    if (name === "time") return h("td", { class: "number" }, duration(run.seconds));
    if (name === "created") return h("td", {}, moment(run.created));
    if (name === "tags")
      return h(
        "td",
        {},
        run.tags.map((tag) => h("span", { class: "tag" }, tag)),
      );
    const value = this.value(run, name);
    return h(
      "td",
      {
        class: this.numbers.has(name) ? "number" : "text",
        title: typeof value === "string" && value.length > 30 ? value : null,
      },
      show(value),
    );
  }

  fillChooser() {
    const names = new Set([...Object.keys(FIXED), ...this.columns]);
    for (const run of this.runs)
      for (const part of [run.config, run.summary]) for (const name of Object.keys(part)) names.add(name);
    const choice = (name) =>
      h(
        "label",
        {},
        h("input", {
          type: "checkbox",
          checked: this.columns.includes(name),
          onchange: (event) => {
            this.columns = event.target.checked
              ? [...this.columns, name]
              : this.columns.filter((other) => other !== name);
            this.render();
          },
        }),
        name,
      );
    put(this.chooser.lastElementChild, [...names].sort().map(choice));
  }

  showCompare() {
    const number = this.selected.size;
    const ready = number >= 2 && number <= MAX_COMPARED;
    this.compareLink.textContent = number ? `compare ${number}` : "compare";
    this.compareLink.title = ready ? "side by side" : `select 2 to ${MAX_COMPARED} runs`;
    this.compareLink.setAttribute("aria-disabled", String(!ready));
    if (ready) this.compareLink.href = this.options.compareLink([...this.selected]);
    else this.compareLink.removeAttribute("href");
  }

  /** The matching runs with the first columns of `kto-sweep compare --csv`, then the others of this table. */
  async save() {
    if (this.isPaged()) {
      const paged = this.pagedRows() && this.paged;
      while (paged.total === null || paged.rows.length < paged.total) {
        const before = paged.rows.length;
        await this.loadPage();
        if (paged !== this.paged || paged.rows.length === before) return; // another filter, or no answer
      }
    }
    const fields = CSV_FIELDS.filter((name) => name !== "judged_on" || this.runs.some((run) => run.judged_on));
    const others = this.shownColumns().filter((name) => !IN_CSV_FIELDS.includes(name));
    const matching = this.isPaged() ? this.pagedRows().rows : this.matching();
    const rows = matching.map((run) => [
      ...fields.map((name) => csvField(run, name)),
      ...others.map((name) => this.value(run, name)),
    ]);
    save("runs.csv", csv([...fields, ...others], rows));
  }
}

function csvField(run, name) {
  const fields = { run_id: run.name, name: run.title, minutes: run.seconds && Number((run.seconds / 60).toFixed(2)) };
  return name in fields ? fields[name] : run[name];
}
