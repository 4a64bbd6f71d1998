// edge.json: what a folder holds, read with care, since it comes from a server.

import { sha256 } from "./vendor/noble/sha2.js";
import { EverlearnError } from "./errors.js";
import { hex } from "./storage.js";

export const FORMAT = "everlearn-edge/1";
export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024;
const MAX_FILES = 4096;
const MAX_FILE_BYTES = 4 * 1024 ** 3;
const PATH = /^(?!.*(?:^|\/)\.{1,2}(?:\/|$))[A-Za-z0-9._-]+(?:\/[A-Za-z0-9._-]+)*$/;

/** The manifest of these bytes, with `id`, the name of its version in storage. Throws "corrupt" or "unsupported". */
export function readManifest(bytes) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new EverlearnError("corrupt", `edge.json is no JSON: ${error.message}`);
  }
  if (manifest?.format !== FORMAT) {
    throw new EverlearnError("unsupported", `edge.json has format ${JSON.stringify(manifest?.format)}; this page reads ${FORMAT}`);
  }
  check(typeof manifest.model === "string" && /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(manifest.model), "model");
  check(Number.isSafeInteger(manifest.version) && manifest.version >= 0, "version");
  check(Array.isArray(manifest.files) && manifest.files.length > 0 && manifest.files.length <= MAX_FILES, "files");
  for (const file of manifest.files) {
    check(typeof file?.path === "string" && file.path.length <= 200 && PATH.test(file.path), "files: path");
    check(Number.isSafeInteger(file.bytes) && file.bytes >= 0 && file.bytes <= MAX_FILE_BYTES, `${file.path}: bytes`);
    check(/^[0-9a-f]{64}$/.test(file.sha256), `${file.path}: sha256`);
  }
  check(new Set(manifest.files.map((file) => file.path)).size === manifest.files.length, "files: a path twice");
  check(Array.isArray(manifest.probes) && manifest.probes.length > 0 && manifest.probes.length <= 64, "probes");
  const labels = manifest.graph?.labels ?? [];
  check(Array.isArray(labels) && labels.every((label) => typeof label === "string"), "graph: labels");
  check(manifest.bound > 0 && manifest.bound < 100, "bound");
  return { ...manifest, id: `${manifest.version}-${hex(sha256(bytes)).slice(0, 16)}` };
}

function check(right, what) {
  if (!right) throw new EverlearnError("corrupt", `edge.json is refused: ${what} is not as everlearn writes it`);
}
