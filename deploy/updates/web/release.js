// What a channel says of a version, and which device takes the canary: as deploy/updates/release.py.

import { sha256 } from "../vendor/noble/sha2.js";
import { EverlearnError } from "../errors.js";

const SHA256 = /^[0-9a-f]{64}$/;
const FILE = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const MILLION = 1_000_000n;

/** The release of these bytes, with `manifest`, its edge.json. Throws "corrupt". */
export function readRelease(bytes, model, target) {
  const read = JSON.parse(new TextDecoder().decode(bytes));
  check(read?.format === "everlearn-release/1", "its format is another one");
  check(read.model === model && read.target === target, `it is of ${read.model} for ${read.target}, not of what is followed`);
  check(Array.isArray(read.files) && read.files.length > 0 && read.files.length <= 4096, "files");
  for (const file of read.files) {
    check(FILE.test(file?.path) && isBlob(file), `the file ${file?.path}`);
    check((file.deltas ??= []).length <= 64, `the differences of ${file.path}`);
    for (const delta of file.deltas) check(isBlob(delta) && (delta.base === undefined || SHA256.test(delta.base)), `a difference of ${file.path}`);
  }
  check(new Set(read.files.map((file) => file.path)).size === read.files.length, "a path twice");
  const manifest = read.files.find((file) => file.path === "edge.json");
  check(manifest, "it has no edge.json");
  return { ...read, manifest };
}

/** Ways to a file for who has the files of `here`, a Map by sha256: differences, or the file; fewest bytes first. */
export function waysTo(file, here) {
  const usable = file.deltas.filter((delta) => delta.base === undefined || here.has(delta.base));
  return [...usable, file].sort((one, other) => one.bytes - other.bytes);
}

/** Whether a device is among the share that gets a canary, in millionths. Its id is hashed here and sent nowhere. */
export function takesCanary(deviceId, digest, sharePpm) {
  const drawn = sha256(new TextEncoder().encode(`${deviceId}:${digest}`)).subarray(0, 6);
  const number = drawn.reduce((sum, byte) => sum * 256n + BigInt(byte), 0n);
  return number * MILLION < BigInt(sharePpm) << 48n;
}

const isBlob = ({ bytes, sha256: sum }) => Number.isSafeInteger(bytes) && bytes >= 0 && SHA256.test(sum);

function check(right, what) {
  if (!right) throw new EverlearnError("corrupt", `the channel's release is refused: ${what}`);
}
