// Canonical JSON (http://wiki.laptop.org/go/Canonical_JSON), over which TUF's signatures are made: keys in order, no
// spaces, and only '"' and '\' escaped. It knows no fractions.

import { EverlearnError } from "../errors.js";

/** The bytes that were signed. Throws "corrupt" for a value that has no canonical form. */
export function canonical(value) {
  return new TextEncoder().encode(text(value));
}

function text(value) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return `"${value.replace(/[\\"]/g, "\\$&")}"`;
  if (Number.isSafeInteger(value)) return String(value);
  if (Array.isArray(value)) return `[${value.map(text).join(",")}]`;
  if (typeof value === "object") return `{${Object.keys(value).sort().map((key) => `${text(key)}:${text(value[key])}`).join(",")}}`;
  throw new EverlearnError("corrupt", `the channel is refused: ${value} has no canonical form`);
}
