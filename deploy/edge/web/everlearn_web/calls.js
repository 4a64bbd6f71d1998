// Calls of the worker: a promise or a stream for each, until it is closed or dies.

import { EverlearnError, unpacked } from "./errors.js";

export class WorkerCalls {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "everlearn" });
  #open = new Map(); // id -> {told, done, failed}
  #next = 1;
  #closed = null;

  constructor() {
    this.#worker.onmessage = ({ data: { id, event, result, error } }) => {
      const call = this.#open.get(id);
      if (!call) return;
      if (event !== undefined) return call.told(event);
      this.#open.delete(id);
      if (error) call.failed(unpacked(error));
      else call.done(result);
    };
    this.#worker.onerror = (event) => this.#end(new EverlearnError("runtime", `the model's worker died: ${event.message ?? "it could not be loaded, or ran out of memory"}`));
  }

  call(method, params, told = () => {}, { signal } = {}) {
    return new Promise((done, failed) => {
      if (this.#closed) return failed(this.#closed);
      const id = this.#next++;
      this.#open.set(id, { told, done, failed });
      const cancel = () => this.#open.has(id) && this.#worker.postMessage({ id, cancel: true });
      signal?.addEventListener("abort", cancel, { once: true });
      this.#worker.postMessage({ id, method, params });
      if (signal?.aborted) cancel();
    });
  }

  /** Yields the call's events, and returns its result. Leaving it early cancels the call. */
  async *stream(method, params, { signal } = {}) {
    const left = new AbortController();
    signal?.addEventListener("abort", () => left.abort(), { once: true });
    if (signal?.aborted) left.abort();
    const waiting = [];
    let wake = () => {};
    let ended = false;
    const call = this.call(method, params, (event) => (waiting.push(event), wake()), { signal: left.signal });
    call.catch(() => {}).finally(() => ((ended = true), wake()));
    try {
      for (;;) {
        while (waiting.length) yield waiting.shift();
        if (ended) return await call;
        await new Promise((resolve) => (wake = resolve));
      }
    } finally {
      left.abort();
    }
  }

  close() {
    this.#end(new EverlearnError("closed", "this client is closed; load another"));
  }

  #end(error) {
    this.#closed ??= error;
    this.#worker.terminate();
    for (const call of this.#open.values()) call.failed(error);
    this.#open.clear();
  }
}
