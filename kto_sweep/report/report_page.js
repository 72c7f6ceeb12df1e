// The page of a report: the dashboard's charts of the data in the page.

import { CurvePanel, VIEW, viewTools } from "./curves.js";
import { empty, h, put, section } from "./dom.js";
import { drawnNotice, drawnRuns, whyEmpty } from "./drawn_runs.js";
import { moment } from "./format.js";
import { ImportancePanel } from "./importance.js";
import { ParallelPlot } from "./parallel.js";
import { chartedParameters, parallelRows } from "./parallel_rows.js";
import { RunsTable } from "./runs_table.js";
import { ScatterPanel } from "./scatter.js";
import { drawFacts, fact } from "./sweep_head.js";
import { onTheme, runColours } from "./theme.js";
import { VerdictPanel, winners } from "./verdict.js";

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
  selected: () => {}, // a report compares no runs
});
const parallel = new ParallelPlot((names) => table.brush(names));
const scatter = new ScatterPanel();
const importance = new ImportancePanel();
const verdict = new VerdictPanel();
const head = h("div");
const notice = h("p", { class: "quiet" });
let colours = new Map();

function build() {
  const runs = data.runs.length > 0;
  put(
    document.getElementById("main"),
    h("div", { class: "title" }, h("h1", {}, data.title)),
    head,
    section("Verdict", { id: "verdict" }, verdict.element),
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
    runs && chartedParameters(data.parameters).length
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
  colours = runColours(data.runs);
  table.update(data.runs, colours);
  parallel.update(...parallelRows(data.parameters, data.metric, data.runs, colours));
  return draw();
}

async function draw() {
  const names = new Set(table.visible().map((run) => run.name));
  const visible = data.runs.filter((run) => names.has(run.name));
  const inReport = visible.filter((run) => data.curves[run.name]);
  const drawn = drawnRuns(inReport, new Set());
  notice.textContent = drawnNotice(drawn, visible);
  notice.hidden = drawn.length === visible.length;
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
    await panel.draw(lines, view, whyEmpty(panel.title, data.runs, visible, drawn));
  }
  const points = visible
    .filter((run) => run.value !== null && run.created !== null)
    .map((run) => ({ ...run, colour: colours.get(run.name) }));
  await scatter.draw(points, data.metric, whyEmpty(data.metric.name, data.runs, visible, visible));
}

build();
drawFacts(head, data, winners(data.verdict), [
  fact("as of", moment(data.made)),
  fact("sweep", h("a", { href: data.url }, data.sweep)),
]);
verdict.draw(data.verdict);
importance.draw(data.importance.parameters, data.importance.note);
onTheme(() => paint());
paint();
