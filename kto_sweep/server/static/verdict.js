// The verdict on a sweep: its sentences, and the winning configuration in a few words.

import { h, put } from "./dom.js";
import { settings, show } from "./format.js";

/**
 * `rankings` has a verdict for each set of held-out rows that trials were judged on.
 * @typedef {{winner: Record<string, any>, value: number, interval: [number, number] | null, run_ids: string[],
 *   judged_on: string}} Ranking
 * @typedef {{rankings: Ranking[], sentences: Array<{heading: string, sentences: string[]}>}} Verdict
 */

export class VerdictPanel {
  constructor() {
    this.element = h("div", { class: "loading" }, h("p", { class: "quiet" }, "Loading…"));
    this.drawn = "";
  }

  /** @param {Verdict} verdict */
  draw(verdict) {
    const now = JSON.stringify(verdict.sentences);
    if (now === this.drawn) return; // keep a selection of its text
    this.drawn = now;
    // Keeps the height of what is on the page now, so that a shorter verdict does not move the charts below.
    this.element.style.minHeight = `${this.element.clientHeight}px`;
    const parts = verdict.sentences.flatMap(({ heading, sentences }) => [
      h("dt", {}, heading),
      sentences.map((text) => h("dd", {}, text)),
    ]);
    this.element.classList.remove("loading");
    put(this.element, h("dl", { class: "verdict" }, parts));
  }
}

/** The winning configuration of each ranking with its value, as a list of texts; empty if no trial ranks. */
export function winners(verdict) {
  return verdict.rankings.map((ranking) => {
    const interval = ranking.interval ? ` [${ranking.interval.map(show).join(", ")}]` : "";
    const seeds = ranking.run_ids.length > 1 ? ` over ${ranking.run_ids.length} seeds` : "";
    const rows = ranking.judged_on ? ` on ${ranking.judged_on}` : "";
    return `★ ${show(ranking.value)}${interval}${seeds}: ${settings(ranking.winner)}${rows}`;
  });
}
