// The sweep page: fetches data and passes it to the components that draw.

import { drawAgents } from "./agents.js";
import { poll, path, read, report, segments } from "./api.js";
import { Controls } from "./controls.js";
import { CurveStore } from "./curve_store.js";
import { CurvePanel, VIEW, viewTools } from "./curves.js";
import { add, yieldToBrowser, empty, h, keepingFocus, put, section, throttle } from "./dom.js";
import { drawnNotice, drawnRuns, partNotice, whyEmpty } from "./drawn_runs.js";
import { moment } from "./format.js";
import { GridMap } from "./grid_map.js";
import { ImportancePanel } from "./importance.js";
import { ParallelPlot } from "./parallel.js";
import { plotly } from "./plot.js";
import { chartedParameters, parallelRows } from "./parallel_rows.js";
import { RunsTable } from "./runs_table.js";
import { ScatterPanel } from "./scatter.js";
import { drawFacts, fact, isIdle, isOver } from "./sweep_head.js";
import { onTheme, runColours } from "./theme.js";
import { VerdictPanel, winners } from "./verdict.js";

const CURVES = [
  ["rewards/margins", "nats"],
  ["loss", ""],
  ["kl", "nats"],
  ["gpu/memory_peak_gb", "GiB"],
];
const FIRST_DRAWN = 12;
const COMPARISON_INTERVAL = 5000; // milliseconds; the comparison of 1,000 runs takes the server a second
const FIRST_COMPARISON = 250; // milliseconds to wait for it: drawn with the rest, it moves nothing

const [entity, project, , sweepName] = segments();
const COMMAND = `kto-sweep agent ${entity}/${project}/${sweepName}`;
const runs = new Map();
const curves = new CurveStore(
  entity,
  project,
  CURVES.map(([key]) => key),
);
let facts = null;
let tag = null;
let page = null;
let order = []; // the runs in the order of the comparison; of a large sweep the first, and running ones
let total = 0; // runs of the sweep
let first = 0; // how many of `order` are the first of all
let comparison = null; // the verdict and the importance
const firstComparison = Promise.withResolvers();

/** The searched parameters; if the server does not know them, those that differ between runs. */
function parameters() {
  if (facts.parameters.length) return facts.parameters;
  const values = new Map();
  for (const run of runs.values()) {
    for (const [name, value] of Object.entries(run.config)) {
      values.set(name, (values.get(name) ?? new Set()).add(String(value)));
    }
  }
  const differing = [...values].filter(([, seen]) => seen.size > 1).map(([name]) => name);
  return differing.sort().map((name) => ({ name, log: false }));
}

function build() {
  const main = document.getElementById("main");
  const table = new RunsTable({
    parameters: parameters().map((parameter) => parameter.name),
    metric: facts.metric,
    link: (run) => path(entity, project, "runs", run.name),
    compareLink: (names) =>
      `${path(entity, project, "compare")}?${new URLSearchParams({ runs: names.join(",") })}`,
    command: COMMAND,
    changed: () => drawCharts(),
    selected: () => drawLater(),
    page: async (query) => {
      try {
        return await read([entity, project, "sweeps", sweepName, "runs"], Object.entries(query));
      } catch (problem) {
        report(problem);
        return null;
      }
    },
  });
  const view = { ...VIEW };
  const parallel = new ParallelPlot((names) => table.brush(names));
  page = {
    table,
    view,
    parallel,
    panels: CURVES.map(([title, unit]) => new CurvePanel(title, unit)),
    controls: new Controls([entity, project, "sweeps", sweepName], () => refresh()),
    head: h("div"),
    verdict: new VerdictPanel(),
    notice: h("p", { class: "quiet" }),
    scatter: new ScatterPanel(),
    importance: new ImportancePanel(),
    map: new GridMap((name) => path(entity, project, "runs", name)),
    agents: h("div"),
    yaml: h("pre", { class: "tall", tabindex: 0 }),
    problems: h("div"),
  };
  if (comparison) drawComparison(); // before it is on the page: the charts then keep their place
  page.curveGrid = h(
    "div",
    { class: "grid four" },
    page.panels.map((panel) => panel.element),
  );
  page.charts = section(
    "Curves",
    { id: "curves", tools: viewTools(view, () => drawLater()) },
    page.notice,
    page.curveGrid,
  );
  page.parallelSection = section(
    "Parameters and metric",
    { id: "parallel", tools: [parallel.clear] },
    parallel.element,
  );
  page.scatterSection = section("Metric against time", { id: "scatter" }, page.scatter.element);
  page.importanceSection = section("Parameter importance", { id: "importance" }, page.importance.element);
  page.mapSection = section("Grid", { id: "grid" }, page.map.element);
  page.mapSection.hidden = facts.method !== "grid"; // until the cells are loaded
  put(
    main,
    h("div", { class: "title" }, h("h1", {}, facts.title), page.controls.element),
    page.head,
    page.problems,
    section("Verdict", { id: "verdict" }, page.verdict.element),
    page.charts,
    section("Runs", { id: "runs", tools: table.tools }, table.element),
    page.mapSection,
    page.parallelSection,
    h("div", { class: "pair" }, page.importanceSection, page.scatterSection),
    section("Agents", { id: "agents" }, page.agents),
    section("Sweep file", { id: "yaml" }, page.yaml),
  );
  document.title = `${facts.title} · kto-sweep`;
  put(
    document.getElementById("trail"),
    " / ",
    h("a", { href: path(entity, project) }, `${entity}/${project}`),
    " / ",
    sweepName,
  );
  onTheme(() => drawAll());
}

function drawHead() {
  const created = fact("created", moment(facts.created));
  drawFacts(page.head, facts, comparison ? winners(comparison.verdict) : [], [created]);
  put(
    page.problems,
    facts.problems.map((text) => h("p", { class: "warning" }, `Problem in the sweep file: ${text}`)),
  );
  page.controls.sweep(facts.actions);
}

function drawAll() {
  page.colours = runColours(order);
  keepingFocus(page.head, drawHead);
  page.table.update(order, page.colours, total, first);
  const link = (run) => h("a", { href: path(entity, project, "runs", run.name) }, run.title);
  const runOf = (name) => runs.get(name);
  keepingFocus(page.agents, () => drawAgents(page.agents, facts.agents, isIdle(facts), COMMAND, runOf, link));
  page.yaml.textContent = facts.yaml;
  drawCharts();
}

async function loadComparison() {
  try {
    comparison = await read([entity, project, "sweeps", sweepName, "comparison"]);
    if (page) {
      keepingFocus(page.head, drawHead);
      drawComparison();
    }
  } catch (problem) {
    report(problem);
  }
  firstComparison.resolve();
}

const refreshComparison = throttle(loadComparison, COMPARISON_INTERVAL);

function drawComparison() {
  page.verdict.draw(comparison.verdict);
  page.importance.draw(comparison.importance.parameters, comparison.importance.note);
}

/** The map of a grid; hidden for other methods. */
async function drawMap() {
  const answer =
    facts.method === "grid" ? await read([entity, project, "sweeps", sweepName, "cells"]) : { cells: null };
  page.mapSection.hidden = !answer.cells;
  const names = facts.parameters.map((parameter) => parameter.name);
  if (answer.cells) keepingFocus(page.map.element, () => page.map.draw(answer.cells, names, page.colours));
}

/** Draws everything that depends on the visible runs. */
function drawCharts() {
  page.parallelSection.hidden = !chartedParameters(parameters()).length || !runs.size;
  page.scatterSection.hidden = !facts.metric;
  page.importanceSection.hidden = !facts.metric;
  drawLater();
}

function drawParallel() {
  if (page.parallelSection.hidden) return;
  page.parallel.update(...parallelRows(parameters(), facts.metric, order, page.colours));
}

let drawing = false;
let again = false;

/** Draws the charts one after the other, curves first; a call during drawing draws all of them again. */
async function drawLater() {
  if (drawing) {
    again = true;
    return;
  }
  drawing = true;
  do {
    again = false;
    try {
      await yieldToBrowser();
      await drawCurves();
      drawParallel();
      await drawScatter();
      await drawMap();
    } catch (problem) {
      report(problem);
    }
  } while (again);
  drawing = false;
}

function shown() {
  const visible = new Set(page.table.visible().map((run) => run.name));
  const all = order.filter((run) => visible.has(run.name));
  return { all, drawn: drawnRuns(all, page.table.selected) };
}

async function drawCurves() {
  const { all, drawn } = shown();
  page.notice.textContent = [partNotice(order, total), drawnNotice(drawn, all)].filter(Boolean).join(" ");
  page.notice.hidden = !page.notice.textContent;
  if (!runs.size) {
    const text = `No run has logged anything yet. On each GPU machine, run: \`${COMMAND}\``;
    put(page.curveGrid, empty(text));
    return;
  }
  if (!page.curveGrid.contains(page.panels[0].element))
    put(
      page.curveGrid,
      page.panels.map((panel) => panel.element),
    );
  if (curves.isEmpty && drawn.length > FIRST_DRAWN) {
    // Draw the best runs first while the others load.
    const best = drawn.slice(0, FIRST_DRAWN);
    await Promise.all([curves.load(best, drawn.length), plotly()]);
    await drawPanels(best, all);
  }
  await Promise.all([curves.load(drawn, drawn.length), plotly()]);
  await drawPanels(drawn, all);
}

async function drawPanels(drawn, visible) {
  for (const panel of page.panels) {
    const lines = drawn
      .filter((run) => curves.of(run, panel.title))
      .map((run, i) => ({
        name: run.name,
        title: run.title,
        colour: page.colours.get(run.name),
        width: i === 0 ? 2.6 : 1.4,
        curve: curves.of(run, panel.title),
      }));
    await panel.draw(lines, page.view, whyEmpty(panel.title, order, visible, drawn));
    await yieldToBrowser();
  }
}

async function drawScatter() {
  if (!facts.metric) return;
  const { all } = shown();
  const points = all
    .filter((run) => run.value !== null)
    .map((run) => ({ ...run, colour: page.colours.get(run.name) }));
  await page.scatter.draw(points, facts.metric, whyEmpty(facts.metric.name, order, all, all));
}

const refresh = poll(async () => {
  const answer = await read([entity, project, "sweeps", sweepName], tag ? [["since", tag]] : []);
  if (answer) {
    tag = answer.tag;
    facts = answer.sweep;
    if (answer.complete) runs.clear();
    for (const run of answer.runs) runs.set(run.name, run);
    order = answer.order.map((name) => runs.get(name));
    ({ total, first } = answer);
    refreshComparison();
    if (!page) {
      await Promise.race([firstComparison.promise, new Promise((done) => setTimeout(done, FIRST_COMPARISON))]);
      build();
    }
    drawAll();
  } else if (!comparison) refreshComparison(); // the first request failed
  return !isOver(facts) || [...runs.values()].some((run) => run.state === "running");
});

add(document.getElementById("live"), "loading");
