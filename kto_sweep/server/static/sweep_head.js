// The head of the sweep page: settings, best configuration, progress.

import { h, put } from "./dom.js";
import { duration } from "./format.js";
import { stateClass } from "./run_values.js";
import { stateBar } from "./state_bar.js";

/**
 * @param {HTMLElement} frame
 * @param {object} sweep its facts from the server
 * @param {object[]} runs
 * @param {string[]} best the winning configuration of each ranking
 * @param {HTMLElement[]} more facts at the end
 */
export function drawFacts(frame, sweep, runs, best, more) {
  const counts = {};
  let busy = 0;
  for (const run of runs) {
    counts[run.state] = (counts[run.state] ?? 0) + 1;
    busy += run.seconds ?? 0;
  }
  const facts = [
    fact("state", h("span", { class: `state ${stateClass(sweep.state)}` }, sweep.state)),
    fact("method", sweep.method),
    sweep.metric ? fact(sweep.metric.goal, sweep.metric.name) : null,
    fact(
      "best",
      best.length ? best.map((text) => h("div", {}, text)) : "-",
    ),
    fact("time of all trials", duration(busy)),
    ...more,
  ];
  put(frame, h("div", { class: "facts" }, facts), stateBar(counts, sweep.expected));
}

/** A name and a value at the head of a page. */
export function fact(name, ...value) {
  return h("div", { class: "fact" }, h("span", { class: "quiet" }, name), h("b", {}, ...value));
}
