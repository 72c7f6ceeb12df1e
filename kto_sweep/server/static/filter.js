// What a person types to narrow a table: words, and comparisons such as state=failed or learning_rate<1e-4.

const COMPARISON = /^(.+?)(<=|>=|!=|=|<|>)(.+)$/;

/**
 * A test of one run for what was typed; every part must hold.
 * @param {string} typed
 * @param {(run: object, name: string) => any} value a run's value by column name
 * @returns {(run: object) => boolean}
 */
export function matcher(typed, value) {
  const tests = typed
    .trim()
    .split(/\s+/)
    .filter(Boolean)
    .map((part) => test(part, value));
  return (run) => tests.every((holds) => holds(run));
}

function test(part, value) {
  const found = COMPARISON.exec(part);
  if (!found) return (run) => words(run).includes(part.toLowerCase());
  const [, name, sign, wanted] = found;
  return (run) => holds(value(run, name), sign, wanted);
}

function words(run) {
  const parts = [
    run.name,
    run.title,
    run.state,
    run.notes,
    run.host,
    ...run.tags,
    ...Object.values(run.config),
  ];
  return parts.join(" ").toLowerCase();
}

function holds(actual, sign, wanted) {
  if (sign === "=" || sign === "!=") {
    const same = isSame(actual, wanted);
    return sign === "=" ? same : !same;
  }
  const number = Number(wanted);
  if (typeof actual !== "number" || Number.isNaN(number)) return false;
  return { "<": actual < number, ">": actual > number, "<=": actual <= number, ">=": actual >= number }[sign];
}

function isSame(actual, wanted) {
  if (Array.isArray(actual)) return actual.includes(wanted);
  if (typeof actual === "number") return actual === Number(wanted);
  return String(actual ?? "").toLowerCase() === wanted.toLowerCase();
}
