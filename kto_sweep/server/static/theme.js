// Chart colours, read from the style sheet, which defines light and dark.

const dark = matchMedia("(prefers-color-scheme: dark)");

/** The value of a colour variable of the style sheet. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Calls `draw` when the colour scheme changes. */
export function onTheme(draw) {
  dark.addEventListener("change", draw);
}

const CATEGORIES = 8; // --c1 to --c8
const RANKS = 5; // --r1 (best) to --r5 (worst)

/**
 * A colour for each run: distinct for up to eight runs, else shaded from best to worst, grey for those without a rank.
 * @param {Array<{name: string, rank: number | null}>} runs best first
 * @returns {Map<string, string>}
 */
export function runColours(runs) {
  const few = runs.length <= CATEGORIES;
  const stops = Array.from({ length: few ? CATEGORIES : RANKS }, (_, i) =>
    colour(`${few ? "c" : "r"}${i + 1}`),
  );
  const last = Math.max(1, runs.filter((run) => run.rank !== null).length - 1);
  const waiting = colour("waiting");
  return new Map(
    runs.map(({ name, rank }, index) => {
      if (few) return [name, stops[index]];
      return [name, rank === null ? waiting : between(stops, index / last)];
    }),
  );
}

/** The colour at `share` (0 to 1) of the way along the stops (`#rrggbb`). */
export function between(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
  const mixed = [1, 3, 5].map((at) => {
    const [a, b] = [part(stops[low], at), part(stops[low + 1], at)];
    return Math.round(a + (b - a) * (place - low))
      .toString(16)
      .padStart(2, "0");
  });
  return `#${mixed.join("")}`;
}
