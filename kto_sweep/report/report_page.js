// The page of a report: the dashboard's charts of the data in the page.

import { CurvePanel, VIEW, viewTools } from "./curves.js";
import { empty, h, put, section } from "./dom.js";
import { duration, moment, show } from "./format.js";
import { ImportancePanel } from "./importance.js";
import { ParallelPlot } from "./parallel.js";
import { bests } from "./rankings.js";
import { RunsTable } from "./runs_table.js";
import { ScatterPanel } from "./scatter.js";
import { stateBar } from "./state_bar.js";
import { onTheme, runColours } from "./theme.js";

const MAX_DRAWN = 60;

const data = JSON.parse(document.getElementById("data").textContent);
const view = { ...VIEW };
const panels = data.panels.map(([title, unit]) => new CurvePanel(title, unit));
const table = new RunsTable({
  parameters: data.parameters.map((parameter) => parameter.name),
  metric: data.metric,
  link: (run) => run.url,
  compareLink: () => data.url,
  command: `kto-sweep agent ${data.sweep}`,
  changed: () => draw(),
});
const parallel = new ParallelPlot((names) => table.brush(names));
const scatter = new ScatterPanel();
const importance = new ImportancePanel();
const notice = h("p", { class: "quiet" });
let colours = new Map();

function facts() {
  const counts = {};
  for (const run of data.runs) counts[run.state] = (counts[run.state] ?? 0) + 1;
  const best = bests(data.runs, (run) => run.value).map((run) => [
    `★ ${show(run.value)} `,
    h("a", { href: run.url }, run.title),
    run.judged_on ? ` on ${run.judged_on} ` : "",
  ]);
  const fact = (name, ...value) =>
    h("div", { class: "fact" }, h("span", { class: "quiet" }, name), h("b", {}, ...value));
  const busy = data.runs.reduce((sum, run) => sum + (run.seconds ?? 0), 0);
  return [
    h(
      "div",
      { class: "facts" },
      fact("state", h("span", { class: `state ${data.state}` }, data.state)),
      fact("method", data.method),
      fact(data.metric.goal, data.metric.name),
      best.length ? fact("best", ...best.flat()) : null,
      fact("compute", duration(busy)),
      fact("as of", moment(data.made)),
      fact("sweep", h("a", { href: data.url }, data.sweep)),
    ),
    stateBar(counts, data.expected),
  ];
}

function verdict() {
  const parts = data.verdict.flatMap(([heading, sentences]) => [
    h("dt", {}, heading),
    sentences.map((text) => h("dd", {}, text)),
  ]);
  return h("dl", { class: "verdict" }, parts);
}

function build() {
  const runs = data.runs.length > 0;
  put(
    document.getElementById("main"),
    h("div", { class: "title" }, h("h1", {}, data.title)),
    facts(),
    section("Verdict", { id: "verdict" }, verdict()),
    section(
      "Curves",
      { id: "curves", tools: runs ? viewTools(view, () => draw()) : [] },
      notice,
      runs
        ? h(
            "div",
            { class: "grid four" },
            panels.map((panel) => panel.element),
          )
        : empty(`No run has logged anything yet. On each GPU machine, run: \`kto-sweep agent ${data.sweep}\``),
    ),
    section(
      "Runs",
      { id: "runs", tools: table.tools.filter((tool) => tool !== table.compareLink) },
      table.element,
    ),
    runs && data.parameters.length
      ? section("Parameters and metric", { id: "parallel", tools: [parallel.clear] }, parallel.element)
      : null,
    h(
      "div",
      { class: "pair" },
      section("Parameter importance", { id: "importance" }, importance.element),
      section("Metric against time", { id: "scatter" }, scatter.element),
    ),
  );
}

function paint() {
  const valued = new Set(data.runs.filter((run) => run.value !== null).map((run) => run.name));
  colours = runColours(
    data.runs.map((run) => run.name),
    valued,
  );
  table.update(data.runs, colours);
  parallel.update(
    [...data.parameters, { name: data.metric.name, log: false }],
    data.runs.map((run) => ({
      name: run.name,
      title: run.title,
      colour: colours.get(run.name),
      values: [...data.parameters.map((parameter) => run.config[parameter.name] ?? null), run.value],
    })),
  );
  importance.draw(data.importance.rows, data.importance.note);
  return draw();
}

async function draw() {
  const visible = new Set(table.visible().map((run) => run.name));
  const shown = data.runs.filter((run) => visible.has(run.name));
  const drawn = shown.filter((run) => data.curves[run.name]).slice(0, MAX_DRAWN);
  notice.hidden = drawn.length === shown.length;
  put(notice, `Curves of ${drawn.length} of ${shown.length} runs, best first.`);
  for (const panel of panels) {
    const lines = drawn
      .filter((run) => data.curves[run.name][panel.title])
      .map((run, i) => ({
        name: run.name,
        title: run.title,
        colour: colours.get(run.name),
        width: i === 0 ? 2.6 : 1.4,
        curve: data.curves[run.name][panel.title],
      }));
    await panel.draw(lines, view);
  }
  const points = shown
    .filter((run) => run.value !== null && run.created !== null)
    .map((run) => ({ ...run, colour: colours.get(run.name) }));
  await scatter.draw(points, data.metric);
}

build();
onTheme(() => paint());
paint();
