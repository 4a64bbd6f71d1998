// A folder's files, from a server into storage: in pieces, going on where an earlier try ended.

import { busyMs, isBusy } from "./busy.js";
import { EverlearnError } from "./errors.js";
import { MAX_MANIFEST_BYTES } from "./manifest.js";

const PIECE_BYTES = 4 * 1024 * 1024;
const TRIES = 5;
const FIRST_PAUSE_MS = 500;
const MANIFEST_MS = 10_000;
const STALL_MS = 10_000;
const SLOWEST_BYTES_PER_MS = 2.048;
const PROGRESS_BYTES = 64 * 1024; // what a try must bring, so that it counts as one that got on

/** The bytes of edge.json on the server. Throws "unavailable" while it cannot be reached, and if it takes over 10 s. */
export async function fetchManifest(url) {
  const clock = new Clock();
  clock.allow(MANIFEST_MS);
  try {
    return await manifestFrom(await fetch(new URL("edge.json", url), { cache: "no-cache", signal: clock.signal }));
  } catch (error) {
    if (error.name === "EverlearnError") throw error;
    throw new EverlearnError("unavailable", `${url} cannot be reached (${error.message}), and this browser keeps no model of it: connect once`);
  } finally {
    clock.end();
  }
}

async function manifestFrom(response) {
  if (response.status >= 500 || isBusy(response)) throw new EverlearnError("unavailable", `${response.url} answers ${response.status}`);
  if (!response.ok) throw new EverlearnError("not_found", `${response.url} answers ${response.status}: is there a folder of \`everlearn deploy edge\`?`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes.length > MAX_MANIFEST_BYTES) throw new EverlearnError("corrupt", "edge.json is larger than 4 MiB");
  return bytes;
}

/**
 * Brings every file of the manifest that `folder` lacks. `found(file)` may give a Blob of a file's bytes that is in this
 * browser already; it is checked like the rest. `onBytes(done, total)` counts all of them.
 * Throws "corrupt" for a file that is not what the manifest says, "unavailable" when the server stays away.
 */
export async function downloadFiles(url, manifest, folder, { onBytes, found, signal }) {
  const total = manifest.files.reduce((sum, file) => sum + file.bytes, 0);
  let before = 0;
  await checkRoom(manifest, folder, total);
  for (const file of manifest.files) {
    if ((await folder.file(file.path))?.size !== file.bytes) {
      const told = (here) => onBytes(before + here, total);
      const here = await found(file);
      const rest = (kept) => (here ? streamed(here.slice(kept)) : pieces(new URL(file.path, url), file.bytes, kept, told, signal));
      await folder.write(file.path, file, rest, { resume: true });
    }
    before += file.bytes;
    onBytes(before, total);
  }
}

async function checkRoom(manifest, folder, total) {
  let have = 0;
  for (const { path } of manifest.files) have += (await folder.file(path))?.size ?? (await folder.begun(path));
  const { quota = Infinity, usage = 0 } = await navigator.storage.estimate();
  const missing = total - have;
  if (missing > quota - usage) {
    const room = Math.floor((quota - usage) / 1e6);
    throw new EverlearnError("storage_full", `${manifest.model} needs ${Math.ceil(missing / 1e6)} MB more, and the browser gives this page ${room} MB`);
  }
}

/** The bytes of a file from `start` on, piece by piece; what breaks off, stalls or is slower than a modem is asked for again. */
export async function* pieces(url, bytes, start, told, signal) {
  let at = start;
  let failed = 0;
  while (at < bytes) {
    const end = Math.min(at + PIECE_BYTES, bytes);
    const before = at;
    const clock = new Clock(signal);
    try {
      for await (const part of parts(url, at, end, clock)) {
        if (at >= bytes) break;
        yield part;
        at += part.length;
        told(at);
      }
    } catch (error) {
      if (error.name === "EverlearnError" || error.name === "AbortError") throw error;
      failed = at - before >= PROGRESS_BYTES ? 1 : failed + 1;
      if (failed >= TRIES) throw new EverlearnError("unavailable", `${url} broke off at byte ${at} (${error.message}); loading again goes on from there`);
      await new Promise((resolve) => setTimeout(resolve, error.busy ? busyMs(error.busy, failed) : FIRST_PAUSE_MS * 2 ** failed));
      continue;
    } finally {
      clock.end();
    }
    if (at === before) throw new EverlearnError("corrupt", `${url} ends at byte ${at} of ${bytes}`);
  }
}

/** What comes of a piece: each part within 10 s, and all of them at 2 KiB per second at least. */
async function* parts(url, at, end, clock) {
  const started = performance.now();
  let came = 0;
  const allow = () => clock.allow(Math.min(STALL_MS, started + STALL_MS + came / SLOWEST_BYTES_PER_MS - performance.now()));
  allow();
  let { reader, before } = await opened(url, at, end, clock.signal);
  for (;;) {
    allow();
    const part = await reader.read();
    clock.stop(); // whoever keeps the part may take its time
    if (part.done) return;
    came += part.value.length;
    if (part.value.length > before) yield part.value.subarray(before);
    before = Math.max(before - part.value.length, 0);
  }
}

/** Ends a request that takes longer than it is allowed, or that `signal` ends. */
class Clock {
  #late = new AbortController();
  #timer;

  constructor(signal) {
    this.signal = signal ? AbortSignal.any([signal, this.#late.signal]) : this.#late.signal;
  }

  allow(ms) {
    this.stop();
    this.#timer = setTimeout(() => this.#late.abort(new DOMException("it does not answer", "TimeoutError")), Math.max(ms, 0));
  }

  stop() {
    clearTimeout(this.#timer);
  }

  /** Nothing more is wanted of the request. */
  end() {
    this.stop();
    this.#late.abort();
  }
}

async function* streamed(blob) {
  const reader = blob.stream().getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

/** A reader of the bytes from `at` to `end`; of a server that knows no ranges, of all, and how many come `before` them. */
async function opened(url, at, end, signal) {
  const response = await fetch(url, { headers: { Range: `bytes=${at}-${end - 1}` }, cache: "no-store", signal });
  if (isBusy(response)) throw Object.assign(new Error(`status ${response.status}: it is busy`), { busy: response });
  if (response.status >= 500) throw new Error(`status ${response.status}`);
  if (!response.ok) throw new EverlearnError("not_found", `${url} answers ${response.status}`);
  return { reader: response.body.getReader(), before: response.status === 206 ? 0 : at };
}
