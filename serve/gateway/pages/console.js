// The console: asks for /console/state again and again, and brings the page up to it. Text goes in as text only.

import { Sheet, age, bytes, count, drawn, element, fill, latency, span } from "./console_elements.js";

const $ = (id) => document.getElementById(id);
const page = Object.fromEntries(
  [
    "pulse", "forget", "away", "door", "apiKey", "refusal", "board", "of", "tiles", "ask", "answer", "askTitle", "askText",
    "askRefusal", "yes", "no",
  ].map((name) => [name, $(name.replace(/[A-Z]/, (letter) => `-${letter.toLowerCase()}`))]),
);
const POLL_MS = 2000;
const PATIENCE_MS = 5000;
/** Polls to compare with the newest: a minute for the figures, two for the lines. */
const WINDOW = 30;
const KEPT = 60;

/** The newest states, oldest first; those before a new start of the gateway, which counts from nought, are dropped. */
let history = [];
let timer = null;

// ---------------------------------------------------------------------------------------------------- traffic

const sum = (values) => values.reduce((total, value) => total + value, 0);
const chosen = (byModel) => Object.entries(byModel).filter(([model]) => !page.of.value || model === page.of.value);

/** The cumulative buckets of a histogram between two states: [[upper bound, count]…]. */
function buckets(metric, before, after) {
  const total = new Map();
  for (const [sign, state] of [[1, after], [-1, before]]) {
    for (const [, counts] of chosen(state.traffic[metric])) {
      for (const [bound, value] of counts) {
        const upper = bound === "+Inf" ? Infinity : Number(bound);
        total.set(upper, (total.get(upper) ?? 0) + sign * value);
      }
    }
  }
  return [...total].sort(([a], [b]) => a - b);
}

/** As Prometheus' histogram_quantile: linear within a bucket; null where nothing was counted. */
function quantile(q, counts) {
  const wanted = q * (counts.at(-1)?.[1] ?? 0);
  if (!wanted) return null;
  let [low, below] = [0, 0];
  for (const [upper, value] of counts) {
    if (value >= wanted) return upper === Infinity ? low : low + ((upper - low) * (wanted - below)) / (value - below);
    [low, below] = [upper, value];
  }
  return null;
}

function tokens(kind, before, after) {
  const at = (state) => sum(chosen(state.traffic.tokens).map(([, kinds]) => kinds[kind] ?? 0));
  return at(after) - at(before);
}

/** All requests so far. */
function counted({ traffic: { requests } }) {
  return sum(Object.values(requests).flatMap((counts) => Object.values(counts)));
}

/** Requests between two states: {status: count}. */
function statuses(before, after) {
  const found = {};
  for (const [sign, state] of [[1, after], [-1, before]]) {
    for (const [, counts] of chosen(state.traffic.requests)) {
      for (const [status, value] of Object.entries(counts)) found[status] = (found[status] ?? 0) + sign * value;
    }
  }
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value > 0));
}

/** Each figure of the page: what it says, and what its lines show of each two states that follow each other. */
const TILES = {
  "Time to first token": {
    told: (before, after) => percentiles(buckets("first_token", before, after)),
    lines: [(a, b) => quantile(0.5, buckets("first_token", a, b)), (a, b) => quantile(0.95, buckets("first_token", a, b))],
  },
  "Between two tokens": {
    told: (before, after) => percentiles(buckets("inter_token", before, after)),
    lines: [(a, b) => quantile(0.5, buckets("inter_token", a, b)), (a, b) => quantile(0.95, buckets("inter_token", a, b))],
  },
  "Tokens per second": {
    told: (before, after) => {
      const seconds = Math.max(after.at - before.at, 1e-3);
      const made = tokens("completion", before, after) / seconds;
      const figure = made > 0 && made < 10 ? made.toFixed(1) : count(made);
      return { figure, unit: "generated", beside: `${count(tokens("prompt", before, after) / seconds)} of prompts` };
    },
    lines: [(a, b) => tokens("completion", a, b) / Math.max(b.at - a.at, 1e-3)],
  },
  Requests: {
    told: (before, after) => {
      const found = statuses(before, after);
      const waiting = sum(chosen(after.traffic.waiting).map(([, value]) => value));
      const now = [`${after.traffic.in_flight} in flight`, ...(waiting ? [`${waiting} waiting`] : [])].join(", ");
      const ended = Object.entries(found).map(([status, value]) => `${status}: ${count(value)}`).join("  ");
      return { figure: count(sum(Object.values(found))), unit: now, beside: ended };
    },
    lines: [(a, b) => sum(Object.values(statuses(a, b)))],
  },
};

function percentiles(counts) {
  const [half, most] = [quantile(0.5, counts), quantile(0.95, counts)];
  return { figure: latency(half), unit: "median", beside: most === null ? "none measured" : `95% within ${latency(most)}` };
}

function showTraffic() {
  const after = history.at(-1);
  const before = history.at(-1 - WINDOW) ?? history[0];
  const counted = ["first_token", "tokens", "requests"].flatMap((name) => Object.keys(after.traffic[name]));
  const names = [...new Set([...counted, ...after.engines.rows.map((row) => row.model)])].filter((name) => name !== "-").sort();
  if (JSON.stringify(names) !== JSON.stringify([...page.of.options].slice(1).map((option) => option.value))) {
    const wanted = page.of.value;
    page.of.replaceChildren(new Option("All models", ""), ...names.map((name) => new Option(name, name)));
    page.of.value = names.includes(wanted) ? wanted : "";
  }
  for (const [title, tile] of Object.entries(TILES)) {
    tile.node ??= newTile(title);
    const { figure, unit, beside } = tile.told(before, after);
    fill(tile.node.children[1], [figure, { text: unit, look: "unit" }]);
    tile.node.children[2].textContent = beside;
    tile.node.lastChild.replaceWith(sparkline(tile.lines));
  }
}

function newTile(title) {
  const node = element("article", "tile", element("h3", "", title), element("p", "figure"), element("p", "beside"), element("span"));
  page.tiles.append(node);
  return node;
}

/** The lines over the kept states, newest at the right; a gap where there was nothing to measure. */
function sparkline(lines) {
  const svg = drawn("svg", { class: "spark", viewBox: `0 0 ${KEPT - 1} 30`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const series = lines.map((line) => history.slice(1).map((state, index) => line(history[index], state)));
  const top = Math.max(...series.flat().filter((value) => value !== null), 1e-9);
  const x = (index) => KEPT - history.length + index;
  series.forEach((values, which) => {
    let run = [];
    values.forEach((value, index) => {
      if (value !== null) run.push(`${x(index)},${(28 - (25 * value) / top).toFixed(2)}`);
      if ((value === null || index === values.length - 1) && run.length) {
        const [start, end] = [run[0].split(",")[0], run.at(-1).split(",")[0]];
        if (run.length === 1) run.push(`${Number(end) + 0.5},${run[0].split(",")[1]}`);
        if (which === 0) svg.append(drawn("polygon", { points: `${start},30 ${run.join(" ")} ${end},30` }));
        svg.append(drawn("polyline", { points: run.join(" "), class: which === 0 ? "first" : "second" }));
        run = [];
      }
    });
  });
  return svg;
}

// ---------------------------------------------------------------------------------------------------- tables

const KINDS = {
  ready: "good", running: "good", succeeded: "good", completed: "good", active: "good", in_progress: "good",
  starting: "busy", draining: "busy", queued: "busy", validating: "busy", finalizing: "busy", cancelling: "busy", pausing: "busy",
  failed: "bad", silent: "bad", ejected: "bad", away: "bad", expired: "bad",
};
const stateOf = (state) => ({ state: state.replace("_", " "), kind: KINDS[state] ?? "" });
const reason = (text) => (text ? { reason: text } : null);
const soft = (text) => ({ text, look: "soft" });

const sheets = {
  engines: new Sheet("engines", "Engines", ["Serves", "State", "Engine", ">In flight", ">Context", ">Age"],
    "No engine runs. Start some with: everlearn serve"),
  models: new Sheet("models", "Models", ["Version", "Known as", "Made by", "From", "Format", ">Size", ">Parameters", ">Age", ">"],
    "No model is registered. Bring one with: everlearn import smollm2"),
  jobs: new Sheet("jobs", "Training jobs", ["Job", "Model", "State", "Result", ">Age", ">"], "No job yet."),
  batches: new Sheet("batches", "Batches", ["Batch", "Endpoint", "State", "Answered", ">Age"], "No batch yet."),
  keys: new Sheet("keys", "API keys", ["Name", "Begins with", "Models", "Limits", "State", ">Age", ">"],
    "No key yet: whoever reaches this server on its own machine may use it, and see this page."),
  acts: new Sheet("acts", "Latest acts", ["Act", "On", "By", ">Age"], "Nobody has changed anything yet."),
};

/** What a version on trial gets of its model's requests: "canary, 10%". */
function trial({ model, role }, aliases) {
  if (role === "champion") return null;
  const alias = aliases.find((row) => row.model === model && row.alias === role);
  return soft(`${role}, ${((alias?.share ?? 0) * 100).toLocaleString("en", { maximumFractionDigits: 1 })}%`);
}

function showEngines({ engines, aliases, at }) {
  const rows = engines.rows.map((engine) => ({
    key: engine.id,
    cells: [
      [
        { text: engine.version === null ? engine.model : `${engine.model}@${engine.version}`, look: "strong" },
        trial(engine, aliases),
      ],
      [stateOf(engine.ejected && engine.state === "ready" ? "ejected" : engine.state), reason(engine.error)],
      [engine.kind, engine.pid === null ? soft(engine.url ?? "") : soft(`pid ${engine.pid}`)],
      [engine.in_flight ?? "–"],
      [engine.context === null ? "–" : count(engine.context)],
      [age(engine.started_at, at)],
    ],
  }));
  sheets.engines.show(rows, engines.total, rows.length);
}

function showModels({ versions, aliases, engines, at }) {
  const served = new Set(engines.rows.filter((row) => row.state === "ready").map((row) => `${row.model}@${row.version}`));
  const known = (model) => aliases.filter((row) => row.model === model);
  const rows = [];
  for (const model of [...new Set(versions.rows.map((row) => row.model))].sort()) {
    rows.push({ key: model, look: "group", cells: [[{ text: model, look: "strong" }]] });
    const own = versions.rows.filter((row) => row.model === model).sort((a, b) => b.version - a.version);
    for (const row of own) {
      const ref = `${model}@${row.version}`;
      const names = known(model).filter((each) => each.version === row.version).map((each) => each.alias);
      rows.push({
        key: ref,
        cells: [
          [{ text: `@${row.version}`, look: "strong" }, { text: row.digest.slice(0, 8), look: "soft mono", hint: row.digest }],
          [
            ...names.map((name) => ({ text: name, look: name === "champion" ? "tag best" : "tag" })),
            served.has(ref) ? { state: "serving", kind: "good" } : null,
          ],
          [row.recipe || "–"],
          [parentOf(row, model)],
          [row.format, soft(row.task)],
          [bytes(row.size_bytes)],
          [row.parameters === null ? "–" : count(row.parameters)],
          [age(row.created_at, at)],
          [promotion(row, ref, names)],
        ],
      });
    }
  }
  sheets.models.show(rows, versions.total, versions.rows.length);
}

/** The way to make a version the champion: to the one before, that is the way back. */
function promotion({ model, servable }, ref, names) {
  if (!servable || names.includes("champion")) return null;
  const back = names.includes("previous");
  return {
    act: "promote", subject: ref, name: ref, does: back ? "Roll back" : "Promote", risky: back,
    title: back ? `Roll ${model} back to ${ref}?` : `Make ${ref} the champion?`,
    text: "Its engine starts beside the one that serves now, and takes the requests once it has answered a few itself. "
      + "The present champion becomes the one to roll back to.",
  };
}

function parentOf({ parent, parent_digest: digest }, model) {
  if (!digest) return "none";
  const name = parent?.startsWith(`${model}@`) ? parent.slice(model.length) : parent;
  return { text: name ?? `${digest.slice(0, 8)}, not here`, hint: digest };
}

function showJobs({ jobs, at }) {
  const rows = jobs.rows.map((job) => {
    const done = job.state === "running" && typeof job.progress.done === "number" ? job.progress.done : null;
    return {
      key: job.id,
      cells: [
        [{ text: job.id, look: "mono id", hint: job.id }],
        [{ text: job.model, look: "strong" }, job.domain ? soft(job.domain) : null],
        [
          stateOf(job.pause_requested_at !== null && job.state === "running" ? "pausing" : job.state),
          done === null ? null : soft(`${Math.round(done * 100)}% ${job.progress.step ?? ""}`),
          done === null ? null : { done, of: 1, label: `Progress of ${job.id}` },
        ],
        [verdict(job), reason(job.error)],
        [age(job.created_at, at)],
        jobActs(job),
      ],
    };
  });
  sheets.jobs.show(rows, jobs.total);
}

/** What may be done to a job as it is. */
function jobActs({ id, model, state, pause_requested_at: asked }) {
  if (!["queued", "running", "paused"].includes(state)) return [];
  const act = (does, text, risky = false) => ({
    act: does.toLowerCase(), subject: id, name: id, does, risky, title: `${does} the training of ${model}?`, text: `${id} ${text}`,
  });
  const waiting = asked === null
    ? act("Pause", "saves its work and frees the worker until it is resumed.")
    : act("Resume", "goes on where it was, once a worker is free.");
  return [waiting, act("Cancel", "ends for good. What it has learnt so far is lost.", true)];
}

/** How a job ended and what its gate measured, in nats per token: from the champion, and from the best there was. */
function verdict({ report, result_model: result, attempt }) {
  const measured = report
    ? [["gain", report.gain], ["forgetting", report.forgetting], ["from the best", report.forgetting_from_best]]
        .filter(([, value]) => typeof value === "number")
        .map(([name, value]) => `${name} ${value.toFixed(3)}`)
    : [];
  if (report?.unmeasured?.length) measured.push(`not measured: ${report.unmeasured.join(", ")}`);
  const outcome = [report?.outcome, result].filter(Boolean).join(" ");
  return [outcome, ...measured, ...(attempt > 1 ? [`attempt ${attempt}`] : [])].filter(Boolean).join(", ");
}

function showBatches({ batches, at }) {
  const rows = batches.rows.map((batch) => {
    const done = batch.completed + batch.failed;
    const failed = batch.failed ? `, ${count(batch.failed)} failed` : "";
    return {
      key: batch.id,
      cells: [
        [{ text: batch.id, look: "mono id", hint: batch.id }],
        [batch.endpoint],
        [stateOf(batch.state)],
        [`${count(done)} of ${count(batch.total)}${failed}`, { done, of: batch.total, label: `Progress of ${batch.id}` }],
        [age(batch.created_at, at)],
      ],
    };
  });
  sheets.batches.show(rows, batches.total);
}

function showKeys({ keys, at, you }) {
  const rows = keys.rows.map((key) => {
    const limits = [
      [key.requests_per_minute, "requests/min"], [key.tokens_per_minute, "tokens/min"], [key.tokens_per_month, "tokens/month"],
      [key.requests_in_flight, "at once"],
    ].filter(([value]) => value !== null).map(([value, unit]) => `${count(value)} ${unit}`);
    const until = key.state === "active" && key.expires_at ? soft(`for ${span(key.expires_at - at)}`) : null;
    return {
      key: key.id,
      look: key.state === "active" ? "" : "over",
      cells: [
        [{ text: key.name, look: "strong", hint: key.id }, key.admin ? { text: "admin", look: "tag" } : key.train ? { text: "train", look: "tag" } : null, key.id === you ? soft("this one") : null],
        [{ text: `${key.prefix}…`, look: "mono" }],
        [key.models === null ? "all" : key.models.join(", ")],
        [limits.join(", ") || "none"],
        [stateOf(key.state), until],
        [age(key.created_at, at)],
        [key.state === "active" && key.id !== you ? revoking(key) : null],
      ],
    };
  });
  sheets.keys.show(rows, keys.total);
}

function revoking({ id, name, prefix }) {
  return {
    act: "revoke", subject: id, name, does: "Revoke", risky: true,
    title: `Revoke the key of ${name}?`, text: `Whoever uses ${prefix}… is turned away within seconds, for good.`,
  };
}

function showActs({ acts, keys, at }) {
  const names = new Map(keys.rows.map((key) => [key.id, key.name]));
  const rows = acts.map((act) => ({
    key: act.id,
    cells: [
      [{ text: act.act, look: "strong" }],
      [names.get(act.subject) ?? act.subject],
      [names.has(act.actor) ? { text: names.get(act.actor), hint: act.actor } : act.actor],
      [age(act.at, at)],
    ],
  }));
  sheets.acts.show(rows);
}

// ---------------------------------------------------------------------------------------------------- the server

/** sessionStorage: forgotten with the tab, and absent where the browser forbids it. The playground's name for the key. */
const KEY = "everlearn.apiKey";
let secret = "";
try {
  secret = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Then the key lives as long as the page.
}

function keep(value) {
  secret = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // As above.
  }
}

/** {status, body}: what was asked for, or in words why not; status 0 where the server was not reached. */
async function ask(path, body) {
  const headers = secret ? { authorization: `Bearer ${secret}` } : {};
  if (body) headers["content-type"] = "application/json";
  const options = { headers, method: body ? "POST" : "GET", body: body && JSON.stringify(body) };
  const away = { status: 0, body: "The server cannot be reached." };
  try {
    const response = await fetch(new URL(`console/${path}`, location.href), { ...options, signal: AbortSignal.timeout(PATIENCE_MS) });
    const answer = await response.json().catch(() => null);
    if (response.ok) return answer ? { status: response.status, body: answer } : away;
    return { status: response.status, body: answer?.error?.message ?? `The server answered with status ${response.status}.` };
  } catch {
    return away;
  }
}

async function poll() {
  clearTimeout(timer);
  const used = secret;
  const { status, body } = await ask("state");
  if (used !== secret) return;
  if (status === 401 || status === 403) return showDoor(used || status === 403 ? body : "");
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
  if (status === 200) show(body);
  else showAway(body);
}

function show(state) {
  if (history.length && counted(state) < counted(history.at(-1))) history = [];
  history = [...history, state].slice(-KEPT);
  tell(page.pulse, state.draining ? "Shutting down" : "Live");
  page.pulse.className = "pulse live";
  page.away.hidden = page.door.hidden = true;
  page.forget.hidden = !secret;
  page.board.hidden = false;
  page.board.classList.remove("stale");
  showTraffic();
  showEngines(state);
  showModels(state);
  showJobs(state);
  showBatches(state);
  showKeys(state);
  showActs(state);
}

function showAway(why) {
  const last = history.length ? ` What you see is from ${new Date(history.at(-1).at * 1000).toLocaleTimeString()}.` : "";
  tell(page.away, `${why}${last} Trying again every ${POLL_MS / 1000} seconds.`);
  tell(page.pulse, "Not connected");
  page.pulse.className = "pulse away";
  page.away.hidden = false;
  page.board.classList.add("stale");
}

function showDoor(why) {
  tell(page.pulse, "Locked");
  page.pulse.className = "pulse";
  tell(page.refusal, why);
  page.away.hidden = page.board.hidden = page.forget.hidden = true;
  page.ask.close();
  history = [];
  if (!page.door.hidden) return;
  page.door.hidden = false;
  page.apiKey.value = "";
  page.apiKey.focus();
}

/** The act that the open question is about. */
let asked = null;

function question(act) {
  asked = act;
  page.askTitle.textContent = act.title;
  page.askText.textContent = act.text;
  page.askRefusal.textContent = "";
  page.yes.textContent = act.does;
  page.yes.className = act.risky ? "solid risky" : "solid";
  page.yes.disabled = false;
  page.ask.showModal();
  page.no.focus();
}

async function act(event) {
  event.preventDefault();
  page.yes.disabled = true;
  const { status, body } = await ask("acts", { act: asked.act, subject: asked.subject });
  if (status === 200) page.ask.close();
  else page.askRefusal.textContent = body;
  page.yes.disabled = false;
  poll();
}

/** Screen readers hear what is new, and not every two seconds the same. */
function tell(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

page.door.addEventListener("submit", (event) => {
  event.preventDefault();
  keep(page.apiKey.value.trim());
  poll();
});
page.forget.addEventListener("click", () => {
  keep("");
  poll();
});
page.no.addEventListener("click", () => page.ask.close());
page.answer.addEventListener("submit", act);
page.of.addEventListener("change", showTraffic);
document.addEventListener("act", ({ detail }) => question(detail));
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && page.door.hidden) poll();
});

poll();
