// A folder's files, from a server into storage: in pieces, going on where an earlier try ended.

import { busyMs, isBusy } from "./busy.js";
import { EverlearnError } from "./errors.js";
import { MAX_MANIFEST_BYTES } from "./manifest.js";

const PIECE_BYTES = 4 * 1024 * 1024;
const TRIES = 5;
const FIRST_PAUSE_MS = 500;

/** The bytes of edge.json on the server. Throws "unavailable" while it cannot be reached. */
export async function fetchManifest(url) {
  const response = await fetch(new URL("edge.json", url), { cache: "no-cache" }).catch((error) => {
    throw new EverlearnError("unavailable", `${url} cannot be reached (${error.message}), and this browser keeps no model of it: connect once`);
  });
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

/** The bytes of a file from `start` on, piece by piece; what breaks off is asked for again. */
export async function* pieces(url, bytes, start, told, signal) {
  let at = start;
  let failed = 0;
  while (at < bytes) {
    const end = Math.min(at + PIECE_BYTES, bytes);
    const before = at;
    try {
      const reader = await opened(url, at, end, signal);
      for (let part = await reader.read(); !part.done && at < bytes; part = await reader.read()) {
        yield part.value;
        at += part.value.length;
        told(at);
      }
    } catch (error) {
      if (error.code || error.name === "AbortError") throw error;
      failed = at > before ? 1 : failed + 1;
      if (failed >= TRIES) throw new EverlearnError("unavailable", `${url} broke off at byte ${at} (${error.message}); loading again goes on from there`);
      await new Promise((resolve) => setTimeout(resolve, error.busy ? busyMs(error.busy, failed) : FIRST_PAUSE_MS * 2 ** failed));
      continue;
    }
    if (at === before) throw new EverlearnError("corrupt", `${url} ends at byte ${at} of ${bytes}`);
  }
}

async function* streamed(blob) {
  const reader = blob.stream().getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

/** A reader of the bytes from `at` to `end`; of a server that knows no ranges, from `at` on. */
async function opened(url, at, end, signal) {
  const response = await fetch(url, { headers: { Range: `bytes=${at}-${end - 1}` }, cache: "no-store", signal });
  if (isBusy(response)) throw Object.assign(new Error(`status ${response.status}: it is busy`), { busy: response });
  if (response.status >= 500) throw new Error(`status ${response.status}`);
  if (!response.ok) throw new EverlearnError("not_found", `${url} answers ${response.status}`);
  const reader = response.body.getReader();
  if (response.status === 206 || at === 0) return reader;
  return skipping(reader, at);
}

function skipping(reader, bytes) {
  let left = bytes;
  return {
    async read() {
      for (;;) {
        const part = await reader.read();
        if (part.done || left === 0) return part;
        if (part.value.length > left) {
          const value = part.value.subarray(left);
          left = 0;
          return { done: false, value };
        }
        left -= part.value.length;
      }
    },
  };
}
