// A run's console: the last lines, and new ones as they come.

import { h, put, soon } from "./dom.js";

const MOST_LINES = 5000; // kept on the page
// What terminals take for colours and cursor moves.
const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]|\u001b\][^\u0007]*\u0007/g;

/** The text as a terminal would leave it: without escapes, and of a line written over only its last state. */
export function cleaned(text) {
  const parts = text.replace(ESCAPES, "").trimEnd().split("\r").filter(Boolean);
  return parts.at(-1) ?? "";
}

export class ConsoleLog {
  constructor() {
    this.lines = new Map(); // by number: a line can be written again
    this.next = null;
    this.filter = h("input", {
      type: "search",
      placeholder: "filter lines",
      "aria-label": "Filter console lines",
      oninput: soon(() => this.render()),
    });
    this.text = h("pre", { class: "console tall", tabindex: 0, role: "log", "aria-label": "Console" });
  }

  /** @param {{lines: Array<{number: number, error: boolean, text: string}>, next: number}} told */
  take(told) {
    this.next = told.next;
    if (!told.lines.length && this.lines.size) return;
    for (const line of told.lines) this.lines.set(line.number, line);
    for (const number of this.lines.keys()) {
      if (this.lines.size <= MOST_LINES) break;
      this.lines.delete(number);
    }
    this.render();
  }

  render() {
    const wanted = this.filter.value.trim().toLowerCase();
    const atEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    const shown = [...this.lines.values()]
      .map((line) => ({ ...line, text: cleaned(line.text) }))
      .filter((line) => line.text.toLowerCase().includes(wanted));
    put(
      this.text,
      shown.length
        ? shown.map((line) => h("span", { class: line.error ? "error" : null }, `${line.text}\n`))
        : h(
            "span",
            { class: "quiet" },
            this.lines.size ? "No line matches." : "The run has printed nothing yet.",
          ),
    );
    if (atEnd) this.text.scrollTop = this.text.scrollHeight;
  }
}
