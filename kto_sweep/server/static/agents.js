// The agents of a sweep by box: slots, online or offline, last heartbeat, what they train.

import { empty, h, put } from "./dom.js";
import { moment } from "./format.js";

/** @typedef {{host: string, alive: boolean, heartbeat: number, runs: string[]}} Slot a box has one for each trial at once */

/**
 * @param {HTMLElement} frame
 * @param {Slot[]} slots
 * @param {boolean} over whether the sweep hands out no more trials; a slot that trains none has then ended
 * @param {string} command starts another agent
 * @param {(name: string) => object | undefined} runOf the run with this name
 * @param {(run: object) => HTMLElement} link
 */
export function drawAgents(frame, slots, over, command, runOf, link) {
  if (!slots.length) {
    put(frame, empty(`No agents yet. On each GPU machine, run: \`${command}\``));
    return;
  }
  const rows = [...Map.groupBy(slots, (slot) => slot.host)].map(([host, members]) => {
    // The server keeps the last run of a slot that has died, which nothing trains.
    const busy = (slot) => slot.runs.map(runOf).filter((run) => run?.state === "running");
    const alive = members.filter((slot) => slot.alive && (!over || busy(slot).length));
    const training = alive.flatMap(busy);
    const state = alive.length ? "online" : "offline";
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, host),
      h("td", {}, h("span", { class: `state ${state}` }, state)),
      h("td", { class: "number" }, alive.length),
      h("td", {}, moment(Math.max(...members.map((slot) => slot.heartbeat)))),
      h("td", { class: "links" }, training.map(link)),
    );
  });
  const heads = ["box", "state", "slots", "last seen", "training"].map((text) =>
    h("th", { scope: "col", class: text === "slots" ? "number" : null }, text),
  );
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  put(frame, h("div", { class: "scroll", tabindex: 0 }, table));
}
