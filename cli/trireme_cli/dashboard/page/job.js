// What the page shows of the selected job or service.
import { lineChart } from "./chart.js";
import { badge, bytes, compact, duration, el, percent, precise, since, table } from "./dom.js";

const CHARTS = [
  { title: "Loss", key: "loss", format: precise },
  { title: "Tokens per second", key: "tokensPerSecond", format: compact, fromZero: true },
  { title: "MFU", key: "mfu", format: percent, fromZero: true },
  { title: "Gradient norm", key: "gradNorm", format: precise, fromZero: true },
  { title: "Learning rate", key: "learningRate", format: precise, fromZero: true },
];
const CATEGORIES = [
  ["productive", "Productive"],
  ["recompute", "Recompute"],
  ["checkpointStall", "Checkpoint stall"],
  ["restore", "Restore"],
  ["startup", "Startup"],
  ["scheduling", "Scheduling"],
  ["queued", "Queued"],
  ["down", "Down"],
  ["suspended", "Suspended"],
];

const fact = (name, ...value) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));

function heading(row, extra) {
  return el("header", { class: "title" },
    el("div", {}, el("h2", {}, row.name), badge(row.state), el("p", { class: "muted" }, `${row.kind} in ${row.namespace}${extra}`)),
    row.message ? el("p", { class: "message" }, `${row.reason}: ${row.message}`) : null);
}

function progress(row) {
  if (row.step === null || !row.totalSteps) return null;
  const bar = el("progress", { max: row.totalSteps, "aria-label": "Completed steps" });
  bar.value = row.step;
  const eta = row.etaSeconds === null ? "" : `, about ${duration(row.etaSeconds)} to go`;
  return el("div", { class: "progress" }, bar,
    el("span", {}, `step ${row.step} of ${row.totalSteps} (${percent(row.step / row.totalSteps, 0)})${eta}`));
}

function accounting(job, row) {
  const total = Object.values(job.seconds).reduce((sum, value) => sum + value, 0) || 1;
  const parts = CATEGORIES.filter(([key]) => job.seconds[key] > 0).map(([key, name]) => {
    const share = job.seconds[key] / total;
    const piece = el("span", { class: `category ${key}`, title: `${name}: ${duration(job.seconds[key])}` });
    piece.style.flexGrow = share;
    const entry = el("li", {}, el("span", { class: `swatch category ${key}` }), el("span", {}, name),
      el("span", { class: "number" }, duration(job.seconds[key])), el("span", { class: "number muted" }, percent(share)));
    return { piece, entry };
  });
  return el("section", { class: "card", "data-chart": "time" },
    el("h3", {}, "Where the time went", el("span", { class: "value" }, `goodput ${percent(row.goodput)}`)),
    el("div", { class: "stack", role: "img", "aria-label": `Goodput ${percent(row.goodput)} of ${duration(total)}` },
      parts.map((part) => part.piece)),
    el("ul", { class: "legend" }, parts.map((part) => part.entry)));
}

function restarts(job) {
  if (job.restarts.length === 0) return el("p", { class: "muted" }, "None.");
  const rows = job.restarts.toReversed().map((r) => {
    const back = r.firstStepAt ? (Date.parse(r.firstStepAt) - Date.parse(r.raisedAt)) / 1000 : null;
    const where = r.node ?? (r.rank === null ? "–" : `rank ${r.rank}`);
    return { cells: [r.cause, where, `${r.step}`, r.resumeStep === null ? "–" : `${r.resumeStep}`, duration(back)] };
  });
  const headings = [["Cause", ""], ["Where", ""], ["After step", "number"], ["Resumed at", "number"], ["Back in", "number"]];
  return el("div", { class: "scroll" }, table("Restarts, newest first", headings, rows));
}

function checkpoints(job, row, now) {
  const saved = job.checkpoint;
  if (saved.step === null) return el("p", { class: "muted" }, saved.failingReason ?? "None is committed yet.");
  const kept = job.keptCheckpoints.map((c) => c.step);
  return el("dl", { class: "facts" },
    fact("Newest", `step ${saved.step}, ${since(saved.committedAt, now)} ago`),
    fact("Size", bytes(saved.bytes)),
    fact("Committed", `${saved.committedCount}`),
    fact("Upload", duration(saved.uploadSeconds)),
    fact("Training stalled", duration(saved.stallSeconds)),
    fact("Kept in the store", kept.length ? `${kept.length}: ${kept.slice(-6).join(", ")}` : "–"),
    saved.failingReason ? fact("Saves fail", saved.failingReason) : null);
}

function jobFacts(job, row) {
  return el("dl", { class: "facts wide" },
    fact("Attempt", `${job.attempt}`),
    fact("Devices", row.devices === null ? "–" : `${row.devices}`),
    fact("Nodes", job.nodes.length ? job.nodes.slice(0, 8).join(", ") + (job.nodes.length > 8 ? ", …" : "") : "–"),
    fact("Tokens", compact(job.tokens)),
    fact("Step time", duration(job.stepSeconds)),
    fact("Validation loss", precise(job.validationLoss)),
    job.mfuBasis ? fact("MFU of", job.mfuBasis) : null,
    Object.entries(job.metrics).slice(0, 12).map(([name, value]) => fact(name, precise(value))));
}

// A chart whose facts have not changed stays as it is, with the pointer on it.
const charts = new Map();

function chartOf(chart, row, job) {
  const facts = { curve: job.curve, lost: job.lost, restarts: job.restarts, checkpoints: job.keptCheckpoints };
  const text = JSON.stringify([row.plural, row.namespace, row.name, facts]);
  const known = charts.get(chart.key);
  if (known?.text === text) return known.node;
  const node = el("div", { class: "card" }, lineChart({ ...chart, ...facts }));
  charts.set(chart.key, { text, node });
  return node;
}

export function jobView({ row, job, now }) {
  const key = el("p", { class: "key muted" },
    el("span", { class: "restart-key" }, "restart"), el("span", { class: "checkpoint-key" }, "checkpoint"),
    el("span", { class: "lost-key" }, "computed again"), job.storeNote);
  return [
    heading(row, job.program ? `, ${job.program}` : ""),
    job.failure && row.state !== "Succeeded" && row.state !== "Running"
      ? el("p", { class: "failure" }, `${job.failure.cause}: ${job.failure.message}`) : null,
    progress(row),
    jobFacts(job, row),
    el("div", { class: "charts" }, CHARTS.map((chart) => chartOf(chart, row, job)), accounting(job, row)),
    key,
    el("div", { class: "pair" },
      el("section", { class: "card" }, el("h3", {}, "Restarts", el("span", { class: "value" }, `${row.restarts}`)), restarts(job)),
      el("section", { class: "card" }, el("h3", {}, "Checkpoints"), checkpoints(job, row, now))),
  ].filter(Boolean);
}

export function serviceView({ row, service, conditions }) {
  const replicas = service.replicas.map((pod) => ({
    cells: [pod.name, badge(pod.ready ? "Ready" : pod.state || "Starting"), pod.node ?? "–", pod.revision,
      `${pod.restarts}`, pod.adapters.map((adapter) => adapter.name).join(", ") || "–"],
  }));
  const headings = [["Replica", ""], ["State", ""], ["Node", ""], ["Revision", ""], ["Restarts", "number"], ["Adapters", ""]];
  return [
    heading(row, ""),
    el("dl", { class: "facts wide" },
      fact("URL", service.url ?? "–"),
      fact("Model", service.model?.uri ?? "–"),
      fact("Digest", service.model?.digest?.slice(0, 19) ?? "–"),
      fact("Revision", service.revision ?? "–"),
      service.targetRevision && service.targetRevision !== service.revision ? fact("Rolling out", service.targetRevision) : null,
      fact("Replicas", `${row.ready} ready of ${row.replicas}`)),
    el("section", { class: "card" }, el("h3", {}, "Replicas"),
      el("div", { class: "scroll" }, table("Replicas of the service", headings, replicas))),
    el("section", { class: "card" }, el("h3", {}, "Conditions"),
      el("div", { class: "scroll" }, table("Conditions of the service", [["Type", ""], ["Status", ""], ["Reason", ""], ["Message", "long"]],
        conditions.map((c) => ({ cells: [c.type, c.status, c.reason, c.message] }))))),
  ].filter(Boolean);
}
