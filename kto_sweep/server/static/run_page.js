// The page of one run.

import { poll, path, read, segments } from "./api.js";
import { ArtifactList } from "./artifacts.js";
import { ConsoleLog } from "./console_log.js";
import { Controls } from "./controls.js";
import { CurvePanel, VIEW, viewTools } from "./curves.js";
import { code, empty, h, put, section } from "./dom.js";
import { bytes, duration, moment, show } from "./format.js";
import { NotesEditor } from "./notes.js";
import { hasEnded, rankText, stateMark } from "./run_values.js";
import { fact } from "./sweep_head.js";
import { colour, onTheme } from "./theme.js";
import { ValueTable } from "./values.js";

const FIRST = [
  "rewards/margins",
  "loss",
  "kl",
  "gpu/memory_peak_gb",
  "eval/common_loss",
  "rewards/chosen",
  "rewards/rejected",
];
const STOPPED = "killed"; // the failure of a run that was stopped, which is none
const MAX_PANELS = 48;
const POINTS = 1000;

const [entity, project, , name] = segments();
const target = [entity, project, "runs", name];
let facts = null;
let page = null;
let curves = {};
let system = {};
let drawnLines = -1;

function build() {
  const view = { ...VIEW };
  page = {
    view,
    panels: new Map(),
    systemPanels: new Map(),
    controls: new Controls(target, () => refresh()),
    head: h("div", { class: "facts" }),
    alerts: h("div"),
    curves: h("div", { class: "grid" }),
    system: h("div", { class: "grid" }),
    config: new ValueTable("Hyper-parameters"),
    record: new Map(),
    recordGroups: h("div", { class: "pair" }),
    summary: new ValueTable("Summary"),
    console: new ConsoleLog(),
    files: h("div"),
    artifacts: new ArtifactList(`${entity}/${project}`),
  };
  page.notes = new NotesEditor(page.controls);
  put(
    document.getElementById("main"),
    h("div", { class: "title" }, h("h1", {}, facts.run.title), page.controls.element),
    page.head,
    page.alerts,
    page.notes.element,
    section("Curves", { id: "curves", tools: viewTools(view, () => drawCurves()) }, page.curves),
    h(
      "div",
      { class: "pair" },
      section("Hyper-parameters", { id: "config", tools: page.config.filter }, page.config.element),
      section("Summary", { id: "summary", tools: page.summary.filter }, page.summary.element),
    ),
    page.recordGroups,
    section("Console", { id: "console", tools: page.console.filter }, page.console.text),
    section("System", { id: "system" }, page.system),
    section("Files", { id: "files" }, page.files),
    section("Artifacts", { id: "artifacts" }, page.artifacts.element),
  );
  document.title = `${facts.run.title} · kto-sweep`;
  const sweep = facts.sweep
    ? [" / ", h("a", { href: path(entity, project, "sweeps", facts.sweep.name) }, facts.sweep.title)]
    : [];
  put(
    document.getElementById("trail"),
    " / ",
    h("a", { href: path(entity, project) }, `${entity}/${project}`),
    sweep,
    " / ",
    name,
  );
  onTheme(() => drawCurves());
}

function drawFacts() {
  const { run } = facts;
  put(
    page.head,
    fact("state", stateMark(run)),
    run.rank ? fact("rank", rankText(run)) : null,
    typeof run.value === "number" ? fact(facts.sweep.metric, show(run.value)) : null,
    run.exitcode === null ? null : fact("exit code", run.exitcode),
    fact("time", duration(run.seconds)),
    fact("started", moment(run.created)),
    run.host ? fact("host", run.host) : null,
    run.group ? fact("group", run.group) : null,
  );
  const told = run.message && facts.alerts.some((alert) => alert.text.endsWith(run.message)); // after its step
  const why = run.failure && run.failure !== STOPPED && !told
    ? h(
        "p",
        { class: "warning" },
        code(
          `${run.message || `The run ended: ${run.failure}`}. See the console below; \`kto-sweep status\` lists what can be retried.`,
        ),
      )
    : null;
  const alerts = facts.alerts.map((alert) =>
    h(
      "div",
      { class: `alert ${alert.level.toLowerCase()}` },
      h("b", {}, alert.title),
      ` ${alert.text} `,
      h("span", { class: "quiet" }, moment(alert.time)),
    ),
  );
  put(
    page.alerts,
    why,
    alerts.length ? section("Warnings", { id: "alerts", className: "bare" }, alerts) : null,
  );
  page.controls.run(hasEnded(run), run.stopping);
  page.notes.update(run);
  page.config.update(run.config);
  page.summary.update(run.summary);
  drawRecord();
  drawFiles();
  page.artifacts.update(facts.artifacts);
}

/** What the run was trained with: one table per group, created once and reused. */
function drawRecord() {
  const { record } = facts.run;
  for (const [title, values] of Object.entries(record)) {
    if (!page.record.has(title)) {
      const table = new ValueTable(title);
      page.record.set(title, { table, element: section(title, { tools: table.filter }, table.element) });
    }
    page.record.get(title).table.update(values);
  }
  const elements = Object.keys(record).map((title) => page.record.get(title).element);
  const { children } = page.recordGroups;
  if (elements.some((element, i) => children[i] !== element)) put(page.recordGroups, elements);
}

function drawFiles() {
  if (!facts.files.length) {
    put(page.files, empty("The run has uploaded no files."));
    return;
  }
  const rows = facts.files.map((file) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("a", { href: `/-/file/${file.id}` }, file.name)),
      h("td", { class: "number" }, bytes(file.size)),
    ),
  );
  put(
    page.files,
    h("div", { class: "scroll tall", tabindex: 0 }, h("table", { class: "values" }, h("tbody", {}, rows))),
  );
}

function ordered(keys) {
  const place = (key) =>
    FIRST.includes(key) ? FIRST.indexOf(key) : FIRST.length + (key.startsWith("eval/") ? 0 : 1);
  return [...keys].sort((a, b) => place(a) - place(b) || a.localeCompare(b)).slice(0, MAX_PANELS);
}

/** One panel per key, created once and reused. */
async function drawPanels(keys, frame, panels, curves, axis) {
  if (!keys.length) {
    put(frame, empty("Nothing logged yet."));
    return;
  }
  for (const key of keys) if (!panels.has(key)) panels.set(key, new CurvePanel(key));
  const elements = keys.map((key) => panels.get(key).element);
  if (elements.some((element, i) => frame.children[i] !== element)) put(frame, elements);
  for (const key of keys) {
    const lines = curves[key]
      ? [{ name, title: facts.run.title, colour: colour("c1"), width: 1.8, curve: curves[key] }]
      : [];
    await panels.get(key).draw(lines, { ...page.view, axis });
  }
}

async function drawCurves() {
  await drawPanels(ordered(facts.keys), page.curves, page.panels, curves, page.view.axis);
  await drawPanels(Object.keys(system).sort(), page.system, page.systemPanels, system, "time");
}

async function loadCurves() {
  if (facts.lines === drawnLines && hasEnded(facts.run)) return;
  const keys = ordered(facts.keys);
  const query = [["run", name], ["points", POINTS], ...keys.map((key) => ["key", key])];
  curves = (await read([entity, project, "curves"], query)).curves[name] ?? {};
  system = (await read([...target, "system"])).curves;
  drawnLines = facts.lines;
  await drawCurves();
}

const refresh = poll(async () => {
  const answer = await read(target, facts ? [["since", facts.tag]] : []);
  if (answer) {
    facts = answer;
    if (!page) build();
    drawFacts();
  }
  page.console.append(
    await read([...target, "console"], page.console.next === null ? [] : [["from", page.console.next]]),
  );
  if (answer) await loadCurves();
  return !hasEnded(facts.run);
});
