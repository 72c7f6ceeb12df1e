// The agents of a sweep: host, state, last heartbeat, current runs.

import { empty, h, put } from "./dom.js";
import { moment } from "./format.js";

/** @typedef {{host: string, alive: boolean, heartbeat: number, runs: string[]}} Agent */

/**
 * @param {HTMLElement} frame
 * @param {Agent[]} agents
 * @param {string} command starts another agent
 * @param {(run: string) => HTMLElement} link to a run
 */
export function drawAgents(frame, agents, command, link) {
  if (!agents.length) {
    put(frame, empty(`No agents yet. On each GPU machine, run: \`${command}\``));
    return;
  }
  const rows = agents.map((agent) =>
    h(
      "tr",
      {},
      h("td", {}, agent.host),
      h(
        "td",
        {},
        h("span", { class: `state ${agent.alive ? "running" : "offline"}` }, agent.alive ? "online" : "offline"),
      ),
      h("td", {}, moment(agent.heartbeat)),
      h("td", { class: "links" }, agent.runs.map(link)),
    ),
  );
  const heads = ["host", "state", "last seen", "training"].map((text) =>
    h("th", { scope: "col" }, text),
  );
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  put(frame, h("div", { class: "scroll", tabindex: 0 }, table));
}
