// The agents of a sweep: where they are, when they were last heard of, what they work on.

import { empty, h, put } from "./dom.js";
import { moment } from "./format.js";

/** @typedef {{host: string, alive: boolean, heartbeat: number, runs: string[]}} Agent */

/**
 * @param {HTMLElement} frame
 * @param {Agent[]} agents
 * @param {string} command what to type on a box for another one
 * @param {(run: string) => HTMLElement} link to a run
 */
export function drawAgents(frame, agents, command, link) {
  if (!agents.length) {
    put(frame, empty(`No agent has come yet. On each GPU box type: \`${command}\``));
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
        h("span", { class: `state ${agent.alive ? "running" : "gone"}` }, agent.alive ? "here" : "gone"),
      ),
      h("td", {}, moment(agent.heartbeat)),
      h("td", { class: "links" }, agent.runs.map(link)),
    ),
  );
  const heads = ["box", "state", "last heard of", "at work on"].map((text) =>
    h("th", { scope: "col" }, text),
  );
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  put(frame, h("div", { class: "scroll", tabindex: 0 }, table));
}
