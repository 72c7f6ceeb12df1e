// What the parallel coordinates of a sweep show: its parameters without the seed, and the metric.

const SEED = "seed";

/** The parameters that charts show: a seed is no setting of a configuration. */
export function chartedParameters(parameters) {
  return parameters.filter(({ name }) => name.split(".").at(-1) !== SEED);
}

/**
 * The dimensions and the runs of a ParallelPlot.
 * @param {Array<{name: string, log: boolean}>} parameters @param {{name: string} | null} metric
 * @param {object[]} runs best first @param {Map<string, string>} colours
 */
export function parallelRows(parameters, metric, runs, colours) {
  const charted = chartedParameters(parameters);
  const rows = runs.map((run) => ({
    name: run.name,
    title: run.title,
    colour: colours.get(run.name),
    values: [...charted.map(({ name }) => run.config[name] ?? null), ...(metric ? [run.value] : [])],
  }));
  return [metric ? [...charted, { name: metric.name, log: false }] : charted, rows];
}
