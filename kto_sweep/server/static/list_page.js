// The list of sweeps: of all projects, or of one project with its runs without a sweep.

import { poll, path, read, segments } from "./api.js";
import { add, empty, h, put, section } from "./dom.js";
import { duration, hours, moment, show } from "./format.js";
import { stateClass, stateMark } from "./run_values.js";
import { stateBar } from "./state_bar.js";

const [entity, project] = segments();
const main = document.getElementById("main");
const title = project ? `${entity}/${project}` : "Sweeps";
document.title = `${title} · kto-sweep`;
if (project) put(document.getElementById("trail"), ` / ${title}`);
let before = "";

const NUMBERS = ["best", "time"];
const CREATE =
  "No sweeps yet. Register one: `kto-sweep create sweeps/demo.yaml --local`, then `kto-sweep agent`. Or try: `kto-sweep demo`";

function sweepRow(sweep) {
  return h(
    "tr",
    {},
    h(
      "th",
      { scope: "row" },
      h("a", { href: path(sweep.entity, sweep.project, "sweeps", sweep.name) }, sweep.title),
      sweep.title === sweep.name ? null : h("span", { class: "quiet" }, ` ${sweep.name}`),
    ),
    project
      ? null
      : h("td", {}, h("a", { href: path(sweep.entity, sweep.project) }, `${sweep.entity}/${sweep.project}`)),
    h("td", {}, h("span", { class: `state ${stateClass(sweep.shown_state)}` }, sweep.shown_state)),
    h("td", {}, sweep.method),
    h("td", { class: "wide" }, stateBar(sweep.counts, sweep.expected)),
    h(
      "td",
      { class: "number" },
      h("b", {}, show(sweep.best)),
      sweep.metric ? h("div", { class: "quiet" }, sweep.metric.name) : null,
    ),
    h("td", { class: "number" }, sweep.time.spent ? `${hours(sweep.time.spent)} ${sweep.time.unit}` : "-"),
    h("td", {}, moment(sweep.created)),
  );
}

function table(heads, rows, label) {
  const head = h(
    "tr",
    {},
    heads.map((text) => h("th", { scope: "col", class: NUMBERS.includes(text) ? "number" : null }, text)),
  );
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, head), h("tbody", {}, rows)),
  );
}

function runRow(run) {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("a", { href: path(entity, project, "runs", run.name) }, run.title)),
    h("td", {}, stateMark(run)),
    h("td", { class: "number" }, duration(run.seconds)),
    h("td", {}, moment(run.created)),
  );
}

poll(async () => {
  const answer = await read(project ? [entity, project] : ["sweeps"]);
  const now = JSON.stringify(answer);
  if (now === before) return true; // unchanged: do not redraw
  before = now;
  const heads = [
    "sweep",
    ...(project ? [] : ["project"]),
    "state",
    "method",
    "runs",
    "best",
    "time",
    "created",
  ];
  put(main, h("h1", {}, title));
  add(
    main,
    answer.sweeps.length ? section("", {}, table(heads, answer.sweeps.map(sweepRow), "Sweeps")) : empty(CREATE),
  );
  if (answer.runs?.length) {
    add(
      main,
      section(
        "Runs without a sweep",
        { id: "runs" },
        table(["run", "state", "time", "created"], answer.runs.map(runRow), "Runs"),
      ),
    );
  }
  if (!project && answer.projects.length) {
    const links = answer.projects.map((owner) =>
      h("li", {}, h("a", { href: path(owner.entity, owner.name) }, `${owner.entity}/${owner.name}`)),
    );
    add(main, section("Projects", { id: "projects" }, h("ul", { class: "links" }, links)));
  }
  return true;
});
