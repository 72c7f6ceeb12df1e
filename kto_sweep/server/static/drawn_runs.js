// Which of a sweep's runs the charts draw, and what to say where there is nothing to draw.

import { count, thousands } from "./format.js";

const MAX_DRAWN = 60;

/**
 * At most MAX_DRAWN of the visible runs, in their order; but all running and all selected ones.
 * @param {object[]} visible best first
 * @param {Set<string>} selected names
 */
export function drawnRuns(visible, selected) {
  const kept = (run) => run.state === "running" || selected.has(run.name);
  let others = MAX_DRAWN - visible.filter(kept).length;
  return visible.filter((run) => kept(run) || others-- > 0);
}

/** What a chart says that draws only some of the visible runs. */
export function drawnNotice(drawn, visible) {
  if (drawn.length === visible.length) return "";
  return (
    `${drawn.length} of ${count(visible.length, "run")}: running and selected ones, then the best; ` +
    "filter or hide runs in the table to see others."
  );
}

/** What the charts say that have only the first runs of a large sweep; the table and the verdict have all. */
export function partNotice(loaded, total) {
  if (loaded.length >= total) return "";
  return `All charts show the first ${count(loaded.length, "run")} of ${thousands(total)}.`;
}

/**
 * Why a chart of a metric is empty.
 * @param {string} metric @param {object[]} runs all @param {object[]} visible @param {object[]} drawn
 */
export function whyEmpty(metric, runs, visible, drawn) {
  const logged = (run) => run.summary[metric] !== undefined;
  if (!runs.some(logged)) return `no run has logged it yet${metric.startsWith("gpu/") ? "; not available on CPU" : ""}`;
  if (!visible.length) return "no run matches the filter";
  if (drawn.some(logged)) return "no finite value yet";
  const others = runs.filter(logged).length;
  const shown = drawn.length < visible.length ? `none of the ${drawn.length} drawn runs` : "no visible run";
  return `${shown} has logged it; ${others === 1 ? "1 other has" : `${others} others have`}`;
}
