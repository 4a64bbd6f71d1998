// Versions of a model in this browser, in the origin private file system (OPFS). For workers: pages have no synchronous
// access to its files.
//
//   const storage = await openStorage("smollm2");
//   await storage.versions()                      [{version, whole, bytes}], oldest first
//   await storage.current()                       the version that serves, or null
//   await storage.previous()                      the version that served before it, or null
//   const folder = storage.folder(version)        a version's files; it is made by the first write
//   await folder.file(path)                       a File (a Blob that reads from disk), or null
//   await folder.read(path)                       its bytes; throws "not_found"
//   await folder.write(path, {bytes, sha256}, chunks)   from an async iterable of Uint8Array; kept only if both agree
//   await folder.seal(manifest)                   writes edge.json, last: from then on the version is whole
//   await folder.whole()                          whether it is sealed
//   await storage.makeCurrent(version)            atomic; throws "not_found" unless it is whole
//   await storage.remove(version)                 throws "conflict" for the current one
//   await storage.locked(work)                    runs work() while no other tab changes this model
//
// A version is a name of letters, digits, ".", "_" and "-". Whoever is killed leaves files ending in ".part", which
// nobody reads, and versions without edge.json, which are not whole.

import { sha256 } from "./vendor/noble/sha2.js";
import { EverlearnError } from "./errors.js";

export const MANIFEST = "edge.json";
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const FLUSH_BYTES = 8 * 1024 * 1024;
const BUSY_MS = 10_000;
const BUSY_WAIT_MS = 100;

/** The storage of one model. Throws "unsupported" where the browser has no OPFS, as in some private windows. */
export async function openStorage(model) {
  checkName(model);
  try {
    const root = await navigator.storage.getDirectory();
    const all = await root.getDirectoryHandle("everlearn", { create: true });
    return new Storage(model, await all.getDirectoryHandle(model, { create: true }));
  } catch (error) {
    const why = `${error.name}: ${error.message}`;
    throw new EverlearnError("unsupported", `this page cannot keep files (${why}): it needs https or localhost, and a window that is not private`);
  }
}

export class Storage {
  constructor(model, directory) {
    this.model = model;
    this.directory = directory;
  }

  async versions() {
    const found = [];
    const versions = await this.directory.getDirectoryHandle("versions", { create: true });
    for await (const [version, handle] of versions.entries()) {
      let bytes = 0;
      for await (const file of handle.values()) bytes += (await file.getFile()).size;
      found.push({ version, whole: await this.folder(version).whole(), bytes });
    }
    return found.sort((one, other) => one.version.localeCompare(other.version, "en", { numeric: true }));
  }

  folder(version) {
    checkName(version);
    return new VersionFolder(this.directory, version);
  }

  // The current version is a name of an empty file, "NUMBER,VERSION", of which the highest number counts: making a
  // file is atomic. The number before it stays, for who goes back.
  async current() {
    return (await this.#served())[0] ?? null;
  }

  async previous() {
    return (await this.#served())[1] ?? null;
  }

  async makeCurrent(version) {
    if (!(await this.folder(version).whole())) {
      throw new EverlearnError("not_found", `${version} of ${this.model} is not whole in this browser: download it first`);
    }
    const turns = await this.#turns();
    if (turns[0]?.version === version) return;
    const directory = await this.directory.getDirectoryHandle("current", { create: true });
    await directory.getFileHandle(`${(turns[0]?.number ?? 0) + 1},${version}`, { create: true });
    for (const { name } of turns.slice(1)) await directory.removeEntry(name);
  }

  async remove(version) {
    if ((await this.current()) === version) {
      throw new EverlearnError("conflict", `${version} of ${this.model} serves: make another version current first`);
    }
    const versions = await this.directory.getDirectoryHandle("versions", { create: true });
    const handle = await versions.getDirectoryHandle(version).catch(absent);
    if (!handle) return;
    await handle.removeEntry(MANIFEST).catch(absent); // first: from now on it is not whole
    await versions.removeEntry(version, { recursive: true });
  }

  locked(work) {
    return navigator.locks.request(`everlearn/${this.model}`, work);
  }

  /** Whole versions that serve or served, newest first. */
  async #served() {
    const found = new Set();
    for (const { version } of await this.#turns()) {
      if (await this.folder(version).whole()) found.add(version);
    }
    return [...found];
  }

  async #turns() {
    const directory = await this.directory.getDirectoryHandle("current", { create: true });
    const found = [];
    for await (const name of directory.keys()) {
      const [number, version] = name.split(",");
      found.push({ name, number: Number(number), version });
    }
    return found.sort((one, other) => other.number - one.number);
  }
}

class VersionFolder {
  constructor(directory, version) {
    this.parent = directory;
    this.version = version;
  }

  async file(path) {
    const folder = await this.#handle(false);
    const handle = folder && (await folder.getFileHandle(entry(path)).catch(absent));
    return handle ? handle.getFile() : null;
  }

  async read(path) {
    const file = await this.file(path);
    if (!file) throw new EverlearnError("not_found", `${path} of ${this.version} is not in this browser`);
    return new Uint8Array(await file.arrayBuffer());
  }

  async whole() {
    return (await this.file(MANIFEST)) !== null;
  }

  /** How many bytes of an unfinished write are there already. */
  async begun(path) {
    return (await this.file(`${path}.part`))?.size ?? 0;
  }

  /**
   * Writes a file whose size and sha256 are known. With `resume`, `chunks` is a function that gets the number of bytes
   * that an earlier try left, and gives the rest; what is on disk is hashed again. Throws "corrupt" if the bytes differ
   * (nothing is kept then), and whatever `chunks` throws (what came is kept for the next try).
   */
  async write(path, { bytes, sha256: expected }, chunks, { resume = false } = {}) {
    const folder = await this.#handle(true);
    const name = entry(path);
    const part = await folder.getFileHandle(`${name}.part`, { create: true });
    const access = await exclusive(part);
    let found;
    try {
      const kept = resume && access.getSize() <= bytes ? access.getSize() : 0;
      access.truncate(kept);
      const hash = sha256.create();
      hashed(access, kept, hash);
      const size = await append(access, kept, bytes, hash, resume ? chunks(kept) : chunks);
      found = size === bytes ? hex(hash.digest()) : `of only ${size} bytes`;
      access.flush();
    } finally {
      access.close();
    }
    if (found !== expected) {
      await folder.removeEntry(`${name}.part`);
      throw new EverlearnError("corrupt", `${path} is refused: it should have ${bytes} bytes with sha256 ${expected}, and has ${found}`);
    }
    await part.move(name);
  }

  async seal(manifest) {
    const sum = hex(sha256(manifest));
    await this.write(MANIFEST, { bytes: manifest.length, sha256: sum }, once(manifest));
  }

  async #handle(create) {
    const versions = await this.parent.getDirectoryHandle("versions", { create: true });
    return versions.getDirectoryHandle(this.version, { create }).catch(absent);
  }
}

async function append(access, start, bytes, hash, chunks) {
  let at = start;
  let flushed = start;
  for await (const chunk of chunks) {
    if (at + chunk.length > bytes) return at + chunk.length;
    hash.update(chunk);
    if (access.write(chunk, { at }) !== chunk.length) throw new EverlearnError("storage_full", "the disk is full");
    at += chunk.length;
    if (at - flushed >= FLUSH_BYTES) {
      access.flush();
      flushed = at;
    }
  }
  return at;
}

function hashed(access, bytes, hash) {
  const buffer = new Uint8Array(1024 * 1024);
  for (let at = 0; at < bytes; ) {
    const read = access.read(buffer.subarray(0, Math.min(buffer.length, bytes - at)), { at });
    hash.update(buffer.subarray(0, read));
    at += read;
  }
}

async function* once(bytes) {
  yield bytes;
}

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

const entry = (path) => encodeURIComponent(path);

function checkName(name) {
  if (!NAME.test(name)) throw new EverlearnError("invalid_input", `${JSON.stringify(name)} is no name: letters, digits, ".", "_" and "-", up to 128`);
}

function absent(error) {
  if (error.name === "NotFoundError") return null;
  throw error;
}

/** The only handle that writes a file. A page that has just been closed may hold the former one for a moment. */
export async function exclusive(file) {
  for (let waited = 0; ; waited += BUSY_WAIT_MS) {
    try {
      return await file.createSyncAccessHandle();
    } catch (error) {
      if (error.name !== "NoModificationAllowedError") throw error;
      if (waited >= BUSY_MS) throw new EverlearnError("unavailable", `another page is writing ${file.name}`);
      await new Promise((resolve) => setTimeout(resolve, BUSY_WAIT_MS));
    }
  }
}
