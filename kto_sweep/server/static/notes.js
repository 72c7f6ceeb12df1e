// Tags and notes of a run, to be edited.

import { h, put } from "./dom.js";

export class NotesEditor {
  /** @param {import("./controls.js").Controls} controls */
  constructor(controls) {
    this.controls = controls;
    this.shown = "";
    this.element = h("div", { class: "notes" });
  }

  /** @param {{tags: string[], notes: string}} run */
  update(run) {
    const now = JSON.stringify([run.tags, run.notes]);
    // Do not overwrite a form that the user is editing.
    if (now === this.shown || this.element.contains(document.activeElement)) return;
    this.shown = now;
    this.form(run);
  }

  form(run) {
    const tags = h("input", {
      value: run.tags.join(", "),
      placeholder: "tags, separated by commas",
      "aria-label": "Tags, separated by commas",
    });
    const notes = h("textarea", { value: run.notes, rows: 1, placeholder: "notes", "aria-label": "Notes" });
    const save = (event) => {
      event.preventDefault();
      const list = tags.value
        .split(",")
        .map((tag) => tag.trim())
        .filter(Boolean);
      this.controls.send({ action: "annotate", tags: [...new Set(list)], notes: notes.value });
    };
    put(this.element, h("form", { onsubmit: save }, tags, notes, h("button", { type: "submit" }, "save")));
  }
}
