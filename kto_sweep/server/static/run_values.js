// A run's values by column name, and its state.

import { h } from "./dom.js";

/** Columns that every run has. */
export const FIXED = {
  run: (run) => run.title,
  id: (run) => run.name,
  state: (run) => run.state,
  cause: (run) => run.summary["failure/cause"] ?? null,
  time: (run) => run.seconds,
  created: (run) => run.created,
  tags: (run) => run.tags,
  notes: (run) => run.notes,
  host: (run) => run.host,
  "judged on": (run) => run.judged_on ?? null,
};

/** A run's value by column name; configuration before summary, because names such as learning_rate are in both. */
export function valueOf(run, name) {
  if (Object.hasOwn(FIXED, name)) return FIXED[name](run);
  return run.config[name] ?? run.summary[name] ?? null;
}

/** A run's state with a symbol, so that it does not depend on colour alone. */
export function stateMark(run) {
  const state = run.stopping ? "stopping" : run.state;
  return h("span", { class: `state ${state}`, title: run.summary["failure/cause"] ?? null }, state);
}
