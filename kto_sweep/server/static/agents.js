// The agents of a sweep by box: devices, slots, online or offline, last heartbeat, what they train.

import { empty, h, put } from "./dom.js";
import { moment } from "./format.js";

const HOST = /^(.*?)(?: (cpu|gpus? [\d,]+))?$/; // kto-sweep's agents add the device to the name of the box

/** @typedef {{host: string, alive: boolean, heartbeat: number, runs: string[]}} Slot a device has one for each trial at once */

/**
 * @param {HTMLElement} frame
 * @param {Slot[]} slots
 * @param {boolean} idle whether no agent is alive, though the last heartbeats are recent; but one that trains is
 * @param {string} command starts another agent
 * @param {(name: string) => object | undefined} runOf the run with this name
 * @param {(run: object) => HTMLElement} link
 */
export function drawAgents(frame, slots, idle, command, runOf, link) {
  if (!slots.length) {
    put(frame, empty(`No agents yet. On each GPU machine, run: \`${command}\``));
    return;
  }
  const rows = [...Map.groupBy(slots, (slot) => HOST.exec(slot.host)[1])].map(([box, members]) => {
    // The server keeps the last run of a slot that has ended, which nothing trains.
    const busy = (slot) => slot.runs.map(runOf).filter((run) => run?.state === "running");
    const alive = members.filter((slot) => slot.alive && (!idle || busy(slot).length));
    const devices = new Set(members.map((slot) => HOST.exec(slot.host)[2]).filter(Boolean));
    const state = alive.length ? "online" : "offline";
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, box),
      h("td", {}, h("span", { class: `state ${state}` }, state)),
      h("td", {}, [...devices].sort().join(", ")),
      h("td", { class: "number" }, alive.length),
      h("td", {}, moment(Math.max(...members.map((slot) => slot.heartbeat)))),
      h("td", { class: "links" }, alive.flatMap(busy).map(link)),
    );
  });
  const heads = ["box", "state", "devices", "slots", "last seen", "training"].map((text) =>
    h("th", { scope: "col", class: text === "slots" ? "number" : null }, text),
  );
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  put(frame, h("div", { class: "scroll", tabindex: 0 }, table));
}
