// Compares two to ten runs side by side: differing values first, then curves.

import { ApiError, poll, path, read, segments } from "./api.js";
import { CurvePanel, VIEW, pointsEach, viewTools } from "./curves.js";
import { empty, h, keepingFocus, put, section } from "./dom.js";
import { duration } from "./format.js";
import { rankText, stateMark } from "./run_values.js";
import { colour, onTheme } from "./theme.js";
import { SideBySide } from "./values.js";

const CURVES = ["rewards/margins", "loss", "kl", "gpu/memory_peak_gb", "eval/common_loss", "eval/auc"];
const MAX_RUNS = 10; // the number of colours
const HOW = "Select 2 to 10 runs in a sweep's table, then click compare.";
const [entity, project] = segments();
const names = (new URLSearchParams(location.search).get("runs") ?? "")
  .split(",")
  .filter(Boolean)
  .slice(0, MAX_RUNS);
const main = document.getElementById("main");
const view = { ...VIEW };
const panels = CURVES.map((key) => new CurvePanel(key));
let runs = [];
let curves = {};
let before = "";
let page = null;

put(
  document.getElementById("trail"),
  " / ",
  h("a", { href: path(entity, project) }, `${entity}/${project}`),
  " / compare",
);
document.title = "Compare · kto-sweep";

function colourOf(index) {
  return colour(`c${index + 1}`);
}

function build() {
  page = {
    title: h("h1"),
    runs: h("ul", { class: "compared" }),
    config: new SideBySide("parameter", (run) => run.config),
    summary: new SideBySide("metric", (run) => run.summary),
  };
  put(
    main,
    page.title,
    page.runs,
    section("Configuration", { id: "config" }, page.config.element),
    section("Summary", { id: "summary" }, page.summary.element),
    section(
      "Curves",
      { id: "curves", tools: viewTools(view, draw) },
      h(
        "div",
        { class: "grid" },
        panels.map((panel) => panel.element),
      ),
    ),
  );
}

function drawHead() {
  page.title.textContent = `${runs.length} runs side by side`;
  const heads = runs.map((run, i) =>
    h(
      "li",
      {},
      h("span", { class: "swatch", style: { "--swatch": colourOf(i) } }),
      h("a", { href: path(entity, project, "runs", run.name) }, run.title),
      " ",
      stateMark(run),
      h("span", { class: "quiet" }, `${run.rank ? ` · rank ${rankText(run)}` : ""} · ${duration(run.seconds)}`),
    ),
  );
  keepingFocus(page.runs, () => put(page.runs, heads));
  page.config.update(runs);
  page.summary.update(runs);
}

async function draw() {
  for (const panel of panels) {
    const lines = runs
      .map((run, i) => ({
        name: run.name,
        title: run.title,
        colour: colourOf(i),
        width: 1.8,
        curve: curves[run.name]?.[panel.title],
      }))
      .filter((line) => line.curve);
    panel.element.hidden = !lines.length;
    if (lines.length) await panel.draw(lines, view);
  }
}

/** Loads all runs; fails if one of them no longer exists. */
async function load() {
  try {
    const answers = await Promise.all(names.map((name) => read([entity, project, "runs", name])));
    return answers.map(({ run }) => run);
  } catch (problem) {
    if (!page && problem instanceof ApiError)
      put(main, h("h1", {}, "Compare"), empty(`Cannot compare: ${problem.message}. ${HOW}`));
    throw problem;
  }
}

if (names.length < 2) {
  put(main, h("h1", {}, "Compare"), empty(HOW));
} else {
  onTheme(() => {
    if (page) drawHead();
    draw();
  });
  poll(async () => {
    runs = await load();
    const now = JSON.stringify(runs);
    if (now !== before) {
      before = now;
      const query = [
        ["points", pointsEach(runs.length)],
        ...names.map((name) => ["run", name]),
        ...CURVES.map((key) => ["key", key]),
      ];
      curves = (await read([entity, project, "curves"], query)).curves;
      if (!page) build();
      drawHead();
      await draw();
    }
    return runs.some((run) => run.state === "running");
  });
}
