// A run's values by column name, its state, and its place in time.

import { h } from "./dom.js";

/** Columns that every run has. */
export const FIXED = {
  rank: (run) => run.rank ?? null,
  run: (run) => run.title,
  id: (run) => run.name,
  state: (run) => run.state,
  failure: (run) => run.failure || null,
  message: (run) => run.message || null,
  progress: (run) => run.progress || null,
  standing: (run) => run.standing ?? null,
  time: (run) => run.seconds,
  created: (run) => run.created,
  tags: (run) => run.tags,
  notes: (run) => run.notes,
  host: (run) => run.host,
  "judged on": (run) => run.judged_on || null,
};

const ENDED = ["finished", "stopped early", "failed", "canceled", "crashed", "killed"];
const WITHOUT_CAUSE = ["failed", "crashed", "killed"]; // a failure that only repeats the run's state

/** A run's value by column name; configuration before summary, because names such as learning_rate are in both. */
export function valueOf(run, name) {
  if (Object.hasOwn(FIXED, name)) return FIXED[name](run);
  return run.config[name] ?? run.summary[name] ?? null;
}

/** Whether a run has ended; a paused or interrupted one has not. */
export function hasEnded(run) {
  return ENDED.includes(run.state);
}

/** The state with its cause, or with how far the run is: `failed (diverged)`, `running (step 58 of 200)`. */
export function stateText(run) {
  const state = run.stopping ? "stopping" : run.state;
  const detail = causeText(run.failure) || run.progress;
  return detail ? `${state} (${detail})` : state;
}

/** The cause of a failure; empty if it only repeats the state. */
export function causeText(failure) {
  return WITHOUT_CAUSE.includes(failure) ? "" : failure;
}

/** A run's state with a symbol, so that it does not depend on colour alone; a finished run may be broken. */
export function stateMark(run) {
  const kind = run.standing === "failed" ? "failed" : stateClass(run.stopping ? "stopping" : run.state);
  return h("span", { class: `state ${kind}`, title: run.message || null }, stateText(run));
}

/** The rank of the run's configuration: `★ 1`, `2 on dataset a.jsonl`; empty for a run that does not rank. */
export function rankText(run) {
  if (!run.rank) return "";
  return `${run.rank === 1 ? "★ " : ""}${run.rank}${run.judged_on ? ` on ${run.judged_on}` : ""}`;
}

/** The class of a state in the style sheet. */
export function stateClass(state) {
  return state.replaceAll(" ", "-");
}

/** Compares two runs by their creation; by whole seconds, because W&B knows no finer times, then by id. */
export function byCreation(a, b) {
  const second = (run) => (run.created === null ? Infinity : Math.floor(run.created));
  // Infinity - Infinity is NaN: compare, do not subtract.
  if (second(a) !== second(b)) return second(a) < second(b) ? -1 : 1;
  return a.name < b.name ? -1 : Number(a.name > b.name);
}
