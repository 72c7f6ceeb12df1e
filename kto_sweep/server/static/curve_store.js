// The curves of a sweep's runs as far as they have been fetched; fetches those that have gone on since.

import { read } from "./api.js";
import { pointsEach } from "./curves.js";

export class CurveStore {
  /** @param {string} entity @param {string} project @param {string[]} keys the metrics to fetch */
  constructor(entity, project, keys) {
    this.source = [entity, project, "curves"];
    this.keys = keys;
    this.known = new Map(); // by run: what it looked like then, in how many points, its curves by metric
  }

  /** True until anything was fetched. */
  get isEmpty() {
    return !this.known.size;
  }

  /** @returns {import("./curves.js").Curve | undefined} */
  of(run, key) {
    return this.known.get(run.name)?.curves[key];
  }

  /** Fetches those of the runs that have gone on, or have too few points where so many are drawn `together`. */
  async load(runs, together) {
    const points = pointsEach(together);
    const look = (run) => `${run.heartbeat} ${run.state}`;
    const stale = runs.filter((run) => {
      const known = this.known.get(run.name);
      return !known || known.look !== look(run) || known.points < points / 2;
    });
    if (!stale.length) return;
    const names = stale.map((run) => ["run", run.name]);
    const told = await read(this.source, [
      ["points", points],
      ...names,
      ...this.keys.map((key) => ["key", key]),
    ]);
    for (const run of stale) {
      this.known.set(run.name, { look: look(run), points, curves: told.curves[run.name] ?? {} });
    }
  }
}
