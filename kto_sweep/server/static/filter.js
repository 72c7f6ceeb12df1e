// Filter of the runs table: words, and comparisons such as state=failed or learning_rate<1e-4.

import { stateText } from "./run_values.js";

const COMPARISON = /^(.+?)(<=|>=|!=|=|<|>)(.+)$/;

/**
 * A predicate of runs for a filter query; every part must match.
 * @param {string} query
 * @param {(run: object, name: string) => any} value a run's value by column name
 * @returns {(run: object) => boolean}
 */
export function matcher(query, value) {
  const tests = query
    .trim()
    .split(/\s+/)
    .filter(Boolean)
    .map((part) => test(part, value));
  return (run) => tests.every((holds) => holds(run));
}

function test(part, value) {
  const match = COMPARISON.exec(part);
  if (!match) return (run) => words(run).includes(part.toLowerCase());
  const [, name, sign, operand] = match;
  return (run) => holds(value(run, name), sign, operand);
}

function words(run) {
  const parts = [
    run.name,
    run.title,
    stateText(run),
    run.standing,
    run.failure,
    run.message,
    run.notes,
    run.host,
    ...run.tags,
    ...Object.values(run.config),
  ];
  return parts.join(" ").toLowerCase();
}

function holds(actual, sign, operand) {
  if (sign === "=" || sign === "!=") {
    const same = isSame(actual, operand);
    return sign === "=" ? same : !same;
  }
  const number = Number(operand);
  if (typeof actual !== "number" || Number.isNaN(number)) return false;
  return { "<": actual < number, ">": actual > number, "<=": actual <= number, ">=": actual >= number }[sign];
}

function isSame(actual, operand) {
  if (Array.isArray(actual)) return actual.includes(operand);
  if (typeof actual === "number") return actual === Number(operand);
  return String(actual ?? "").toLowerCase() === operand.toLowerCase();
}
