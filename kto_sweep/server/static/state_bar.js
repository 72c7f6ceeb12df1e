// A sweep's progress: a bar of its runs by state, and the same as text.

import { h } from "./dom.js";
import { stateClass } from "./run_values.js";

const ORDER = ["finished", "stopped early", "running", "queued", "interrupted", "paused", "failed", "canceled", "not started"];

/**
 * @param {Record<string, number>} counts trials by state
 * @param {number | null} expected
 */
export function stateBar(counts, expected) {
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  const width = Math.max(total, expected ?? 0, 1);
  const parts = ORDER.filter((state) => counts[state]);
  const words = parts.map((state) => `${counts[state]} ${state}`).join(", ") || "no runs yet";
  return h(
    "div",
    { class: "state-bar" },
    h(
      "div",
      { class: "bar", role: "img", "aria-label": `${words}${expected ? ` of ${expected} expected` : ""}` },
      parts.map((state) =>
        h("span", { class: `part ${stateClass(state)}`, style: { width: `${(100 * counts[state]) / width}%` } }),
      ),
    ),
    h(
      "span",
      { class: "quiet" },
      `${counts.finished ?? 0}${expected ? ` of ${expected}` : ""} finished${words === "no runs yet" ? "" : otherWords(parts, counts)}`,
    ),
  );
}

function otherWords(parts, counts) {
  const others = parts.filter((state) => state !== "finished").map((state) => `${counts[state]} ${state}`);
  return others.length ? ` · ${others.join(" · ")}` : "";
}
