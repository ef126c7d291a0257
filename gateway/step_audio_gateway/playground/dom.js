// Small helpers to build the page. Text only ever enters it as text nodes, so a model cannot write markup into it.

/** An element with properties, `on…` listeners, attributes (`aria-…`) and children (nodes or strings). */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols at the top of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A round button with a symbol; `label` is read out and shown as a tooltip. */
export function iconButton(name, label, onclick) {
  const properties = { type: "button", className: "icon-button", title: label, "aria-label": label, onclick };
  return element("button", properties, icon(name));
}

/** 65.2 → "1:05". */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Milliseconds → "0.42 s", "12.3 s", "2 min 5 s". */
export function duration(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** 1234 → "1,234" in the reader's own spelling. */
export function count(number) {
  return number.toLocaleString();
}

/** Appends what `text` has beyond what `node` (a Text) already shows: long replies stay cheap to draw. */
export function extend(node, text) {
  if (text.length > node.length) node.appendData(text.slice(node.length));
}
