// HTTP client of the page: reads data, sends actions, polls for changes.

import { h, put } from "./dom.js";

const QUICK = 2000; // milliseconds between two requests for something active
const SLOW = 15000; // for something that has ended, or in a hidden tab

let csrf = ""; // what an action needs besides the cookie; each answer has it

/** An error response; the message says what to do. */
export class ApiError extends Error {}

/** The segments of this page's path. */
export function segments() {
  return location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
}

/** The path made of these segments. */
export function path(...parts) {
  return "/" + parts.map(encodeURIComponent).join("/");
}

/**
 * The JSON under `/-/data`; null when nothing has changed.
 * @param {string[]} parts
 * @param {Array<[string, string | number]>} [query]
 */
export async function read(parts, query = []) {
  const search = new URLSearchParams(query.map(([key, value]) => [key, String(value)])).toString();
  const answer = await fetch("/-/data" + path(...parts) + (search ? `?${search}` : ""));
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(message(body, answer.status));
  csrf = body.csrf;
  return body;
}

/** Sends an action; throws an ApiError when the server rejects it. */
export async function change(parts, action) {
  const answer = await fetch("/-/do" + path(...parts), {
    method: "POST",
    headers: { "content-type": "application/json", "x-kto-sweep-csrf": csrf },
    body: JSON.stringify(action),
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(message(body, answer.status));
}

function message(body, status) {
  return body.errors?.[0]?.message ?? `the server returned status ${status}`;
}

/** Shows an error at the top of the page; errors of the page itself are also logged to the console. */
export function report(problem) {
  // A failed fetch is a TypeError; these words occur in its message in all browsers.
  const offline = problem instanceof ApiError || /fetch|network|load/i.test(problem.message);
  if (!offline) console.error(problem);
  const what =
    problem instanceof ApiError ? problem.message : "The server does not respond. Run: kto-sweep serve";
  put(document.getElementById("live"), h("span", { class: "dot lost" }), what);
}

/**
 * Calls `refresh` now and repeatedly: often while it returns true (active), else rarely. Shows the connection state at
 * the top of the page. The returned function refreshes at once.
 * @param {() => Promise<boolean>} refresh
 */
export function poll(refresh) {
  const live = document.getElementById("live");
  let timer = 0;
  let busy = false;
  async function round() {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    let alive = true;
    try {
      alive = await refresh();
      put(live, h("span", { class: alive ? "dot alive" : "dot" }), alive ? "live" : "ended");
    } catch (problem) {
      report(problem);
    }
    busy = false;
    timer = setTimeout(round, alive && !document.hidden ? QUICK : SLOW);
  }
  document.addEventListener("visibilitychange", () => !document.hidden && round());
  round();
  return round;
}
