// A line chart over steps: the curve, steps that were computed twice, restarts and checkpoints.
import { el, svg } from "./dom.js";

const WIDTH = 460;
const HEIGHT = 190;
const EDGE = { left: 50, right: 18, top: 12, bottom: 26 };

function niceTicks(low, high, count) {
  const raw = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(tick);
  return ticks.map((tick) => Number(tick.toPrecision(12)));
}

function range(values, fromZero) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (fromZero) low = Math.min(0, low);
  if (low === high) return [low === 0 ? 0 : low - Math.abs(low) * 0.1, high + (Math.abs(high) * 0.1 || 1)];
  const air = (high - low) * 0.06;
  return [fromZero && low === 0 ? 0 : low - air, high + air];
}

// Pieces of a line between values that are missing.
function path(points, x, y) {
  let drawn = "";
  let pen = "M";
  for (const point of points) {
    if (point.y === null) {
      pen = "M";
      continue;
    }
    drawn += `${pen}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`;
    pen = "L";
  }
  return drawn;
}

// Steps of two attempts are two lines.
function byAttempt(points) {
  const runs = [];
  for (const point of points) {
    const run = runs.at(-1);
    if (run && point.x > run.at(-1).x) run.push(point);
    else runs.push([point]);
  }
  return runs;
}

function axes(x, y, xs, ys, format) {
  const parts = [];
  for (const tick of niceTicks(...ys, 4)) {
    const at = y(tick);
    parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: at, y2: at }));
    parts.push(svg("text", { class: "tick", x: EDGE.left - 7, y: at + 3.5, "text-anchor": "end" }, format(tick)));
  }
  const whole = niceTicks(...xs, 5).filter((tick) => Number.isInteger(tick));
  for (const tick of whole) {
    parts.push(svg("text", { class: "tick", x: x(tick), y: HEIGHT - 8, "text-anchor": "middle" }, `${tick}`));
  }
  return parts;
}

function marks(restarts, checkpoints, x, inside) {
  const floor = HEIGHT - EDGE.bottom;
  const drawn = checkpoints.filter((c) => inside(c.step)).map((c) =>
    svg("path", { class: "checkpoint", d: `M${x(c.step)} ${floor - 7}l4 7h-8z` },
      svg("title", {}, `checkpoint of step ${c.step}, attempt ${c.attempt}`)));
  for (const restart of restarts.filter((r) => inside(r.step))) {
    const at = x(restart.step);
    drawn.push(svg("g", { class: "restart" },
      svg("line", { x1: at, x2: at, y1: EDGE.top, y2: floor }),
      svg("circle", { cx: at, cy: EDGE.top, r: 3.5 }),
      svg("title", {}, `${restart.cause} after step ${restart.step}; resumed from step ${restart.resumeStep ?? 0}`)));
  }
  return drawn;
}

function follow(figure, drawing, points, x, y, format) {
  const line = svg("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom });
  const dot = svg("circle", { class: "dot", r: 3.5 });
  const group = svg("g", { class: "pointer", visibility: "hidden" }, line, dot);
  drawing.append(group);
  const readout = figure.querySelector(".value");
  const latest = readout.textContent;
  const show = (event) => {
    const box = drawing.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * WIDTH;
    const near = points.reduce((a, b) => (Math.abs(x(b.x) - wanted) < Math.abs(x(a.x) - wanted) ? b : a));
    group.setAttribute("visibility", "visible");
    line.setAttribute("x1", x(near.x));
    line.setAttribute("x2", x(near.x));
    dot.setAttribute("cx", x(near.x));
    dot.setAttribute("cy", y(near.y));
    readout.textContent = `step ${near.x}: ${format(near.y)}`;
  };
  drawing.addEventListener("pointermove", show);
  drawing.addEventListener("pointerleave", () => {
    group.setAttribute("visibility", "hidden");
    readout.textContent = latest;
  });
}

// curve and lost: {step: [...], [key]: [...]}; restarts: {step, cause, resumeStep}; checkpoints: {step, attempt}.
export function lineChart({ title, key, format, fromZero = false, curve, lost, restarts, checkpoints }) {
  const series = (from) => from.step.map((step, i) => ({ x: step, y: from[key][i] }));
  const points = series(curve);
  const known = points.filter((point) => point.y !== null);
  const last = known.at(-1);
  const figure = el("figure", { class: "chart", "data-chart": key },
    el("figcaption", {}, el("span", {}, title), el("span", { class: "value" }, last ? format(last.y) : "")));
  if (!last) {
    figure.append(el("p", { class: "nothing" }, "Not measured yet"));
    return figure;
  }
  const again = series(lost).filter((point) => point.y !== null);
  const xs = [Math.min(0, known[0].x), Math.max(last.x, known[0].x + 1)];
  const ys = range([...known, ...again].map((point) => point.y), fromZero);
  const x = (step) => EDGE.left + ((step - xs[0]) / (xs[1] - xs[0])) * (WIDTH - EDGE.left - EDGE.right);
  const y = (value) => HEIGHT - EDGE.bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (HEIGHT - EDGE.top - EDGE.bottom);
  const inside = (step) => step !== null && step >= xs[0] && step <= xs[1];
  const summary = `${title} over steps ${known[0].x} to ${last.x}: from ${format(known[0].y)} to ${format(last.y)}`;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": summary },
    axes(x, y, xs, ys, format),
    byAttempt(again).map((run) => svg("path", { class: "lost", d: path(run, x, y) })),
    svg("path", { class: "area", d: `${path(known, x, y)}L${x(last.x).toFixed(1)} ${y(ys[0])}L${x(known[0].x).toFixed(1)} ${y(ys[0])}Z` }),
    svg("path", { class: "line", d: path(points, x, y) }),
    marks(restarts, checkpoints, x, inside));
  figure.append(drawing);
  follow(figure, drawing, known, x, y, format);
  return figure;
}
