// The playground: a chat page over the same /v1 API that every other client uses.

import { Answer, scrollToEnd } from "./playground_answer.js";
import { Problem, api, events, request } from "./playground_api.js";
import { ImagePicker } from "./playground_images.js";
import { TASKS } from "./playground_tasks.js";
import { element } from "./playground_text.js";

const $ = (id) => document.getElementById(id);
const page = Object.fromEntries(
  [
    "model", "new-chat", "toggle-settings", "scroller", "welcome", "welcome-text", "ideas", "log", "composer", "prompt",
    "send", "stop", "status", "settings", "close-settings", "system", "temperature", "temperature-value", "max-tokens",
    "api-key", "base-url", "fields",
  ].map((id) => [id.replace(/-./g, (dash) => dash[1].toUpperCase()), $(id)]),
);

/** The turns of this conversation: {role, content}, and the image where one was sent. An answer is added when it ends. */
let turns = [];
/** How models that do not chat are asked, by their names. */
let tasks = {};
/** The AbortController of the answer being written, or null. */
let running = null;
const picker = new ImagePicker(() => {
  refreshSend();
  page.prompt.focus();
});

// ---------------------------------------------------------------------------------------------------- the API

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

// ---------------------------------------------------------------------------------------------------- one answer

const ENDS = { length: "cut off at the maximum of tokens", content_filter: "withheld by a filter" };

async function answer() {
  running = new AbortController();
  const signal = running.signal;
  const model = page.model.value;
  const shown = new Answer(model, tryAgain);
  page.log.append(shown.node);
  page.log.setAttribute("aria-busy", "true");
  scrollToEnd();
  refreshSend();
  say(`${model} is answering`);

  const system = page.system.value.trim();
  const body = {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns.map(({ role, content }) => ({ role, content }))],
    temperature: page.temperature.valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (page.maxTokens.valueAsNumber >= 1) body.max_completion_tokens = Math.floor(page.maxTokens.valueAsNumber);

  let usage = null;
  let note = "";
  try {
    const task = tasks[model];
    const { content: asked, image } = turns.at(-1);
    if (task?.takesImage && !image) throw new Problem("This model compares captions with an image", "Choose one first.");
    const sent = task ? task.body(model, asked, { limit: body.max_completion_tokens, image }) : body;
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
  const image = tasks[page.model.value]?.takesImage ? picker.url : null;
  turns.push({ role: "user", content: text, image });
  page.welcome.hidden = true;
  const bubble = element("div", "user", ...(image ? [picture(image)] : []), text);
  bubble.setAttribute("aria-label", `You: ${text}`);
  page.log.append(bubble);
  return answer();
}

function picture(url) {
  const node = element("img");
  node.src = url;
  node.alt = "The image";
  return node;
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

function fitPrompt() {
  page.prompt.style.height = "auto";
  page.prompt.style.height = `${page.prompt.scrollHeight}px`;
}

function refreshSend() {
  page.stop.hidden = !running;
  page.send.hidden = Boolean(running);
  const task = tasks[page.model.value];
  picker.field.hidden = !task?.takesImage;
  page.send.disabled = !page.prompt.value.trim() || !page.model.value || Boolean(task?.takesImage && !picker.url);
  page.ideas.hidden = Boolean(task);
  page.prompt.placeholder = task?.hint ?? "Write a message";
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
  if (tasks[page.model.value]?.takesImage) {
    if (!picker.url) return picker.say("Choose an image first.");
  } else page.prompt.value = "";
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
