// The head of the sweep page: settings, progress, best run so far.

import { h, put } from "./dom.js";
import { duration, moment } from "./format.js";
import { stateBar } from "./state_bar.js";

/**
 * @param {HTMLElement} frame
 * @param {object} sweep its facts from the server
 * @param {object[]} runs
 * @param {Array<Node | string> | null} best the best value and a link to its run
 */
export function drawFacts(frame, sweep, runs, best) {
  const counts = {};
  let busy = 0;
  for (const run of runs) {
    counts[run.state] = (counts[run.state] ?? 0) + 1;
    busy += run.seconds ?? 0;
  }
  const facts = [
    fact("state", h("span", { class: `state ${sweep.state}` }, sweep.state)),
    fact("method", sweep.method),
    sweep.metric ? fact(sweep.metric.goal, sweep.metric.name) : null,
    best ? fact("best", ...best) : null,
    fact("compute", duration(busy)),
    fact("created", moment(sweep.created)),
  ];
  put(frame, h("div", { class: "facts" }, facts), stateBar(counts, sweep.expected));
}

function fact(name, ...value) {
  return h("div", { class: "fact" }, h("span", { class: "quiet" }, name), h("b", {}, ...value));
}
