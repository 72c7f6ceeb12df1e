// What a run has to show: its values by column name, and its state.

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
};

/** A run's value by column name. What was configured comes before what was logged: a learning rate is both. */
export function valueOf(run, name) {
  if (Object.hasOwn(FIXED, name)) return FIXED[name](run);
  return run.config[name] ?? run.summary[name] ?? null;
}

/** A run's state with a sign, so that it is not told by colour alone. */
export function stateMark(run) {
  const state = run.stopping ? "stopping" : run.state;
  return h("span", { class: `state ${state}`, title: run.summary["failure/cause"] ?? null }, state);
}
