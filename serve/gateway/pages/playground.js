// The playground: a chat page over the same /v1 API that every other client uses.

import { TASKS, element } from "./playground_tasks.js";

const $ = (id) => document.getElementById(id);
const page = Object.fromEntries(
  [
    "model", "new-chat", "toggle-settings", "scroller", "welcome", "welcome-text", "ideas", "log", "composer", "prompt",
    "send", "stop", "status", "settings", "close-settings", "system", "temperature", "temperature-value", "max-tokens",
    "api-key", "base-url", "fields",
  ].map((id) => [id.replace(/-./g, (dash) => dash[1].toUpperCase()), $(id)]),
);
const api = new URL("v1/", location.href);

/** The turns of this conversation: {role, content}. An answer is added when it ends. */
let turns = [];
/** How models that do not chat are asked, by their names. */
let tasks = {};
/** The AbortController of the answer being written, or null. */
let running = null;

// ---------------------------------------------------------------------------------------------------- the API

/** An error told to the person: a title, a detail, and the HTTP status if there was one. */
class Problem extends Error {
  constructor(title, detail = "", status = 0) {
    super(title);
    this.detail = detail;
    this.status = status;
  }
}

const TITLES = {
  400: "The server did not accept this request",
  401: "This server asks for an API key",
  403: "This API key may not use this model",
  404: "This model is not being served",
  413: "The message is too long",
  429: "Too many requests just now",
  503: "The model is not ready",
  504: "The model took too long to answer",
};

async function request(path, { body, signal } = {}) {
  const key = page.apiKey.value.trim();
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, api), {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached", "Is it still running? Your message is kept.");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const title = TITLES[response.status] ?? `The server answered with status ${response.status}`;
  throw new Problem(title, answer?.error?.message ?? response.statusText, response.status);
}

/** The JSON events of a server-sent event stream. Throws a Problem when the stream reports an error or breaks off. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Problem("The answer broke off", "The connection was closed before the model had finished.");
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Problem("The answer broke off", event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem("The answer broke off", "The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function loadModels() {
  const wanted = page.model.value || recall("model");
  try {
    const { data } = await (await request("models")).json();
    const chats = data.filter((model) => model.task === "generate" || model.task in TASKS);
    page.model.replaceChildren(...chats.map((model) => new Option(model.id, model.id)));
    tasks = Object.fromEntries(chats.map((model) => [model.id, TASKS[model.task]]));
    if (chats.some((model) => model.id === wanted)) page.model.value = wanted;
    page.model.disabled = chats.length === 0;
    if (chats.length === 0) page.model.append(new Option("No model is served", ""));
    page.welcomeText.textContent = chats.length
      ? "This model runs on your own machine. Nothing you type leaves it."
      : "No chat model is being served. Start one with: everlearn serve smollm2";
  } catch (problem) {
    page.model.replaceChildren(new Option("No models", ""));
    page.model.disabled = true;
    page.welcomeText.textContent = `${problem.message}. ${problem.detail ?? ""}`;
    if (problem.status === 401) openSettings(page.apiKey);
  }
  refreshSend();
}

// ---------------------------------------------------------------------------------------------------- text on the page

function button(label, action) {
  const node = element("button", "mini", label);
  node.type = "button";
  node.addEventListener("click", () => action(node));
  return node;
}

async function copy(text, from) {
  const label = from.textContent;
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Not allowed";
  }
  setTimeout(() => (from.textContent = label), 1500);
}

/** Split model output into blocks: {kind: "code" | "list" | "heading" | "text", …}. */
function blocks(text) {
  const found = [];
  let code = null;
  let open = null;
  for (const line of text.split("\n")) {
    const fence = line.match(/^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/);
    if (code) {
      if (fence && !fence[2]) code = null;
      else code.lines.push(line);
      continue;
    }
    const item = line.match(/^\s*(?:[-*+•]|(\d{1,9})[.)])\s+(.*)$/);
    const heading = line.match(/^#{1,6}\s+(.*)$/);
    if (fence) {
      found.push((code = { kind: "code", language: fence[2], lines: [] }));
      open = null;
    } else if (heading) {
      found.push({ kind: "heading", lines: [heading[1]] });
      open = null;
    } else if (item) {
      const ordered = item[1] !== undefined;
      if (open?.kind !== "list" || open.ordered !== ordered) {
        found.push((open = { kind: "list", ordered, start: Number(item[1] ?? 1), lines: [] }));
      }
      open.lines.push(item[2]);
    } else if (!line.trim()) {
      if (open?.kind === "text") open = null;
    } else if (open?.kind === "list" && /^\s{2,}/.test(line)) {
      open.lines[open.lines.length - 1] += `\n${line.trim()}`;
    } else {
      if (open?.kind !== "text") found.push((open = { kind: "text", lines: [] }));
      open.lines.push(line);
    }
  }
  return found;
}

/** `code` and **bold** within a line; everything else stays the text it is. */
function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part) => {
    if (part.length > 2 && part.startsWith("`")) return element("code", "", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**")) return element("strong", "", part.slice(2, -2));
    return part;
  });
}

function blockElement(block) {
  const text = block.lines.join("\n");
  if (block.kind === "code") {
    const code = element("code", "", text);
    const head = element("div", "block-head", element("span", "", block.language || "code"));
    head.append(button("Copy", (from) => copy(code.textContent, from)));
    const pre = element("pre", "", code);
    pre.tabIndex = 0;
    return element("div", "block", head, pre);
  }
  if (block.kind === "list") {
    const list = element(block.ordered ? "ol" : "ul", "", ...block.lines.map((line) => element("li", "", ...inline(line))));
    if (block.ordered) list.start = block.start;
    return list;
  }
  return element(block.kind === "heading" ? "h3" : "p", "", ...inline(text));
}

/** Show `text` in `target`, replacing only the blocks that changed since the last call. */
function render(target, text) {
  const fresh = blocks(text);
  fresh.forEach((block, index) => {
    const now = JSON.stringify(block);
    const old = target.children[index];
    if (old?.source === now) return;
    const node = blockElement(block);
    node.source = now;
    if (old) old.replaceWith(node);
    else target.append(node);
  });
  while (target.children.length > fresh.length) target.lastChild.remove();
}

// ---------------------------------------------------------------------------------------------------- one answer

/** An answer on the page, and what is measured while it arrives. */
class Answer {
  constructor(model) {
    this.model = model;
    this.text = "";
    this.tokens = 0;
    this.asked = performance.now();
    this.first = this.last = null;
    this.body = element("div", "text");
    this.meta = element("div", "meta");
    this.node = element("article", "answer working", this.body, this.meta);
    this.node.setAttribute("aria-label", `Answer of ${model}`);
  }

  add(delta) {
    this.last = performance.now();
    this.first ??= this.last;
    this.text += delta;
    this.tokens += 1;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const follow = isAtEnd();
    if (this.nodes) this.body.replaceChildren(...this.nodes);
    else render(this.body, this.text);
    this.meta.replaceChildren(...this.figures());
    if (follow) scrollToEnd();
  }

  figures() {
    if (this.first === null) return [];
    const parts = [];
    const decode_s = (this.last - this.first) / 1000;
    if (this.tokens > 1 && decode_s > 0) {
      const speed = (this.tokens - 1) / decode_s;
      parts.push(element("span", "speed", element("b", "", speed.toFixed(speed < 10 ? 1 : 0)), " tok/s"));
    }
    const wait_ms = this.first - this.asked;
    const wait = wait_ms < 1000 ? `${Math.round(wait_ms)} ms` : `${(wait_ms / 1000).toFixed(1)} s`;
    parts.push(element("span", "wait", `first token in ${wait}`));
    parts.push(element("span", "count", this.tokens === 1 ? "1 token" : `${this.tokens} tokens`));
    return parts;
  }

  /** Close the answer: exact token count from `usage`, a note on why it ended, and the buttons. */
  end({ usage, note } = {}) {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = null;
    if (usage) this.tokens = usage.completion_tokens;
    this.draw();
    this.node.classList.remove("working");
    const follow = isAtEnd();
    this.meta.append(element("span", "", this.model));
    if (note) this.meta.append(element("span", "note", note));
    const tools = element("span", "tools");
    if (this.text) tools.append(button("Copy", (from) => copy(this.text, from)));
    tools.append(button("Try again", () => tryAgain(this.node)));
    this.meta.prepend(tools);
    if (follow) scrollToEnd();
  }

  fail(problem) {
    const box = element("div", "problem", element("strong", "", problem.message), problem.detail ?? "");
    box.setAttribute("role", "alert");
    this.body.after(box);
  }
}

const ENDS = { length: "cut off at the maximum of tokens", content_filter: "withheld by a filter" };

async function answer() {
  running = new AbortController();
  const signal = running.signal;
  const model = page.model.value;
  const shown = new Answer(model);
  page.log.append(shown.node);
  page.log.setAttribute("aria-busy", "true");
  scrollToEnd();
  refreshSend();
  say(`${model} is answering`);

  const system = page.system.value.trim();
  const body = {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    temperature: page.temperature.valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (page.maxTokens.valueAsNumber >= 1) body.max_completion_tokens = Math.floor(page.maxTokens.valueAsNumber);

  let usage = null;
  let note = "";
  try {
    const task = tasks[model];
    const asked = turns.at(-1).content;
    const sent = task ? task.body(model, asked, body.max_completion_tokens) : body;
    const response = await request(task ? task.path(model) : "chat/completions", { body: sent, signal });
    shown.model = response.headers.get("x-everlearn-version") ?? model;
    if (task) Object.assign(shown, task.show(await response.json(), asked));
    else for await (const event of events(response)) {
      if (event.usage) usage = event.usage;
      const choice = event.choices?.[0];
      if (choice?.delta?.content) shown.add(choice.delta.content);
      if (choice?.finish_reason) note = ENDS[choice.finish_reason] ?? "";
    }
    say("Answer complete");
  } catch (error) {
    if (error.name === "AbortError") {
      note = "stopped";
      say("Stopped");
    } else {
      shown.fail(error instanceof Problem ? error : new Problem("The page could not show this answer", error.message));
      say("");
      if (error.status === 401) openSettings(page.apiKey);
    }
  } finally {
    if (shown.text && shown.node.isConnected) turns.push({ role: "assistant", content: shown.text });
    shown.end({ usage, note });
    if (running?.signal === signal) running = null;
    page.log.setAttribute("aria-busy", "false");
    refreshSend();
  }
}

function ask(text) {
  turns.push({ role: "user", content: text });
  page.welcome.hidden = true;
  const bubble = element("div", "user", text);
  bubble.setAttribute("aria-label", `You: ${text}`);
  page.log.append(bubble);
  return answer();
}

/** Drop this answer and everything after it, then ask for another. */
function tryAgain(node) {
  if (running) return;
  let questions = 0;
  for (const child of [...page.log.children]) {
    if (child === node) break;
    if (child.classList.contains("user")) questions += 1;
  }
  while (page.log.lastChild !== node) page.log.lastChild.remove();
  node.remove();
  let kept = 0;
  turns = turns.filter((turn) => (turn.role === "user" ? (kept += 1) <= questions : kept < questions));
  page.prompt.focus();
  answer();
}

function newChat() {
  running?.abort();
  running = null;
  turns = [];
  page.log.replaceChildren();
  page.welcome.hidden = false;
  page.prompt.value = "";
  fitPrompt();
  refreshSend();
  say("New chat");
  page.prompt.focus();
}

// ---------------------------------------------------------------------------------------------------- the page

function say(text) {
  page.status.textContent = text;
}

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = page.scroller;
  return scrollHeight - scrollTop - clientHeight < 80;
}

function scrollToEnd() {
  page.scroller.scrollTop = page.scroller.scrollHeight;
}

function fitPrompt() {
  page.prompt.style.height = "auto";
  page.prompt.style.height = `${page.prompt.scrollHeight}px`;
}

function refreshSend() {
  page.stop.hidden = !running;
  page.send.hidden = Boolean(running);
  page.send.disabled = !page.prompt.value.trim() || !page.model.value;
  page.ideas.hidden = Boolean(tasks[page.model.value]);
  page.prompt.placeholder = tasks[page.model.value]?.hint ?? "Write a message";
  for (const idea of page.ideas.querySelectorAll("button")) idea.disabled = !page.model.value;
}

function openSettings(focus = page.settings) {
  page.settings.hidden = false;
  page.toggleSettings.setAttribute("aria-expanded", "true");
  focus.focus();
}

function closeSettings() {
  page.settings.hidden = true;
  page.toggleSettings.setAttribute("aria-expanded", "false");
  page.toggleSettings.focus();
}

function stop() {
  running?.abort();
  page.prompt.focus();
}

/** sessionStorage: forgotten with the tab, and absent where the browser forbids it. */
function recall(name) {
  try {
    return sessionStorage.getItem(`everlearn.${name}`);
  } catch {
    return null;
  }
}

function remember(name, value) {
  try {
    sessionStorage.setItem(`everlearn.${name}`, value);
  } catch {
    // The value lives on in its field.
  }
}

function keepFields() {
  for (const name of ["system", "temperature", "maxTokens", "apiKey"]) {
    page[name].value = recall(name) ?? page[name].value;
    page[name].addEventListener("input", () => remember(name, page[name].value));
  }
  const showTemperature = () => (page.temperatureValue.textContent = page.temperature.valueAsNumber.toFixed(1));
  page.temperature.addEventListener("input", showTemperature);
  showTemperature();
}

page.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = page.prompt.value.trim();
  if (!text || running || !page.model.value) return;
  page.prompt.value = "";
  fitPrompt();
  ask(text);
});

page.prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  page.composer.requestSubmit();
});

page.prompt.addEventListener("input", () => {
  fitPrompt();
  refreshSend();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running) stop();
  else if (!page.settings.hidden) closeSettings();
});

page.ideas.addEventListener("click", (event) => {
  const idea = event.target.closest("button");
  if (!idea || running) return;
  page.prompt.focus();
  ask(idea.textContent);
});

page.stop.addEventListener("click", stop);
page.newChat.addEventListener("click", newChat);
page.toggleSettings.addEventListener("click", () => (page.settings.hidden ? openSettings() : closeSettings()));
page.closeSettings.addEventListener("click", closeSettings);
page.fields.addEventListener("submit", (event) => event.preventDefault());
page.apiKey.addEventListener("change", loadModels);
page.model.addEventListener("change", () => {
  remember("model", page.model.value);
  refreshSend();
});

page.baseUrl.textContent = api.href.replace(/\/$/, "");
keepFields();
loadModels();
