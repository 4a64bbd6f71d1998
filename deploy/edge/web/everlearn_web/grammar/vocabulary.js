// The bytes of each token, in an order in which what tokens share is read once.

import { EverlearnError } from "../errors.js";

const CLOCK_EVERY = 16; // tokens

export class Vocabulary {
  /** `tokenizer`: tokenizer.json. size: how many logits there are. ends: ids of the tokens that end an answer. */
  constructor(tokenizer, size, ends) {
    if (!isByteLevel(tokenizer)) throw new EverlearnError("unsupported", "tools and JSON schemas need a tokenizer of byte-level BPE, and this model has another");
    this.size = size;
    this.ends = ends;
    this.endBits = new Int32Array(Math.ceil(size / 32));
    for (const id of ends) this.endBits[id >> 5] |= 1 << (id & 31);
    const special = new Set(ends);
    const bytes = new Map();
    for (const [token, id] of Object.entries(tokenizer.model.vocab)) bytes.set(id, byteLevel(token));
    for (const { id, content, special: marks } of tokenizer.added_tokens ?? []) {
      if (marks) special.add(id);
      bytes.set(id, new TextEncoder().encode(content));
    }
    const readable = [...bytes].filter(([id, each]) => id < size && each.length && !special.has(id));
    const sorted = readable.map((token) => [String.fromCharCode(...token[1]), token]).sort(([one], [other]) => (one < other ? -1 : 1));
    this.tokens = sorted.map(([, token]) => token); // [id, bytes]
    this.byId = new Map(this.tokens);
    this.shared = this.tokens.map(([, each], index) => (index ? common(each, this.tokens[index - 1][1]) : 0));
  }

  /** The bits of the tokens that may come in `state`. Throws a RangeError at `until`, milliseconds of performance.now(). */
  mask(automaton, state, until) {
    if (state.mask) return state.mask;
    const mask = new Int32Array(this.endBits.length);
    const after = [state]; // after so many bytes of a token
    let alive = 0; // how many bytes of the last token could be read
    for (let index = 0; index < this.tokens.length; index++) {
      if (index % CLOCK_EVERY === 0 && performance.now() > until) throw new RangeError("it takes too long to follow");
      if (this.shared[index] > alive) continue;
      const [id, bytes] = this.tokens[index];
      alive = this.shared[index];
      while (alive < bytes.length && (after[alive + 1] = automaton.step(after[alive], bytes[alive]))) alive += 1;
      if (alive === bytes.length) mask[id >> 5] |= 1 << (id & 31);
    }
    if (state.ends) this.endBits.forEach((bits, index) => (mask[index] |= bits));
    return (state.mask = mask);
  }

  bytes(id) {
    return this.byId.get(id);
  }
}

const isByteLevel = ({ model, decoder }) => model?.type === "BPE" && [decoder, ...(decoder?.decoders ?? [])].some((each) => each?.type === "ByteLevel");

/** Bytes of the characters that GPT-2's vocabulary writes for them. */
const BYTES = new Map();
for (let byte = 0, more = 256; byte < 256; byte++) {
  const printed = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  BYTES.set(String.fromCharCode(printed ? byte : more++), byte);
}

function byteLevel(token) {
  return Uint8Array.from(Array.from(token).flatMap((character) => (BYTES.has(character) ? [BYTES.get(character)] : Array.from(new TextEncoder().encode(character)))));
}

function common(one, other) {
  let length = 0;
  while (length < one.length && length < other.length && one[length] === other[length]) length += 1;
  return length;
}
