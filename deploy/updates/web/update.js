// A model in this browser, kept up to date from a channel of `everlearn deploy channel`: by the fewest bytes, to what was
// signed, and back. For workers, as storage.js.

import { sha256 } from "../vendor/noble/sha2.js";
import { pieces } from "../download.js";
import { EverlearnError } from "../errors.js";
import { readManifest } from "../manifest.js";
import { MANIFEST, exclusive } from "../storage.js";
import { applied } from "./delta.js";
import { readRelease, takesCanary, waysTo } from "./release.js";
import { TufClient, hex } from "./tuf.js";

const STORED_PATIENCE_MS = 10_000; // a page whose model is here is not kept from it by a busy server
const PATIENCE_MS = 120_000;

/**
 * Brings the version that the channel has for this browser into `storage`, whole, and makes it current nowhere: the
 * caller does so once its probes agree. followed: {url, target, root}, root the bytes of a root.json that is trusted.
 * Returns {version, alias, bytes}: its name in storage, and how many bytes came.
 */
export async function update(storage, followed, told = () => {}) {
  const files = await seenFiles(storage.directory);
  const patienceMs = (await storage.current()) ? STORED_PATIENCE_MS : PATIENCE_MS;
  const channel = new TufClient(followed.url, { root: followed.root, files, patienceMs });
  const targets = await channel.refresh();
  const place = `${storage.model}/${followed.target}`;
  const canary = targets[`${place}/canary.json`]?.custom;
  const alias = canary && takesCanary(await deviceId(files), canary.digest, canary.share_ppm) ? "canary" : "champion";
  if (!targets[`${place}/${alias}.json`]) throw new EverlearnError("not_found", `the channel ${channel.url} has no ${storage.model} for ${followed.target}`);
  const release = readRelease(await channel.target(`${place}/${alias}.json`), storage.model, followed.target);
  if ((await refused(files)) === release.manifest.sha256) {
    const current = await storage.current();
    if (current) return { version: current, alias, bytes: 0 };
  }
  return { alias, ...(await fetchRelease(storage, release, channel.url, told)) };
}

/** The version before the current one is current again; the one that it replaces is not fetched again. */
export async function goBack(storage) {
  const [current, before] = [await storage.current(), await storage.previous()];
  if (!before || (await refused(await seenFiles(storage.directory))) === (await nameOf(storage, before))) throw new EverlearnError("not_found", `this browser keeps no version of ${storage.model} to go back to`);
  await refuse(storage, current);
  await storage.makeCurrent(before);
  return before;
}

/** A version that went wrong here is not fetched again, until the channel has another one. */
export async function refuse(storage, version) {
  await (await seenFiles(storage.directory)).write("refused", new TextEncoder().encode(await nameOf(storage, version)));
}

/** A version as releases name it: the sha256 of its edge.json. */
async function nameOf(storage, version) {
  return hex(sha256(await storage.folder(version).read(MANIFEST)));
}

async function fetchRelease(storage, release, url, told) {
  const here = await present(storage);
  const bytes = await obtainBytes(release.manifest, here, url);
  const { id } = readManifest(bytes.content);
  const folder = storage.folder(id);
  if (await folder.whole()) return { version: id, bytes: bytes.came };
  const missing = [];
  for (const file of release.files) {
    if (file !== release.manifest && (await folder.file(file.path))?.size !== file.bytes) missing.push(file);
  }
  const total = missing.reduce((sum, file) => sum + (here.has(file.sha256) ? 0 : waysTo(file, here)[0].bytes), 0);
  let came = bytes.came;
  for (const file of missing) came += await obtain(folder, file, here, url, (done) => told(came + done, total));
  await folder.seal(bytes.content);
  return { version: id, bytes: came };
}

/** Files of the versions that are whole here, by their sha256. */
async function present(storage) {
  const found = new Map();
  for (const { version, whole } of await storage.versions()) {
    if (!whole) continue;
    const folder = storage.folder(version);
    const content = await folder.read(MANIFEST);
    found.set(hex(sha256(content)), () => folder.file(MANIFEST));
    for (const file of readManifest(content).files) found.set(file.sha256, () => folder.file(file.path));
  }
  return found;
}

/** Writes one file; where what is here is broken, or a difference is, it goes on with the next larger way. */
async function obtain(folder, file, here, url, told) {
  let came = 0;
  const counted = (done) => told((came = done));
  const ways = [...(here.has(file.sha256) ? [null] : []), ...waysTo(file, here)];
  for (const [at, way] of ways.entries()) {
    try {
      if (way === file) {
        const rest = (kept) => pieces(new URL(`blobs/${file.sha256}`, url), file.bytes, kept, (done) => counted(done - kept));
        await folder.write(file.path, file, rest, { resume: true });
      } else if (way === null) {
        await folder.write(file.path, file, streamed(await here.get(file.sha256)()));
      } else {
        const delta = await download(way, url, counted);
        await folder.write(file.path, file, applied(delta, way.base ? await here.get(way.base)() : null, file.bytes));
      }
      return came;
    } catch (error) {
      if (error.code !== "corrupt" || at === ways.length - 1) throw error;
    }
  }
}

async function obtainBytes(file, here, url) {
  if (here.has(file.sha256)) return { content: new Uint8Array(await (await here.get(file.sha256)()).arrayBuffer()), came: 0 };
  const [way] = waysTo(file, new Map());
  const got = await download(way, url, () => {});
  const parts = [];
  if (way === file) parts.push(got);
  else for await (const piece of applied(got, null, file.bytes)) parts.push(piece);
  const content = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (hex(sha256(content)) !== file.sha256) throw new EverlearnError("corrupt", "edge.json is not what the channel's signed release lists");
  return { content, came: way.bytes };
}

/** A blob of the channel, whole in memory: a difference is smaller than a part of 32 MiB. */
async function download({ bytes, sha256: sum }, url, told) {
  const hash = sha256.create();
  const parts = [];
  for await (const piece of pieces(new URL(`blobs/${sum}`, url), bytes, 0, told)) {
    hash.update(piece);
    parts.push(piece);
  }
  if (hex(hash.digest()) !== sum) throw new EverlearnError("corrupt", `${url}blobs/${sum} sends other bytes than the channel's signed release lists`);
  return new Blob(parts);
}

async function* streamed(blob) {
  for (const reader = blob.stream().getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

async function deviceId(files) {
  const seen = await files.read("id");
  if (seen) return new TextDecoder().decode(seen);
  const made = hex(crypto.getRandomValues(new Uint8Array(16)));
  await files.write("id", new TextEncoder().encode(made));
  return made;
}

async function refused(files) {
  const bytes = await files.read("refused");
  return bytes && new TextDecoder().decode(bytes);
}

/** Small files beside a model's versions: what was seen of the channel. Each is there whole, or as it was before. */
async function seenFiles(directory) {
  const folder = await directory.getDirectoryHandle("channel", { create: true });
  return {
    async read(name) {
      const handle = await folder.getFileHandle(name).catch((error) => {
        if (error.name !== "NotFoundError") throw error;
      });
      return handle ? new Uint8Array(await (await handle.getFile()).arrayBuffer()) : null;
    },
    async write(name, bytes) {
      const part = await folder.getFileHandle(`${name}.part`, { create: true });
      const access = await exclusive(part);
      access.truncate(0);
      access.write(bytes);
      access.flush();
      access.close();
      await part.move(name);
    },
  };
}
