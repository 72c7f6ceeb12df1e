// Cache of the curves of a sweep's runs; refetches those of runs that have changed.

import { read } from "./api.js";
import { pointsEach } from "./curves.js";

export class CurveStore {
  /** @param {string} entity @param {string} project @param {string[]} keys the metrics to fetch */
  constructor(entity, project, keys) {
    this.source = [entity, project, "curves"];
    this.keys = keys;
    this.cache = new Map(); // by run: its version, number of points, curves by metric
  }

  /** True before the first fetch. */
  get isEmpty() {
    return !this.cache.size;
  }

  /** @returns {import("./curves.js").Curve | undefined} */
  of(run, key) {
    return this.cache.get(run.name)?.curves[key];
  }

  /** Fetches curves of changed runs, and of those with too few points for `together` drawn runs. */
  async load(runs, together) {
    const points = pointsEach(together);
    const version = (run) => `${run.heartbeat} ${run.state}`;
    const stale = runs.filter((run) => {
      const cached = this.cache.get(run.name);
      return !cached || cached.version !== version(run) || cached.points < points / 2;
    });
    if (!stale.length) return;
    const names = stale.map((run) => ["run", run.name]);
    const answer = await read(this.source, [
      ["points", points],
      ...names,
      ...this.keys.map((key) => ["key", key]),
    ]);
    for (const run of stale) {
      this.cache.set(run.name, { version: version(run), points, curves: answer.curves[run.name] ?? {} });
    }
  }
}
