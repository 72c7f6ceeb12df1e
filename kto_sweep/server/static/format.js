// Formats values for display.

const DIGITS = 4;
const [SMALL, LARGE] = [1e-3, 1e6]; // other numbers between them are written without a power of ten
const WRITTEN_OUT = 1e10; // smaller whole numbers, such as a seed, are written out

/**
 * A value for people, the same text as `kto_sweep.text.number`: whole numbers written out, others in four digits, small
 * and large ones as 2.3e-06; text unchanged; `-` for null.
 */
export function show(value) {
  if (value === null || value === undefined) return "-";
  if (Array.isArray(value)) return `[${value.map(show).join(", ")}]`;
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value).toLowerCase().replace("inity", "");
  if (Number.isInteger(value) && Math.abs(value) < WRITTEN_OUT) return String(value);
  const rounded = Number(value.toPrecision(DIGITS)); // infinite for the largest numbers
  const size = Math.abs(rounded);
  if (size >= SMALL && size < LARGE) return String(rounded);
  return value
    .toExponential(DIGITS - 1)
    .replace(/\.?0+e/, "e")
    .replace(/e([+-])(\d)$/, "e$10$2");
}

/** Values by name in a sentence: `learning_rate 1e-05, beta 0.1`, as `settings_text` of the comparison. */
export function settings(values) {
  const parts = Object.entries(values).map(([name, value]) => `${name} ${show(value)}`);
  return parts.join(", ") || "its configuration";
}

/** Seconds as 45 s, 12 min, 4.5 h, 3.1 days, as `kto_sweep.text.duration`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

/** Seconds in hours with two digits: 0.0021, 3.5, 120, as `kto_sweep.text.hours`. */
export function hours(seconds) {
  const value = seconds / 3600;
  return value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2)));
}

/** Seconds since the epoch as local date and time. */
export function moment(seconds) {
  if (!seconds) return "";
  const date = new Date(seconds * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** Bytes as 1.2 MB. */
export function bytes(size) {
  if (size === null || size === undefined) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

/** `1 run`, `1,000 runs`. */
export function count(number, noun) {
  return `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** `50,000` */
export function thousands(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** The name between Unicode isolates, so that right-to-left text does not reorder the sentence around it. */
export function isolated(name) {
  return `\u2068${name}\u2069`;
}

let collator = null; // created on first use, because it is slow

/** Natural order: `run 9` before `run 10`. */
export function compareNames(a, b) {
  collator ??= new Intl.Collator("en", { numeric: true });
  return collator.compare(a, b);
}

const isNan = (value) => typeof value === "string" && value.toLowerCase() === "nan";

/** Compares two cells: numbers before text; missing values last in both directions. */
export function compare(a, b, descending) {
  const missing = (value) => value === null || value === undefined || value === "" || isNan(value);
  if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
  const numeric = typeof a === "number" && typeof b === "number";
  const order = numeric ? a - b : compareNames(String(a), String(b));
  return descending ? -order : order;
}
