// Creates DOM elements. Text is only set as text nodes, so that a run name cannot inject markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes, listeners (`onclick`) and children.
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `class`, `data-x`, `aria-x` and so on; null and false leave one out
 * @param {...(Node | string | number | null | undefined | Array<Node | string>)} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Like `h`, for SVG elements. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style")
      for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

/** Appends children; skips null. */
export function add(element, children) {
  for (const child of [children].flat(3)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** Replaces the element's children. */
export function put(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

/** A titled part of a page; `tools` are placed beside the title. */
export function section(title, { id = null, tools = [], className = "" } = {}, ...children) {
  const heading = h("h2", id ? { id: `${id}-title` } : {}, title);
  return h(
    "section",
    { class: `panel ${className}`, id, "aria-labelledby": id ? `${id}-title` : null },
    h("div", { class: "panel-head" }, heading, h("div", { class: "tools" }, tools)),
    ...children,
  );
}

/** A placeholder that says what to do; commands in backticks become code. */
export function empty(text) {
  return h("p", { class: "empty" }, code(text));
}

/** The text with parts in backticks as code elements. */
export function code(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** Redraws and restores the focus to the element with the same `data-focus` or link. */
export function keepingFocus(root, draw) {
  const name = (element) => element?.dataset?.focus ?? element?.getAttribute?.("href") ?? null;
  const focus = root.contains(document.activeElement) ? name(document.activeElement) : null;
  draw();
  if (focus !== null)
    [...root.querySelectorAll("[data-focus], [href]")].find((element) => name(element) === focus)?.focus();
}

/** Lets the browser paint and handle input before more is drawn. */
export function yieldToBrowser() {
  return new Promise((done) => setTimeout(done, 0));
}

/** Calls `work` once, `milliseconds` after the last call of the returned function. */
export function debounce(work, milliseconds = 80) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), milliseconds);
  };
}

/** Calls `work` at once, but not within `milliseconds` of the last call: then once, as soon as they have passed. */
export function throttle(work, milliseconds) {
  let timer = 0;
  let last = -Infinity;
  return () => {
    clearTimeout(timer);
    const wait = Math.max(0, last + milliseconds - Date.now());
    timer = setTimeout(() => {
      last = Date.now();
      work();
    }, wait);
  };
}
