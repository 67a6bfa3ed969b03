// Shows what the stream says of a run. All text of the run goes in as textContent; nothing is ever parsed as HTML.

import { Chart, nearest, svg } from "./chart.js";

const LEVELS = ["unigram", "bigram", "gzip"];
const TABLE_ROWS = 60;
const MEAN_OF = 10;
const find = (selector) => document.querySelector(selector);
const put = (selector, text) => { find(selector).textContent = text; };

const run = { about: null, now: {}, baselines: null, workers: [], commits: [], held_out: [], accuracy: [], events: [], samples: [] };
let cursor = null;
let following = true; // the newest sample, as long as the reader has not picked another

// Text of figures.

const bits = (value, places = 3) => (value == null ? "–" : value.toFixed(places));
const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const short = (value) => (value == null ? "–" : compact.format(value).replace(/K$/, "\u202fk").replace(/([MBT])$/, "\u202f$1"));
const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(1)} %`);

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

function clock(time) {
  if (time == null) return "–";
  const date = new Date(1000 * time);
  const hours = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? hours : `${date.toLocaleDateString("en-CA")} ${hours}`;
}

// Parts of the page.

function element(name, text, className = "") {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function tableRow(cells) {
  const row = document.createElement("tr");
  row.append(...cells.map((cell) => (Array.isArray(cell) ? element("td", ...cell) : element("td", cell))));
  return row;
}

function fill(selector, rows, columns, nothing) {
  const body = find(`${selector} tbody`);
  body.replaceChildren(...rows);
  if (rows.length) return;
  const cell = element("td", nothing, "empty");
  cell.colSpan = columns;
  const row = document.createElement("tr");
  row.append(cell);
  body.append(row);
}

const domainOfLoss = (values) => {
  if (!values.length) return [0, 8];
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = 0.04 * (high - low) || 0.1;
  return [low - room, high + room];
};

const domainOfShare = (values) => (values.length ? domainOfLoss(values).map((value) => Math.min(1, Math.max(0, value))) : [0, 1]);

const charts = {
  loss: new Chart(find("#loss .chart"), { label: "Loss", format: (value) => value.toFixed(Number.isInteger(value) ? 0 : 2), domain: domainOfLoss, onCursor: moveCursor, say: (x) => say("loss", x) }),
  accuracy: new Chart(find("#accuracy .chart"), { label: "Accuracy", format: (value) => `${Number((100 * value).toFixed(1))} %`, domain: domainOfShare, onCursor: moveCursor, say: (x) => say("accuracy", x) }),
  throughput: new Chart(find("#throughput .chart"), { label: "Throughput", format: short, domain: (values) => [0, 1.05 * Math.max(1, ...values)], onCursor: moveCursor, say: (x) => say("throughput", x) }),
  votes: new Chart(find("#votes .chart"), { label: "Shares of votes", format: (value) => `${Math.round(100 * value)} %`, domain: () => [0, 1], onCursor: moveCursor, say: (x) => say("votes", x) }),
};

function moveCursor(x) {
  cursor = x;
  for (const chart of Object.values(charts)) chart.showCursor(x);
  legends();
}

// [class, name, text] of each thing that a chart shows at generation x.
function readings(chart, x) {
  const commit = run.commits[nearest(run.commits.map((row) => row[0]), x)] ?? [];
  if (chart === "throughput") return [["line speed", "mean of 10 generations", whole(smooth(run.commits)[nearest(run.commits.map((row) => row[0]), x)]?.[1])], ["line speed-raw", "each", whole(commit[2])]];
  if (chart === "votes") return [["band plus", "+1", percent(commit[3])], ["band zero", "0", percent(commit[4])], ["band minus", "−1", percent(commit[5])]];
  if (chart === "accuracy") return [["line held-out", "held-out", percent(valueAt(run.accuracy, x))]];
  const held = [["line training", "training", bits(commit[1])], ["line held-out", "held-out", bits(valueAt(run.held_out, x))]];
  return [...held, ...LEVELS.filter((name) => run.baselines).map((name) => [`level ${name}`, name, bits(run.baselines[name])])];
}

// What the newest evaluation said when commit x made generation x + 1.
const valueAt = (evaluations, x) => evaluations.findLast((row) => row[0] <= x + 1)?.[1];

// Every generation is as many bytes, so the speed of several is the harmonic mean of theirs.
function smooth(commits) {
  const seconds = commits.map((row) => 1 / Math.max(1, row[2]));
  let sum = 0;
  return commits.map((row, n) => {
    sum += seconds[n] - (seconds[n - MEAN_OF] ?? 0);
    return [row[0], Math.min(n + 1, MEAN_OF) / sum];
  });
}

const newest = () => run.commits.at(-1)?.[0] ?? run.held_out.at(-1)?.[0] ?? null;
const say = (chart, x) => [`generation ${x}`, ...readings(chart, x).map(([, name, text]) => `${name} ${text}`)].join(", ");

function legends() {
  const x = cursor ?? newest();
  for (const chart of Object.keys(charts)) {
    if (x === null) continue;
    const place = document.createElement("li");
    place.append("generation ", element("b", whole(x)));
    const items = readings(chart, x).map(([className, name, text]) => {
      const item = document.createElement("li");
      const shape = className.startsWith("band") ? svg("rect", { class: className, x: 6, y: 0, width: 10, height: 10 }) : svg("line", { class: className, x1: 0, x2: 22, y1: 5, y2: 5 });
      item.append(svg("svg", { "aria-hidden": "true" }, shape), `${name} `, element("b", text));
      return item;
    });
    find(`#${chart} .legend`).replaceChildren(...items, place);
  }
}

function showCharts() {
  const generations = run.commits.map((row) => row[0]);
  const column = (n) => run.commits.map((row) => [row[0], row[n]]);
  const all = [...new Set([...generations, ...run.held_out.map((row) => row[0])])].sort((a, b) => a - b);
  const levels = run.baselines ? LEVELS.map((name) => ({ name, value: run.baselines[name] })) : [];
  charts.loss.set([{ name: "training", kind: "line", points: column(1) }, { name: "held-out", kind: "dots", points: run.held_out }], levels, all);
  find("#accuracy").hidden = !run.accuracy.length;
  find("#values").classList.toggle("graded", run.accuracy.length > 0);
  charts.accuracy.set([{ name: "held-out", kind: "dots", points: run.accuracy }], [], run.accuracy.map((row) => row[0]));
  charts.throughput.set([{ name: "speed-raw", kind: "line", points: column(2) }, { name: "speed", kind: "line", points: smooth(run.commits) }], [], generations);
  const bands = ["plus", "zero", "minus"].map((name, n) => ({
    name, kind: "band", points: run.commits.map((row) => { const low = row.slice(3, 3 + n).reduce((a, b) => a + b, 0); return [row[0], low, low + row[3 + n]]; }),
  }));
  charts.votes.set(bands, [], generations);
  legends();
  if (find("#values").open) showValues();
}

function showValues() {
  const step = Math.max(1, Math.ceil(run.commits.length / TABLE_ROWS));
  const rows = run.commits.filter((_, n) => (run.commits.length - 1 - n) % step === 0).reverse();
  const cells = ([g, loss, speed, plus, zero, minus]) => [whole(g), bits(loss), bits(valueAt(run.held_out, g)), percent(valueAt(run.accuracy, g)), whole(speed), percent(plus), percent(zero), percent(minus)];
  fill("#values", rows.map((row) => tableRow(cells(row).map((text) => [text, "number"]))), 8, "no generation yet");
}

function showFigures() {
  const { about, now } = run;
  if (!about) return;
  put("#name", about.name);
  put("#words", about.words.join(" · "));
  for (const node of document.querySelectorAll("[data-unit]")) node.textContent = about.units[node.dataset.unit];
  find("#state").dataset.state = now.state;
  put("#state-word", now.state);
  put("#state-reason", now.reason && now.reason !== "goal" ? now.reason : "");
  put("#generation", whole(now.generation ?? 0));
  put("#goal", `of ${whole(about.goal)}`);
  find("#progress").value = (now.generation ?? 0) / about.goal;
  put("#left", now.state === "running" && now.seconds_left ? `about ${duration(now.seconds_left)} left` : "");
  put("#held-out", bits(now.held_out));
  const right = now.accuracy == null ? "" : `accuracy ${percent(now.accuracy)} `;
  put("#held-out-note", now.held_out_generation == null ? "" : `${right}at generation ${whole(now.held_out_generation)}`);
  put("#training", bits(now.bits_per_byte));
  put("#speed", short(now.bytes_per_second));
  put("#wire", bits(now.wire_bits_per_member, 2));
  put("#votes-note", now.bits_per_member == null ? "" : `${bits(now.bits_per_member, 2)} of votes in the journal`);
  document.title = `${whole(now.generation ?? 0)}/${whole(about.goal)} · ${bits(now.held_out)} · ${about.name}`;
}

const OUT = new Set(["gone", "quarantined"]);

function showWorkers() {
  const alive = run.now.state === "running";
  const state = (worker) => (worker.state === "ready" && !alive ? "ended" : worker.state);
  const rows = run.workers.map((worker) => tableRow([
    worker.name, [state(worker), OUT.has(state(worker)) ? "bad" : ""], clock(worker.since), [whole(worker.leases), "number"],
    [short(worker.bytes_per_second), "number"], [whole(worker.faults), worker.faults ? "number bad" : "number"], worker.about,
  ]));
  const ready = run.workers.filter((worker) => state(worker) === "ready").length;
  put("#workers-note", alive ? `${ready} at work` : "none at work");
  fill("#workers", rows, 7, "no worker has come yet");
}

const BAD = new Set(["failed", "worker_gone", "mismatch", "diverged", "malformed", "quarantined", "torn_tail"]);

function showEvents() {
  const detail = (event) => [event.about, event.reason, event.detail, event.bytes == null ? null : `${whole(event.bytes)} bytes`, event.generation == null ? null : `generation ${whole(event.generation)}`].filter(Boolean).join(", ");
  const rows = run.events.toReversed().map((event) => tableRow([
    clock(event.time), [event.kind.replaceAll("_", " "), BAD.has(event.kind) ? "bad" : ""], event.worker ?? "", detail(event),
  ]));
  fill("#events", rows, 4, "nothing has happened yet");
}

function showSample() {
  const slider = find("#sample");
  find("#samples").hidden = !run.samples.length;
  if (!run.samples.length) return;
  slider.max = run.samples.length - 1;
  if (following) slider.value = slider.max;
  const sample = run.samples[slider.value];
  const evaluated = run.held_out.find((row) => row[0] === sample.generation);
  put("#sample-generation", whole(sample.generation));
  slider.setAttribute("aria-valuetext", `generation ${sample.generation}`);
  put("#sample-note", evaluated ? `held-out loss ${bits(evaluated[1])} ${run.about.units.loss}` : "");
  if (find("#sample-text").textContent !== sample.text) put("#sample-text", sample.text);
}

// The stream.

function take(news) {
  for (const name of ["about", "now", "baselines", "workers"]) if (name in news) run[name] = news[name];
  for (const name of ["commits", "held_out", "accuracy"]) if (name in news) run[name] = news[name].reset ? news[name].rows : [...run[name], ...news[name].rows];
  for (const name of ["events", "samples"]) if (name in news) run[name] = [...run[name], ...news[name]].slice(-500);
  showFigures();
  if ("commits" in news || "held_out" in news || "accuracy" in news || "baselines" in news) showCharts();
  if ("workers" in news || "now" in news) showWorkers();
  if ("events" in news) showEvents();
  if ("samples" in news || "held_out" in news) showSample();
}

function notice(text) {
  find("#notice").hidden = !text;
  if (find("#notice").textContent !== text) put("#notice", text);
}

const source = new EventSource("events");
source.onopen = () => {
  Object.assign(run, { commits: [], held_out: [], accuracy: [], events: [], samples: [] }); // a new stream begins at the beginning
  notice("");
};
source.onerror = () => notice("No connection to the command that serves this page; trying again.");
source.onmessage = (message) => {
  const news = JSON.parse(message.data);
  take(news);
  if (!news.ended) return;
  source.close();
  notice(`The command that served this page has ended. To see the run again: es-service dashboard ${run.about.name}`);
};

find("#sample").addEventListener("input", (event) => {
  following = event.target.value === event.target.max;
  showSample();
});
find("#values").addEventListener("toggle", showValues);
