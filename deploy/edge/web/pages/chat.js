// A chat with the model beside this page.

import { start } from "./start.js";

const one = (id) => document.getElementById(id);
const [form, input, send, list] = ["form", "input", "send", "messages"].map(one);
const SETTINGS = ["temperature", "top_p", "seed", "max_tokens"];
let messages = [];
let running = null; // AbortController of the answer that is being written

const client = await start();
for (const element of [input, send, one("clear")]) element.disabled = false;
input.focus();

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else if (input.value.trim()) ask(input.value.trim());
});
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) form.requestSubmit();
});
input.addEventListener("input", fit);
one("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  list.replaceChildren(one("hint") ?? "");
  input.focus();
});

async function ask(text) {
  one("hint")?.remove();
  input.value = "";
  fit();
  const asked = messages;
  messages = [...messages, { role: "user", content: text }];
  const conversation = messages;
  add("user", text);
  const answer = add("assistant", "");
  const note = document.createElement("small");
  answer.after(note);
  running = new AbortController();
  send.textContent = "Stop";
  try {
    const { usage, timings, content, finish_reason } = await written(answer, conversation);
    conversation.push({ role: "assistant", content });
    note.textContent = `${usage.completion_tokens} tokens, ${timings.predicted_per_second.toFixed(1)} per second, first after ${(timings.prompt_ms / 1000).toFixed(1)} s${finish_reason === "length" ? " · cut at the longest answer" : ""}`;
  } catch (error) {
    if (messages === conversation) messages = asked;
    note.textContent = error.code === "cancelled" ? "stopped" : error.message;
    note.dataset.error = error.code ?? "runtime";
  } finally {
    running = null;
    send.textContent = "Send";
    answer.classList.remove("writing");
  }
}

async function written(answer, conversation) {
  answer.classList.add("writing");
  const request = { messages: conversation, stream: true, stream_options: { include_usage: true }, ...settings() };
  const stream = await client.chat.completions.create(request, { signal: running.signal });
  let content = "";
  let finish_reason = null;
  for await (const { choices, usage, timings } of stream) {
    if (usage) return { usage, timings, content, finish_reason };
    finish_reason = choices[0].finish_reason ?? finish_reason;
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    content += choices[0].delta.content ?? "";
    answer.textContent = content;
    if (follows) list.scrollTop = list.scrollHeight;
  }
  throw new Error("the answer broke off");
}

function settings() {
  const set = SETTINGS.filter((name) => one(name).value !== "");
  return Object.fromEntries(set.map((name) => [name, Number(one(name).value)]));
}

function add(role, text) {
  const message = document.createElement("article");
  message.className = role;
  message.setAttribute("aria-label", role === "user" ? "You" : "Model");
  message.textContent = text;
  list.append(message);
  list.scrollTop = list.scrollHeight;
  return message;
}

function fit() {
  input.rows = Math.min(8, Math.max(1, input.value.split("\n").length));
}
