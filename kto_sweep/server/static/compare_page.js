// Two to ten runs side by side: what differs first, then the curves.

import { follow, path, read, segments } from "./api.js";
import { CurvePanel, VIEW, pointsEach, viewTools } from "./curves.js";
import { empty, h, put, section } from "./dom.js";
import { duration } from "./format.js";
import { stateMark } from "./run_values.js";
import { colour, onTheme } from "./theme.js";
import { sideBySide } from "./values.js";

const CURVES = ["rewards/margins", "loss", "kl", "gpu/memory_peak_gb", "eval/common_loss", "eval/auc"];
const MOST = 10;
const [entity, project] = segments();
const names = (new URLSearchParams(location.search).get("runs") ?? "")
  .split(",")
  .filter(Boolean)
  .slice(0, MOST);
const main = document.getElementById("main");
const view = { ...VIEW };
const panels = CURVES.map((key) => new CurvePanel(key));
let runs = [];
let curves = {};
let before = "";

put(
  document.getElementById("trail"),
  " / ",
  h("a", { href: path(entity, project) }, `${entity}/${project}`),
  " / compare",
);
document.title = "Compare · kto-sweep";

function colourOf(index) {
  return index < 8 ? colour(`c${index + 1}`) : colour("quiet");
}

function build() {
  const heads = runs.map((run, i) =>
    h(
      "li",
      {},
      h("span", { class: "swatch", style: { "--swatch": colourOf(i) } }),
      h("a", { href: path(entity, project, "runs", run.name) }, run.title),
      " ",
      stateMark(run),
      h("span", { class: "quiet" }, ` ${duration(run.seconds)}`),
    ),
  );
  put(
    main,
    h("h1", {}, `${runs.length} runs side by side`),
    h("ul", { class: "compared" }, heads),
    section(
      "Configuration",
      { id: "config" },
      sideBySide("parameter", runs, (run) => run.config),
    ),
    section(
      "Summary",
      { id: "summary" },
      sideBySide("metric", runs, (run) => run.summary),
    ),
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

if (names.length < 2) {
  put(main, h("h1", {}, "Compare"), empty("Select 2 to 10 runs in a sweep's table, then press compare."));
} else {
  onTheme(() => draw());
  follow(async () => {
    runs = (await Promise.all(names.map((name) => read([entity, project, "runs", name])))).map(
      (told) => told.run,
    );
    const now = JSON.stringify(runs);
    if (now !== before) {
      before = now;
      const query = [
        ["points", pointsEach(runs.length)],
        ...names.map((name) => ["run", name]),
        ...CURVES.map((key) => ["key", key]),
      ];
      curves = (await read([entity, project, "curves"], query)).curves;
      build();
      await draw();
    }
    return runs.some((run) => run.state === "running");
  });
}
