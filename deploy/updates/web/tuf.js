// A page's half of TUF (https://theupdateframework.github.io/specification/latest/): root, timestamp, snapshot and
// targets, verified with WebCrypto's Ed25519, and never older than what was seen before.
//
//   const channel = new TufClient(url, { root, files });
//   const targets = await channel.refresh();     {path: {length, hashes, custom}}, all of it signed
//   const bytes = await channel.target(path);    a target's bytes
//
// root: the bytes of a root.json that this page trusts; where it is another one than before, what followed from that one
// is no longer trusted. patienceMs: how long to wait for a busy server, in all. files: what was seen, {read(name) -> bytes or null, write(name,
// bytes)}. Throws EverlearnError: "corrupt" for what is not signed, is changed or is older; "expired"; "unavailable".

import { busyMs, isBusy } from "../busy.js";
import { sha256 } from "../vendor/noble/sha2.js";
import { EverlearnError } from "../errors.js";
import { canonical } from "./canonical.js";

const MOST_ROTATIONS = 256;
const MOST_BYTES = { root: 512_000, timestamp: 16_384, snapshot: 2_000_000, targets: 5_000_000 };
const MOST_TARGET_BYTES = 4 << 20;
const PATIENCE_MS = 10_000;
const STALL_MS = 10_000;
const SLOWEST_BYTES_PER_MS = 2.048;

export class TufClient {
  constructor(url, { root, files, patienceMs = PATIENCE_MS, stallMs = STALL_MS, fetch = (...request) => globalThis.fetch(...request), now = () => Date.now() }) {
    this.url = url.endsWith("/") ? url : `${url}/`;
    this.initial = root;
    this.files = files;
    this.patienceMs = patienceMs;
    this.stallMs = stallMs;
    this.fetch = fetch;
    this.now = now;
  }

  /** What the channel offers. Everything before it in the chain is verified, and kept for the next time. */
  async refresh() {
    this.root = await this.#newestRoot();
    this.timestamp = await this.#timestamp();
    this.snapshot = await this.#listed("snapshot", this.timestamp.meta["snapshot.json"]);
    this.targets = await this.#listed("targets", this.snapshot.meta["targets.json"]);
    return this.targets.targets;
  }

  /** The bytes of a target that `refresh` found. */
  async target(path) {
    const { length, hashes } = this.targets.targets[path];
    if (length > MOST_TARGET_BYTES) throw corrupt(`${path} has ${length} bytes, and at most ${MOST_TARGET_BYTES} are read`);
    const at = path.lastIndexOf("/") + 1;
    const bytes = await this.#get(`targets/${path.slice(0, at)}${hashes.sha256}.${path.slice(at)}`, length);
    if (!agrees(bytes, length, hashes)) throw corrupt(`${path} is not what was signed`);
    return bytes;
  }

  async #newestRoot() {
    let trusted = await this.#trustedRoot();
    for (let rotations = 0; rotations < MOST_ROTATIONS; rotations++) {
      const bytes = await this.#get(`metadata/${trusted.version + 1}.root.json`, MOST_BYTES.root, true);
      if (bytes === null) break;
      const next = parsed(bytes, "root");
      await this.#verify(trusted, "root", next); // by those who were trusted, and by those who shall be
      await this.#verify(next.signed, "root", next);
      if (next.signed.version !== trusted.version + 1) throw corrupt(`root ${trusted.version + 1} says that it is ${next.signed.version}`);
      await this.files.write("root.json", bytes);
      trusted = next.signed;
    }
    this.#refuseExpired("root", trusted);
    return trusted;
  }

  /** The root that was reached from the page's own, or that one. Where the page has none just now, the one reached. */
  async #trustedRoot() {
    const seen = await this.files.read("root.json");
    if (!this.initial && !seen) throw new EverlearnError("unavailable", "the root.json that this page trusts cannot be reached: connect once");
    const sum = this.initial && new TextEncoder().encode(hex(sha256(new Uint8Array(this.initial))));
    const reachedFrom = await this.files.read("initial");
    const reached = seen && (!sum || (reachedFrom && hex(reachedFrom) === hex(sum)));
    const root = parsed(reached ? seen : this.initial, "root");
    await this.#verify(root.signed, "root", root);
    if (!reached) {
      await this.files.write("root.json", new Uint8Array(this.initial));
      await this.files.write("initial", sum); // last: a page that ends before begins anew
    }
    return root.signed;
  }

  async #timestamp() {
    const bytes = await this.#get("metadata/timestamp.json", MOST_BYTES.timestamp);
    const news = parsed(bytes, "timestamp");
    await this.#verify(this.root, "timestamp", news);
    const seen = await this.#seen("timestamp");
    const of = (signed) => signed.meta["snapshot.json"].version;
    if (seen && (news.signed.version < seen.version || of(news.signed) < of(seen))) throw older("timestamp", news.signed.version, seen.version);
    this.#refuseExpired("timestamp", news.signed);
    if (!seen || news.signed.version > seen.version) await this.files.write("timestamp.json", bytes);
    return seen?.version === news.signed.version ? seen : news.signed;
  }

  /** The metadata of a role that another one lists by version, length and sha256. */
  async #listed(role, { version, length, hashes = {} }) {
    const seen = await this.#seen(role);
    const bytes = await this.#get(`metadata/${version}.${role}.json`, length ?? MOST_BYTES[role]);
    if (!agrees(bytes, length, hashes)) throw corrupt(`${role} ${version} is not what was signed`);
    const news = parsed(bytes, role);
    await this.#verify(this.root, role, news);
    if (news.signed.version !== version) throw corrupt(`${role} ${version} says that it is ${news.signed.version}`);
    for (const [name, was] of Object.entries((role === "snapshot" && seen?.meta) || {})) {
      const is = news.signed.meta[name]?.version ?? 0;
      if (is < was.version) throw older(name, is, was.version);
    }
    this.#refuseExpired(role, news.signed);
    if (seen?.version !== version) await this.files.write(`${role}.json`, bytes);
    return news.signed;
  }

  /** What was verified before, if the root's keys of today still sign it. */
  async #seen(role) {
    const bytes = await this.files.read(`${role}.json`);
    if (!bytes) return null;
    try {
      const kept = parsed(bytes, role);
      await this.#verify(this.root, role, kept);
      return kept.signed;
    } catch (error) {
      if (error.code === "corrupt") return null; // its keys were replaced, or a write broke off
      throw error;
    }
  }

  async #verify(root, role, { signed, signatures }) {
    const { keyids, threshold } = root.roles[role];
    const bytes = canonical(signed);
    const by = new Set(); // public keys: one that is listed under two names counts once
    for (const { keyid, sig } of signatures) {
      const key = root.keys[keyid];
      if (!keyids.includes(keyid) || key?.keytype !== "ed25519" || key.scheme !== "ed25519") continue;
      if (await signs(key.keyval.public, sig, bytes)) by.add(key.keyval.public);
    }
    if (!(threshold >= 1) || by.size < threshold) throw corrupt(`${role} ${signed.version} has ${by.size} of the ${threshold} signatures that it takes`);
  }

  #refuseExpired(role, { version, expires }) {
    if (!(Date.parse(expires) > this.now())) throw new EverlearnError("expired", `the channel's ${role} ${version} expired on ${expires}: its publisher must refresh it, or somebody holds back news`);
  }

  /** A file's bytes, or null where it may be absent and is. */
  async #get(path, most, mayBeAbsent = false) {
    const url = this.url + path;
    for (let tried = 0, waited = 0; ; tried++) {
      const late = new Deadline(this.stallMs);
      try {
        const response = await this.fetch(url, { cache: "no-cache", signal: late.signal });
        if (mayBeAbsent && (response.status === 404 || response.status === 403)) return null;
        if (response.ok) return await upTo(most, response, path, late);
        waited += busyMs(response, tried);
        if (!isBusy(response) || waited > this.patienceMs) throw refusal(url, path, response.status);
        late.end();
        await new Promise((resolve) => setTimeout(resolve, busyMs(response, tried)));
      } catch (error) {
        if (error instanceof EverlearnError) throw error;
        throw new EverlearnError("unavailable", `${url} does not answer: ${error.message}`);
      } finally {
        late.end();
      }
    }
  }
}

const refusal = (url, path, status) =>
  status >= 500 || status === 429 ? new EverlearnError("unavailable", `${url} answers ${status}`) : corrupt(`${path} is missing (status ${status})`);

/** Aborts a request that begins later than `stallMs`, pauses for so long, or is slower than a modem. */
class Deadline {
  #controller = new AbortController();
  #started = performance.now();
  #stallMs;
  #timer;

  constructor(stallMs) {
    this.#stallMs = stallMs;
    this.came(0);
  }

  get signal() {
    return this.#controller.signal;
  }

  /** So many bytes came in all. */
  came(bytes) {
    const left = this.#started + this.#stallMs + bytes / SLOWEST_BYTES_PER_MS - performance.now();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#controller.abort(new Error("it is too slow")), Math.max(0, Math.min(left, this.#stallMs)));
  }

  end() {
    clearTimeout(this.#timer);
  }
}

/** The body of a response, given up as soon as it is longer than `most`. */
async function upTo(most, response, path, late) {
  const parts = [];
  let size = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    late.came(size);
    if (size > most) {
      await reader.cancel();
      throw corrupt(`${path} is longer than the ${most} bytes that it may have`);
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function parsed(bytes, role) {
  let read;
  try {
    read = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw corrupt(`${role} is no JSON: ${error.message}`);
  }
  const { signed, signatures } = read ?? {};
  const right = signed?._type === role && Number.isSafeInteger(signed.version) && signed.version >= 1 && Array.isArray(signatures) && signatures.length <= 64;
  const whole = right && { root: signed.roles?.root && signed.keys, timestamp: signed.meta?.["snapshot.json"], snapshot: signed.meta?.["targets.json"], targets: signed.targets }[role];
  if (!whole) throw corrupt(`${role} is not as TUF writes it`);
  return read;
}

async function signs(key, signature, bytes) {
  const of = { name: "Ed25519" };
  let imported;
  try {
    imported = await crypto.subtle.importKey("raw", unhex(key), of, false, ["verify"]);
  } catch (error) {
    if (error.name !== "NotSupportedError") return false;
    throw new EverlearnError("unsupported", "this browser does not check Ed25519 signatures: a newer one does");
  }
  return crypto.subtle.verify(of, imported, unhex(signature), bytes);
}

function agrees(bytes, length, hashes) {
  return (length === undefined || bytes.length === length) && (hashes.sha256 === undefined || hashes.sha256 === hex(sha256(bytes)));
}

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

function unhex(text) {
  if (!/^([0-9a-f]{2})+$/.test(text)) return new Uint8Array();
  return Uint8Array.from(text.match(/../g), (byte) => Number.parseInt(byte, 16));
}

const corrupt = (what) => new EverlearnError("corrupt", `the channel is refused: ${what}`);
const older = (name, is, was) => corrupt(`${name} is ${is}, older than ${was}, which was seen before`);
