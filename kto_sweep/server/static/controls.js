// Buttons that change a sweep or a run on the server. Those who may not are told how to log in.

import { change, mayControl } from "./api.js";
import { code, h, put } from "./dom.js";

const SWEEP = [
  { action: "pause", states: ["running", "pending"], says: "start no more trials until resumed" },
  { action: "resume", states: ["paused", "finished", "canceled"], says: "go on" },
  {
    action: "stop",
    states: ["running", "pending", "paused"],
    says: "start no more trials; those that run finish",
  },
  {
    action: "cancel",
    states: ["running", "pending", "paused"],
    says: "end the sweep and its running trials",
    sure: true,
  },
];

/** A row of buttons with a line for what came of them. */
export class Controls {
  /** @param {string[]} target the path behind `/-/do` @param {() => void} changed */
  constructor(target, changed) {
    this.target = target;
    this.changed = changed;
    this.shown = "";
    this.buttons = h("div", { class: "buttons" });
    this.told = h("p", { class: "told", role: "alert" });
    this.element = h("div", { class: "controls" }, this.buttons, this.told);
  }

  /** The controls of a sweep in this state. */
  sweep(state) {
    this.offer(SWEEP.filter((each) => each.states.includes(state)));
  }

  /** The controls of a run in this state. */
  run(state, stopping) {
    const alive = ["running", "pending", "preempting", "preempted"].includes(state) && !stopping;
    this.offer(alive ? [{ action: "stop", says: "end this run; the sweep goes on", sure: true }] : []);
  }

  offer(actions) {
    // Built anew only when something differs: a look at the server must not take the focus away.
    const now = JSON.stringify([mayControl(), actions]);
    if (now === this.shown) return;
    this.shown = now;
    if (!mayControl()) {
      put(
        this.buttons,
        actions.length
          ? h("span", { class: "quiet" }, code("To control it here, log in once: `kto-sweep serve --login`"))
          : null,
      );
      return;
    }
    put(
      this.buttons,
      actions.map((each) => this.button(each)),
    );
  }

  button({ action, says, sure }) {
    const button = h("button", { type: "button", title: says, "data-action": action }, action);
    let armed = false;
    const disarm = () => {
      armed = false;
      button.textContent = action;
      button.classList.remove("sure");
    };
    button.addEventListener("blur", disarm);
    button.addEventListener("click", () => {
      if (sure && !armed) {
        armed = true;
        button.textContent = `${action}: sure?`;
        button.classList.add("sure");
        return;
      }
      disarm();
      this.send({ action });
    });
    return button;
  }

  /** Sends a change and tells what came of it. */
  async send(wanted) {
    try {
      await change(this.target, wanted);
      put(this.told);
      this.changed();
      return true;
    } catch (problem) {
      put(this.told, `Not done: ${problem.message}`);
      return false;
    }
  }
}
