// Runs by rank; runs that were judged on different held-out rows have rankings of their own.

import { compare } from "./format.js";

/**
 * The runs, best first, those without a value last. Runs judged on the same rows stand together.
 * @param {object[]} runs @param {(run: object) => number | null} value @param {boolean} down higher is better
 */
export function rank(runs, value, down) {
  const groups = [...new Set(runs.map(judgedOn))];
  const group = (run) => (value(run) === null ? groups.length : groups.indexOf(judgedOn(run)));
  return [...runs].sort(
    (a, b) => group(a) - group(b) || compare(value(a), value(b), down) || a.created - b.created,
  );
}

/** The best run of each ranking, of runs in the order of `rank`. */
export function bests(ranked, value) {
  const first = new Map();
  for (const run of ranked)
    if (value(run) !== null && !first.has(judgedOn(run))) first.set(judgedOn(run), run);
  return [...first.values()];
}

/** The name of the rows that a run was judged on; "" if all runs were judged on the same. */
export function judgedOn(run) {
  return run.judged_on ?? "";
}
