// Buttons for actions on a sweep or a run.

import { change } from "./api.js";
import { h, put } from "./dom.js";

const SWEEP = [
  { action: "pause", help: "start no new trials until resumed" },
  { action: "resume", help: "continue the sweep" },
  { action: "stop", help: "start no new trials; running ones finish" },
  { action: "cancel", help: "stop the sweep and its running trials", confirm: true },
];

/** A row of buttons and a line for errors. */
export class Controls {
  /** @param {string[]} target the path behind `/-/do` @param {() => void} changed */
  constructor(target, changed) {
    this.target = target;
    this.changed = changed;
    this.shown = "";
    this.buttons = h("div", { class: "buttons" });
    this.error = h("p", { class: "error-line", role: "alert" });
    this.element = h("div", { class: "controls" }, this.buttons, this.error);
  }

  /** The controls of a sweep; `refusals` has null for each action that it allows. */
  sweep(refusals) {
    this.offer(SWEEP.filter(({ action }) => refusals[action] === null));
  }

  /** The controls of a run. */
  run(ended, stopping) {
    this.offer(!ended && !stopping ? [{ action: "stop", help: "stop this run; the sweep continues", confirm: true }] : []);
  }

  offer(actions) {
    // Rebuild only on changes, so that polling does not take the focus away.
    const now = JSON.stringify(actions);
    if (now === this.shown) return;
    this.shown = now;
    put(
      this.buttons,
      actions.map((action) => this.button(action)),
    );
  }

  button({ action, help, confirm }) {
    const button = h("button", { type: "button", title: help, "data-action": action }, action);
    let armed = false;
    const disarm = () => {
      armed = false;
      button.textContent = action;
      button.classList.remove("sure");
    };
    button.addEventListener("blur", disarm);
    button.addEventListener("click", () => {
      if (confirm && !armed) {
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

  /** Sends an action and shows its error; whether it succeeded. */
  async send(action) {
    try {
      await change(this.target, action);
      put(this.error);
      this.changed();
      return true;
    } catch (problem) {
      put(this.error, `Failed: ${problem.message}`);
      return false;
    }
  }
}
