// Axes of the parallel coordinates: positions of numbers (linear or log) and of names.

import { compareNames } from "./format.js";

const FEW = 5; // approximate number of ticks between the ends
const CLEAR = 0.08; // minimum distance of two ticks, as a share of the axis

/**
 * @typedef {object} Axis
 * @property {string} name
 * @property {boolean} numeric
 * @property {(value: any) => number | null} place 0 (bottom) to 1 (top)
 * @property {Array<{at: number, text: any}>} ticks
 * @property {(at: number) => any} valueAt the value at that height
 */

/**
 * The axis that fits the values.
 * @param {string} name
 * @param {any[]} values of all runs; null where a run has none
 * @param {boolean} wantsLog use a log scale if all values are positive
 * @returns {Axis}
 */
export function makeAxis(name, values, wantsLog) {
  const present = values.filter((value) => value !== null && value !== undefined && value !== "");
  const numbers = present.map(asNumber);
  const numeric = present.length > 0 && numbers.every((value) => value !== null);
  return numeric ? numberAxis(name, numbers, wantsLog) : nameAxis(name, present);
}

/** The value as a number, also if YAML parsed it as a string, such as 5e-7; else null. */
function asNumber(value) {
  if (typeof value === "number") return value;
  return typeof value === "string" && value.trim() !== "" && Number.isFinite(Number(value))
    ? Number(value)
    : null;
}

function numberAxis(name, values, wantsLog) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const log = low > 0 && (wantsLog || high / low >= 50);
  const [to, from] = log ? [Math.log, Math.exp] : [(v) => v, (v) => v];
  const [bottom, top] = [to(low), to(high)];
  const span = top - bottom;
  const place = (value) => {
    const number = asNumber(value);
    return number === null ? null : span ? (to(number) - bottom) / span : 0.5;
  };
  const valueAt = (at) => from(bottom + at * span);
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  const marks = distinct.length <= FEW ? distinct : between(low, high, log);
  return { name, numeric: true, place, valueAt, ticks: marks.map((text) => ({ at: place(text), text })) };
}

/** Both ends, and the round numbers between them that are not too close to an end; powers of ten on a log scale. */
function between(low, high, log) {
  const [from, to] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  const rough = (to - from) / FEW;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = log ? Math.max(1, Math.ceil(rough)) : [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const marks = [];
  for (let n = Math.ceil(from / step); n * step <= to; n += 1) {
    const clear = Math.min(n * step - from, to - n * step) >= (to - from) * CLEAR;
    if (clear) marks.push(log ? 10 ** (n * step) : Number((n * step).toPrecision(12)));
  }
  return [low, ...marks, high];
}

function nameAxis(name, values) {
  const names = [...new Set(values.map(String))].sort(compareNames);
  const at = (index) => (names.length > 1 ? index / (names.length - 1) : 0.5);
  const places = new Map(names.map((text, index) => [text, at(index)]));
  return {
    name,
    numeric: false,
    place: (value) => places.get(String(value)) ?? null,
    valueAt: (height) => names[Math.round(height * (names.length - 1))] ?? "",
    ticks: names.length <= 12 ? names.map((text, index) => ({ at: at(index), text })) : [],
  };
}
