// The page: asks for the overview and for the selected object, and draws what has changed.
import { badge, compact, el, percent, precise, since, table } from "./dom.js";
import { jobView, serviceView } from "./job.js";

const place = (id) => document.getElementById(id);
const pathOf = (row) => `${row.plural}/${row.namespace}/${row.name}`;
const drawn = new Map();
let interval = 2;
let chosen = "";

// Redraws only what has changed, so that a pointer on a chart or a focus in a table stays where it is.
function draw(id, facts, make) {
  const text = JSON.stringify(facts);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  const target = place(id);
  const focused = target.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  target.replaceChildren(...make());
  if (focused) [...target.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
}

async function ask(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error ?? `HTTP ${response.status}`);
  return answer;
}

function tiles(rows) {
  const jobs = rows.filter((row) => row.replicas === null);
  const count = (...states) => jobs.filter((row) => states.includes(row.state)).length;
  const running = jobs.filter((row) => row.state === "Running");
  const speed = running.reduce((sum, row) => sum + (row.tokensPerSecond ?? 0), 0);
  const mean = running.length ? running.reduce((sum, row) => sum + row.goodput, 0) / running.length : null;
  const services = rows.filter((row) => row.replicas !== null);
  const failed = count("Failed", "Rejected");
  const waiting = jobs.length - count("Running", "Succeeded", "Failed", "Rejected", "Suspended");
  const facts = [
    ["Running", `${running.length}`, `${waiting} on the way`],
    ["Succeeded", `${count("Succeeded")}`, failed ? `${failed} failed` : "none failed"],
    ["Devices held", `${rows.reduce((sum, row) => sum + (row.holdsDevices ? row.devices ?? 0 : 0), 0)}`, `by ${rows.filter((row) => row.holdsDevices).length} of ${rows.length}`],
    ["Tokens per second", compact(speed), "of running jobs"],
    ["Goodput", percent(mean), "mean of running jobs"],
    ["Restarts", `${jobs.reduce((sum, row) => sum + (row.restarts ?? 0), 0)}`, "of all jobs"],
  ];
  if (services.length) {
    const ready = services.reduce((sum, row) => sum + row.ready, 0);
    const all = services.reduce((sum, row) => sum + row.replicas, 0);
    facts.push(["Replicas ready", `${ready} of ${all}`, `${services.length} ${services.length === 1 ? "service" : "services"}`]);
  }
  return facts.map(([name, value, note]) =>
    el("li", {}, el("span", { class: "name" }, name), el("strong", {}, value), el("span", { class: "muted" }, note)));
}

function link(row) {
  return el("a", { href: `#/${pathOf(row)}`, "aria-current": pathOf(row) === chosen ? "true" : null }, row.name);
}

function steps(row) {
  if (row.step === null) return "–";
  const bar = el("progress", { max: row.totalSteps ?? 1, "aria-hidden": "true" });
  bar.value = row.totalSteps ? row.step : 0;
  return el("span", { class: "steps" }, bar, `${row.step}/${row.totalSteps ?? "?"}`);
}

function jobTable(rows, now, everywhere) {
  const headings = [["Name", ""], ["Kind", ""], ["State", ""], ["Steps", ""], ["Loss", "number"], ["Tokens/s", "number"],
    ["MFU", "number"], ["Goodput", "number"], ["Restarts", "number"], ["Checkpoint", "number"], ["Devices", "number"], ["Age", "number"]];
  const body = rows.map((row) => ({
    class: pathOf(row) === chosen ? "chosen" : null,
    cells: [link(row), everywhere ? `${row.kind} in ${row.namespace}` : row.kind, badge(row.state), steps(row),
      precise(row.loss), compact(row.tokensPerSecond), percent(row.mfu), percent(row.goodput), `${row.restarts}`,
      row.checkpointAt ? `${since(row.checkpointAt, now)} ago` : "–", row.devices === null ? "–" : `${row.devices}`, since(row.createdAt, now)],
  }));
  return body.length ? table("Jobs", headings, body) : el("p", { class: "muted" }, "There is no job yet.");
}

function serviceTable(rows, now, everywhere) {
  const headings = [["Name", ""], ["State", ""], ["Ready", "number"], ["URL", ""], ["Devices", "number"], ["Restarts", "number"], ["Age", "number"]];
  return table("Services", headings, rows.map((row) => ({
    class: pathOf(row) === chosen ? "chosen" : null,
    cells: [el("span", {}, link(row), everywhere ? ` in ${row.namespace}` : ""), badge(row.state), `${row.ready}/${row.replicas}`,
      row.url ?? "–", `${row.devices}`, `${row.restarts}`, since(row.createdAt, now)],
  })));
}

function showOverview(overview) {
  const { rows, now, namespace } = overview;
  interval = overview.interval;
  const jobs = rows.filter((row) => row.replicas === null);
  const services = rows.filter((row) => row.replicas !== null);
  const known = rows.some((row) => pathOf(row) === chosen);
  if (!known && !location.hash.startsWith("#/")) {
    const first = rows.find((row) => row.state === "Running") ?? rows[0];
    chosen = first ? pathOf(first) : "";
  }
  const everywhere = namespace === null;
  place("place").textContent = everywhere ? "all namespaces" : `namespace ${namespace}`;
  draw("problems", overview.problems, () => overview.problems.map((problem) => el("p", {}, problem)));
  draw("tiles", rows.map((row) => [row.state, row.tokensPerSecond, row.goodput, row.restarts, row.devices, row.ready]), () => tiles(rows));
  place("services").hidden = services.length === 0;
  fill("jobs", jobTable(jobs, now, everywhere));
  fill("services", serviceTable(services, now, everywhere));
}

function fill(id, content) {
  const target = place(id).querySelector(".scroll");
  const focused = target.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  target.replaceChildren(content);
  if (focused) [...target.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus();
}

function showDetail(detail) {
  const { now, asOf, ...facts } = detail;
  draw("detail", facts, () => (detail.job ? jobView(detail) : serviceView(detail)));
  document.title = `${detail.row.name}: ${detail.row.state} – Trireme`;
}

async function refresh() {
  try {
    const overview = await ask("/api/overview");
    showOverview(overview);
    const stale = (Date.parse(overview.now) - Date.parse(overview.asOf)) / 1000 > 3 * interval + 5;
    place("freshness").className = stale || overview.asOf === null ? "stale" : "live";
    place("freshness").textContent = stale ? `as of ${new Date(overview.asOf).toLocaleTimeString()}` : "live";
    if (chosen) showDetail(await ask(`/api/resources/${chosen}`));
    else place("detail").replaceChildren();
  } catch (error) {
    place("freshness").className = "stale";
    place("freshness").textContent = error instanceof TypeError ? "trireme dashboard has ended" : error.message;
  }
}

async function run() {
  while (true) {
    if (!document.hidden) await refresh(); // a page that nobody sees asks for nothing
    await new Promise((done) => setTimeout(done, interval * 1000));
  }
}

function choose() {
  if (location.hash.startsWith("#/")) chosen = decodeURIComponent(location.hash.slice(2));
}

addEventListener("hashchange", () => {
  choose();
  refresh();
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
choose();
run();
