// The head of the sweep page and of a report: settings, best configuration, progress.

import { h, put } from "./dom.js";
import { hours } from "./format.js";
import { stateClass } from "./run_values.js";
import { stateBar } from "./state_bar.js";

const OVER = ["finished", "canceled"]; // W&B's states
const WITHOUT_AGENT = ["interrupted", "stopped", "finished", "canceled"]; // shown states

/** Whether no agent of the sweep is alive, by the states of its trials. */
export function isIdle(sweep) {
  return WITHOUT_AGENT.includes(sweep.shown_state);
}

/** Whether the sweep has stopped handing out trials; some may still run. */
export function isOver(sweep) {
  return OVER.includes(sweep.state);
}

/**
 * @param {HTMLElement} frame
 * @param {object} sweep its facts from the server
 * @param {string[]} best the winning configuration of each ranking
 * @param {HTMLElement[]} more facts at the end
 */
export function drawFacts(frame, sweep, best, more) {
  const facts = [
    fact("state", h("span", { class: `state ${stateClass(sweep.shown_state)}` }, sweep.shown_state)),
    sweep.ended_by ? fact("ended", sweep.ended_by.text) : null,
    fact("method", sweep.method),
    sweep.metric ? fact(sweep.metric.goal, sweep.metric.name) : null,
    sweep.time.spent ? fact(sweep.time.unit, timeText(sweep)) : null,
    ...more,
  ];
  const winners = best.length ? best.map((text) => h("div", {}, text)) : "-";
  put(
    frame,
    h("div", { class: "facts" }, facts),
    // A row of its own: when it becomes known, it does not push another fact into a new row.
    h("div", { class: "facts" }, fact("best", winners)),
    stateBar(sweep.cell_counts, sweep.expected),
  );
}

/** The time of all devices, as `kto-sweep status` says it. */
function timeText(sweep) {
  const { spent, remaining } = sweep.time;
  const more = remaining && !isOver(sweep) ? `, about ${hours(remaining)} remaining` : "";
  return `${hours(spent)} spent${more}`;
}

/** A name and a value at the head of a page. */
export function fact(name, ...value) {
  return h("div", { class: "fact" }, h("span", { class: "quiet" }, name), h("b", {}, ...value));
}
