// A file from its difference to a former one: zstd, then XOR, a segment of at most 4 MiB at a time. The layout is
// described in deploy/updates/delta.py, which writes it.

import { decompress } from "../vendor/fzstd.js";
import { EverlearnError } from "../errors.js";

const MAGIC = "EVDELTA1";
const START_BYTES = MAGIC.length + 4;
const SEGMENT_BYTES = 4 << 20;
const MOST_HEADER_BYTES = 16 << 20;

/**
 * The `size` bytes that `delta` (a Blob) makes of `base` (a Blob, or null), as an async iterator of Uint8Array.
 * Throws "corrupt" for a delta that makes anything else. What comes out is still to be compared with its sha256.
 */
export async function* applied(delta, base, size) {
  const { segments, end } = await header(delta, size);
  let at = end;
  for (const [length, offset, frameBytes] of segments) {
    const piece = unpacked(await read(delta, at, frameBytes), length);
    at += frameBytes;
    if (offset >= 0) {
      if (!base) throw corrupt("it is of a file that is not here");
      xor(piece, await read(base, offset, length));
    }
    yield piece;
  }
  if (at !== delta.size) throw corrupt("bytes follow its last segment");
}

async function header(delta, size) {
  const start = await read(delta, 0, START_BYTES);
  if (new TextDecoder().decode(start.subarray(0, MAGIC.length)) !== MAGIC) throw corrupt("it is no difference between files");
  const length = new DataView(start.buffer, start.byteOffset).getUint32(MAGIC.length, true);
  if (length > MOST_HEADER_BYTES) throw corrupt(`its header has ${length} bytes`);
  let said;
  try {
    said = JSON.parse(new TextDecoder().decode(decompress(await read(delta, START_BYTES, length))));
  } catch (error) {
    throw error.code === "corrupt" ? error : corrupt(`its header cannot be read: ${error.message}`);
  }
  const fits = ([bytes, offset, frame]) => [bytes, offset, frame].every(Number.isSafeInteger) && bytes > 0 && bytes <= SEGMENT_BYTES && offset >= -1 && frame > 0;
  const right = Array.isArray(said.segments) && said.segments.every(fits) && said.segments.reduce((sum, [bytes]) => sum + bytes, 0) === size;
  if (!right || said.bytes !== size) throw corrupt(`its segments do not make ${size} bytes`);
  return { segments: said.segments, end: START_BYTES + length };
}

async function read(blob, start, length) {
  if (start + length > blob.size) throw corrupt("it, or the file that it is of, ends too early");
  return new Uint8Array(await blob.slice(start, start + length).arrayBuffer());
}

function unpacked(frame, length) {
  let piece;
  try {
    piece = decompress(frame);
  } catch (error) {
    throw corrupt(error.message);
  }
  if (piece.length !== length) throw corrupt("a frame has another size than the header says");
  return piece;
}

/** piece ^= other, in words of four bytes where both lie so in memory. */
function xor(piece, other) {
  const words = piece.byteOffset % 4 || other.byteOffset % 4 ? 0 : piece.length >> 2;
  const [one, two] = [new Uint32Array(piece.buffer, words ? piece.byteOffset : 0, words), new Uint32Array(other.buffer, words ? other.byteOffset : 0, words)];
  for (let at = 0; at < words; at++) one[at] ^= two[at];
  for (let at = words << 2; at < piece.length; at++) piece[at] ^= other[at];
}

const corrupt = (what) => new EverlearnError("corrupt", `the update is refused: ${what}`);
