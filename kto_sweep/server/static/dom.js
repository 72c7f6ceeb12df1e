// Elements from data. Text is only ever set as text: whatever a run calls itself cannot become markup.

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

/** The same for a part of a drawing. */
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

/** Appends children; nothing for null. */
export function add(element, children) {
  for (const child of [children].flat(3)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** Replaces what is in the element. */
export function put(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

/** A titled part of a page; `tools` stand beside the title. */
export function section(title, { id = null, tools = [], className = "" } = {}, ...children) {
  const heading = h("h2", id ? { id: `${id}-title` } : {}, title);
  return h(
    "section",
    { class: `panel ${className}`, id, "aria-labelledby": id ? `${id}-title` : null },
    h("div", { class: "panel-head" }, heading, h("div", { class: "tools" }, tools)),
    ...children,
  );
}

/** A line that says that there is nothing, and what to do about it; commands in backticks become code. */
export function empty(text) {
  return h("p", { class: "empty" }, code(text));
}

/** The text with what stands in backticks as code. */
export function code(text) {
  return text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

/** Draws anew and leaves the focus where it was: on the element of the same `data-focus`, or the same link. */
export function keepingFocus(root, draw) {
  const name = (element) => element?.dataset?.focus ?? element?.getAttribute?.("href") ?? null;
  const focus = root.contains(document.activeElement) ? name(document.activeElement) : null;
  draw();
  if (focus !== null)
    [...root.querySelectorAll("[data-focus], [href]")].find((element) => name(element) === focus)?.focus();
}

/** Lets the browser paint and answer keys before more is drawn. */
export function breath() {
  return new Promise((done) => setTimeout(done, 0));
}

/** Calls `work` once, soon, however often it is asked for meanwhile. */
export function soon(work, milliseconds = 80) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), milliseconds);
  };
}
