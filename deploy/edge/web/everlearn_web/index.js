// everlearn-web: a model of your own in the browser, behind OpenAI's API. Nothing leaves the device.
//
//   import { EverlearnWeb } from "./everlearn_web/index.js";
//   const client = await EverlearnWeb.load("./model/", { onProgress: ({ phase, loaded, total }) => … });
//   const stream = await client.chat.completions.create({ messages, stream: true, temperature: 0 });
//   for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
//   const { data } = await client.embeddings.create({ input: ["a text"] });
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
   * so many, where the page is crossOriginIsolated; one thread elsewhere.
   * Throws EverlearnError: "corrupt", "unavailable", "storage_full", "mismatch", "unsupported", "runtime".
   */
  static async load(url, { onProgress = () => {}, device = "auto", threads = 4 } = {}) {
    if (!DEVICES.includes(device)) throw new EverlearnError("invalid_input", `device is ${device}; it must be one of ${DEVICES.join(", ")}`);
    const folder = new URL(url.endsWith("/") ? url : `${url}/`, document.baseURI).href;
    const remembered = `everlearn-web ${folder}`; // which model this URL is, for when the server cannot be reached
    navigator.storage?.persist?.().catch(() => {});
    let calls = new WorkerCalls();
    try {
      const version = await calls.call("fetch", { url: folder, name: localStorage.getItem(remembered) }, onProgress);
      localStorage.setItem(remembered, version.model);
      const tries = device === "auto" ? await devices() : [{ device, why: "it was asked for" }];
      for (const [index, { device: tried, why }] of tries.entries()) {
        try {
          const opened = await calls.call("open", { ...version, device: tried, threads }, onProgress);
          return new EverlearnWeb(calls, opened, { device: tried, threads: opened.threads, why, offline: version.offline });
        } catch (error) {
          if (index === tries.length - 1) throw error;
          calls.close(); // with all the memory that it took
          calls = new WorkerCalls();
          tries[index + 1].why = `WebGPU was not used: ${error.message}`;
        }
      }
    } catch (error) {
      calls.close();
      throw error;
    }
  }

  #calls;

  constructor(calls, opened, backend) {
    this.#calls = calls;
    this.model = opened.model;
    this.version = opened.version;
    this.task = opened.task;
    this.context = opened.graph.context;
    /** {device: "wasm" | "webgpu", threads, why, offline} */
    this.backend = Object.freeze(backend);
    this.chat = { completions: { create: (request, options) => this.#chat(request, options) } };
    this.embeddings = { create: (request, options) => calls.call("embeddings", request, undefined, options) };
  }

  /** Stops everything, and gives the model's memory back. */
  close() {
    this.#calls.close();
  }

  async #chat({ stream = false, stream_options, ...request }, { signal } = {}) {
    const head = { id: `chatcmpl-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: this.model };
    const events = this.#calls.stream("chat", request, { signal });
    if (stream) return chunks(events, { ...head, object: "chat.completion.chunk" }, stream_options?.include_usage);
    let content = "";
    for (;;) {
      const { done, value } = await events.next();
      if (!done) content += value;
      else return { ...head, object: "chat.completion", choices: [{ index: 0, message: { role: "assistant", content }, finish_reason: value.finish_reason }], usage: value.usage, timings: value.timings };
    }
  }
}

/** Where to try, in this order. */
async function devices() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) return [{ device: "webgpu", why: "its numbers agree with the author's" }, { device: "wasm", why: "" }];
  return [{ device: "wasm", why: navigator.gpu ? "WebGPU has no adapter here" : "this browser has no WebGPU" }];
}

async function* chunks(events, head, usage) {
  const choice = (delta, finish_reason = null) => ({ ...head, choices: [{ index: 0, delta, finish_reason }] });
  try {
    yield choice({ role: "assistant", content: "" });
    for (;;) {
      const { done, value } = await events.next();
      if (!done) {
        yield choice({ content: value });
        continue;
      }
      yield choice({}, value.finish_reason);
      if (usage) yield { ...head, choices: [], usage: value.usage, timings: value.timings };
      return;
    }
  } finally {
    await events.return();
  }
}
