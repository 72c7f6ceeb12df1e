// The only user of plotly: loads it lazily, sets the theme, escapes names.

import { h, put } from "./dom.js";
import { colour } from "./theme.js";

/** Tick format: at most nine digits, so that 12 is never 12.000000000000002. */
export const TICKS = ".9~g";

let loading = null;

/** Loads plotly on first use, after the page's own content. */
export function plotly() {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  loading ??= new Promise((resolve, reject) => {
    // plotly skips its map styles if elements with these ids exist; the content security policy blocks them.
    for (const id of (document.body.dataset.plotlyStyles ?? "").split(" ").filter(Boolean)) {
      document.head.append(Object.assign(document.createElement("meta"), { id }));
    }
    const script = document.createElement("script");
    script.src = document.body.dataset.plotly;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("plotly.min.js did not load"));
    document.head.append(script);
  });
  return loading;
}

/** Escapes the tags that plotly interprets in labels. */
export function escapeMarkup(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** Shows a text in place of a chart without data; empty axes would show arbitrary numbers. */
export function drawNothing(element, text) {
  window.Plotly?.purge(element);
  put(element, h("p", { class: "nothing" }, text));
}

/**
 * Draws or redraws a chart.
 * @param {HTMLElement} element
 * @param {object[]} traces
 * @param {object} axes parts of plotly's layout
 */
export async function draw(element, traces, { xaxis = {}, yaxis = {}, ...more } = {}) {
  const Plotly = await plotly();
  element.querySelector(":scope > .nothing")?.remove();
  const quiet = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line") };
  const axis = { ...quiet, automargin: true, tickfont: { size: 11 }, title: { font: { size: 11 } } };
  const layout = {
    margin: { l: 44, r: 12, t: 8, b: 34 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("quiet") },
    hoverlabel: {
      bgcolor: colour("panel"),
      bordercolor: colour("line"),
      font: { color: colour("text"), size: 12 },
      align: "left",
    },
    showlegend: false,
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: { ...axis, ...xaxis, title: { ...axis.title, ...xaxis.title } },
    yaxis: { ...axis, ...yaxis, title: { ...axis.title, ...yaxis.title } },
    uirevision: "kept", // a redraw keeps the zoom
    ...more,
  };
  await Plotly.react(element, traces, layout, {
    displayModeBar: false,
    responsive: true,
    doubleClick: "reset",
  });
}
