// A run's console: the last lines, updated live.

import { h, put, debounce } from "./dom.js";

const MAX_LINES = 5000; // kept on the page
// ANSI escape sequences for colours and cursor moves.
const ESCAPES = /\u001b\[[0-9;?]*[A-Za-z]|\u001b\][^\u0007]*\u0007/g;

/** The text as a terminal shows it: without escapes, and only the part after the last carriage return. */
export function cleaned(text) {
  const parts = text.replace(ESCAPES, "").trimEnd().split("\r").filter(Boolean);
  return parts.at(-1) ?? "";
}

export class ConsoleLog {
  constructor() {
    this.lines = new Map(); // by number, because a line can be rewritten
    this.next = null;
    this.filter = h("input", {
      type: "search",
      placeholder: "filter lines",
      "aria-label": "Filter console lines",
      oninput: debounce(() => this.render()),
    });
    this.text = h("pre", { class: "console tall", tabindex: 0, role: "log", "aria-label": "Console" });
  }

  /** @param {{lines: Array<{number: number, error: boolean, text: string}>, next: number}} chunk */
  append(chunk) {
    this.next = chunk.next;
    if (!chunk.lines.length && this.lines.size) return;
    for (const line of chunk.lines) this.lines.set(line.number, line);
    for (const number of this.lines.keys()) {
      if (this.lines.size <= MAX_LINES) break;
      this.lines.delete(number);
    }
    this.render();
  }

  render() {
    const query = this.filter.value.trim().toLowerCase();
    const atEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 40;
    const shown = [...this.lines.values()]
      .map((line) => ({ ...line, text: cleaned(line.text) }))
      .filter((line) => line.text.toLowerCase().includes(query));
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
