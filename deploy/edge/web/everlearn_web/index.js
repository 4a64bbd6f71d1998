// everlearn-web: a model of your own in the browser, behind OpenAI's API. Nothing leaves the device.
//
//   import { EverlearnWeb } from "./everlearn_web/index.js";
//   const client = await EverlearnWeb.load("./model/", { onProgress: ({ phase, loaded, total }) => … });
//   const stream = await client.chat.completions.create({ messages, stream: true, temperature: 0 });
//   for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
//   const { data } = await client.embeddings.create({ input: ["a text"] });
//   const { data } = await client.classify({ input: ["a text"] });
//   client.close();

import { EverlearnError } from "./errors.js";
import { WorkerCalls } from "./calls.js";

export { EverlearnError };

const DEVICES = ["auto", "wasm", "webgpu"];

export class EverlearnWeb {
  /**
   * Loads the folder at `url` (written by `everlearn deploy edge MODEL --target web`): downloaded once, then from this
   * browser. onProgress gets {phase: "download", loaded, total} in bytes, then "start" and "check". device "auto" takes
   * WebGPU where the browser has it and it computes the numbers that edge.json says, else WebAssembly. threads: at most
   * so many, where the page is crossOriginIsolated; one thread elsewhere. channel: {url, model, root}, to follow
   * `everlearn deploy channel` instead of a folder; root: the bytes of a root.json that this page trusts.
   * A version that cannot be had or does not work leaves the last good one in service; `notice` then says why.
   * Throws EverlearnError: "corrupt", "unavailable", "storage_full", "mismatch", "unsupported", "runtime".
   */
  static async load(url, { onProgress = () => {}, device = "auto", threads = 4, channel } = {}) {
    if (!DEVICES.includes(device)) throw new EverlearnError("invalid_input", `device is ${device}; it must be one of ${DEVICES.join(", ")}`);
    const folder = new URL(url.endsWith("/") ? url : `${url}/`, document.baseURI).href;
    const remembered = `everlearn-web ${folder}`; // which model this URL is, for when the server cannot be reached
    navigator.storage?.persist?.().catch(() => {});
    const loading = new Loading(device, threads, onProgress);
    try {
      const params = { url: folder, name: channel?.model ?? localStorage.getItem(remembered), channel };
      const found = await loading.calls.call("fetch", params, onProgress);
      localStorage.setItem(remembered, found.model);
      return await loading.open(found).catch((error) => loading.openLastGood(found, error));
    } catch (error) {
      loading.calls.close();
      throw error;
    }
  }

  #calls;

  constructor(calls, opened, backend, notice) {
    this.#calls = calls;
    this.model = opened.model;
    this.version = opened.version;
    this.task = opened.task;
    this.context = opened.graph.context;
    /** {device: "wasm" | "webgpu", threads, why, offline} */
    this.backend = Object.freeze(backend);
    /** Why a newer version does not serve, or null. */
    this.notice = notice ?? null;
    this.chat = { completions: { create: (request, options) => this.#chat(request, options) } };
    this.completions = { create: (request, options) => this.#completion(request, options) };
    this.embeddings = { create: (request, options) => calls.call("embeddings", request, undefined, options) };
  }

  // What encoders with a head answer; requests and answers as those of the server's routes.

  /** As /classify: {input} -> {data: [{index, label, probs, num_classes}], usage, …}. */
  classify(request, options) {
    return this.#predict("classify", request, options);
  }

  /** As /score: {text_1, text_2} -> {data: [{index, score}], usage, …}. */
  score(request, options) {
    return this.#predict("score", request, options);
  }

  /** As /rerank: {query, documents, top_n, return_documents} -> {results: [{index, document, relevance_score}], usage, …}. */
  rerank(request, options) {
    return this.#predict("rerank", request, options);
  }

  /** As Hugging Face's token classification: {inputs, parameters} -> [{entity_group, score, word, start, end}]. */
  tokenClassify(request, options) {
    return this.#predict("tokenClassify", request, options);
  }

  /** As Hugging Face's question answering: {inputs: {question, context}, parameters} -> {answer, score, start, end}. */
  answer(request, options) {
    return this.#predict("answer", request, options);
  }

  #predict(method, request, options) {
    return this.#calls.call("predict", { method, request }, undefined, options);
  }

  /** Of a model that follows a channel: the version before this one serves from the next load on, until there is a newer. */
  goBack() {
    return this.#calls.call("goBack", { model: this.model });
  }

  /** Stops everything, and gives the model's memory back. */
  close() {
    this.#calls.close();
  }

  async #completion({ stream = false, stream_options, ...request }, { signal } = {}) {
    const head = { id: `cmpl-${crypto.randomUUID()}`, object: "text_completion", created: Math.floor(Date.now() / 1000), model: this.model };
    const events = this.#calls.stream("completion", request, { signal });
    if (stream) return chunks(events, head, textOf, null, stream_options?.include_usage);
    let content = "";
    for (;;) {
      const { done, value } = await events.next();
      if (done) return { ...head, choices: [textOf({ content }, value.finish_reason)], ...rest(value) };
      content += value.content;
    }
  }

  async #chat({ stream = false, stream_options, ...request }, { signal } = {}) {
    const head = { id: `chatcmpl-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: this.model };
    const events = this.#calls.stream("chat", request, { signal });
    if (stream) {
      const choice = (delta, finish_reason = null) => ({ index: 0, delta, finish_reason });
      return chunks(events, { ...head, object: "chat.completion.chunk" }, choice, { role: "assistant", content: "" }, stream_options?.include_usage);
    }
    let content = "";
    const calls = [];
    for (;;) {
      const { done, value } = await events.next();
      if (done) return { ...head, object: "chat.completion", choices: [{ index: 0, message: messageOf(content, calls), finish_reason: value.finish_reason }], ...rest(value) };
      content += value.content ?? "";
      for (const { index, function: its, ...call } of value.tool_calls ?? []) {
        if (its.name !== undefined) calls.push({ ...call, function: its });
        else calls[index].function.arguments += its.arguments;
      }
    }
  }
}

const textOf = ({ content = "" }, finish_reason = null) => ({ index: 0, text: content, logprobs: null, finish_reason });
const messageOf = (content, calls) => (calls.length ? { role: "assistant", content: content || null, tool_calls: calls } : { role: "assistant", content });
const rest = ({ usage, timings, left_open }) => ({ usage, timings, ...(left_open && { left_open }) });

/** Opens versions in workers: a worker that failed is ended, with all the memory that it took. */
class Loading {
  constructor(device, threads, onProgress) {
    this.device = device;
    this.threads = threads;
    this.onProgress = onProgress;
    this.calls = new WorkerCalls();
  }

  async open({ model, version, offline, notice }) {
    const tries = await devices(this.device);
    for (const [index, { device, why }] of tries.entries()) {
      try {
        const opened = await this.calls.call("open", { model, version, device, threads: this.threads }, this.onProgress);
        return new EverlearnWeb(this.calls, opened, { device, threads: opened.threads, why, offline }, notice);
      } catch (error) {
        this.calls.close();
        this.calls = new WorkerCalls();
        if (index === tries.length - 1) throw error;
        tries[index + 1].why = `WebGPU was not used: ${error.message}`;
      }
    }
  }

  async openLastGood(found, error) {
    const version = await this.calls.call("refuse", { ...found, code: error.code });
    if (version === null) throw error;
    const what = error.code === "mismatch" ? "was refused" : "did not open, and is tried again by the next load";
    return this.open({ ...found, version, notice: `${found.version} ${what}: ${error.message}` });
  }
}

/** Where to try, in this order. */
async function devices(device) {
  if (device !== "auto") return [{ device, why: "it was asked for" }];
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) return [{ device: "webgpu", why: "its numbers agree with the author's" }, { device: "wasm", why: "" }];
  return [{ device: "wasm", why: navigator.gpu ? "WebGPU has no adapter here" : "this browser has no WebGPU" }];
}

/** choice(delta, finish_reason): one of a chunk's choices; first: the delta that opens the stream, or null. */
async function* chunks(events, head, choice, first, usage) {
  const chunk = (...said) => ({ ...head, choices: [choice(...said)] });
  try {
    if (first) yield chunk(first);
    for (;;) {
      const { done, value } = await events.next();
      if (!done) {
        yield chunk(value);
        continue;
      }
      yield chunk({}, value.finish_reason);
      if (usage) yield { ...head, choices: [], ...rest(value) };
      return;
    }
  } finally {
    await events.return();
  }
}
