// Elements and numbers. Text is only ever set as text: names and messages come from the cluster.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const MISSING = "–";

export function compact(value) {
  if (value === null || value === undefined) return MISSING;
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= limit) return `${Number((value / limit).toPrecision(3))}${unit}`;
  }
  return `${Number(value.toPrecision(3))}`;
}

export function precise(value) {
  if (value === null || value === undefined) return MISSING;
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
  return `${Number(value.toPrecision(4))}`;
}

export function percent(value, digits = 1) {
  return value === null || value === undefined ? MISSING : `${(100 * value).toFixed(digits)}%`;
}

export function bytes(value) {
  if (value === null || value === undefined) return MISSING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number(value.toPrecision(3))} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return MISSING;
  const whole = Math.max(0, Math.round(seconds));
  const parts = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]];
  for (let i = 0; i < parts.length - 1; i += 1) {
    const [size, unit] = parts[i];
    if (whole < size) continue;
    const rest = Math.floor((whole % size) / parts[i + 1][0]);
    return `${Math.floor(whole / size)}${unit}${rest ? ` ${rest}${parts[i + 1][1]}` : ""}`;
  }
  return seconds > 0 && seconds < 10 ? `${seconds.toFixed(1)}s` : `${whole}s`;
}

export function since(time, now) {
  return time ? duration((Date.parse(now) - Date.parse(time)) / 1000) : MISSING;
}

const STATES = {
  good: ["Running", "Ready"],
  done: ["Succeeded"],
  bad: ["Failed", "Rejected", "Degraded"],
  warn: ["Restarting", "Updating", "Suspending"],
  off: ["Suspended", "Stopped"],
};

export function badge(state) {
  const tone = Object.keys(STATES).find((name) => STATES[name].includes(state)) ?? "wait";
  return el("span", { class: `badge ${tone}` }, state);
}

export function table(caption, headings, rows) {
  const head = headings.map(([name, kind]) => el("th", { scope: "col", class: kind }, name));
  const body = rows.map(({ cells, ...attributes }) =>
    el("tr", attributes, cells.map((cell, i) =>
      i === 0 ? el("th", { scope: "row", class: headings[i][1] }, cell) : el("td", { class: headings[i][1] }, cell))));
  return el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
}
