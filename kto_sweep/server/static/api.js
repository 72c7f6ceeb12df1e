// Talks to the server: reads, changes, and asks again for what has changed.

import { h, put } from "./dom.js";

const QUICK = 2000; // milliseconds between two looks at something that is alive
const SLOW = 15000; // at something that has ended, or that nobody looks at

let csrf = null;

/** Thrown for an answer that is an error; the message says what to do. */
export class ApiError extends Error {}

/** True once the page is known to be logged in: it may change things. */
export function mayControl() {
  return csrf !== null;
}

/** The path of this page, segment by segment. */
export function segments() {
  return location.pathname.split("/").filter(Boolean).map(decodeURIComponent);
}

/** A path of this server from its segments. */
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
  csrf = body.csrf ?? null;
  return body;
}

/** Asks the server to change something; throws an ApiError that says what to do when it does not. */
export async function change(parts, wanted) {
  const answer = await fetch("/-/do" + path(...parts), {
    method: "POST",
    headers: { "content-type": "application/json", "x-kto-sweep-csrf": csrf ?? "" },
    body: JSON.stringify(wanted),
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(message(body, answer.status));
}

function message(body, status) {
  return body.errors?.[0]?.message ?? `the server answered ${status}`;
}

/** Says at the top of the page what went wrong; a fault of ours goes to the console. */
export function report(problem) {
  // A failed fetch is a TypeError, and the same words come in several browsers.
  const offline = problem instanceof ApiError || /fetch|network|load/i.test(problem.message);
  if (!offline) console.error(problem);
  const what =
    problem instanceof ApiError ? problem.message : "No answer from the server. Type: kto-sweep serve";
  put(document.getElementById("live"), h("span", { class: "dot lost" }), what);
}

/**
 * Calls `look` now and then again and again: soon while it returns true (alive), rarely otherwise. What it says of
 * the connection stands at the top of the page. The returned function asks for a look at once.
 * @param {() => Promise<boolean>} look
 */
export function follow(look) {
  const live = document.getElementById("live");
  let timer = 0;
  let busy = false;
  async function round() {
    clearTimeout(timer);
    if (busy) return;
    busy = true;
    let alive = true;
    try {
      alive = await look();
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
