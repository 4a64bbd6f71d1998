// Grammars as automata over bytes, with a stack for rules inside rules. @mlc-ai/web-xgrammar 0.1.27, the one library that
// runs in a page, merges states that differ: of an enumeration's words it made others, of numbers texts that are none.

const MAX_NODES = 300_000;
const MAX_WAYS = 20_000; // at one place of a text
const MAX_STATES = 4_000; // remembered; then all are forgotten, and found again
const BYTE_LIMITS = [0x7f, 0x7ff, 0xffff, 0x10ffff];

/** Where a text can stand: `next` by byte, null where nothing goes on; `ends`: the text may end here. */
class State {
  constructor(ways, ends) {
    this.ways = ways; // [node, stack, node, stack, …]
    this.ends = ends;
    this.next = new Array(256);
    this.mask = null;
  }
}

export class Automaton {
  /** rules: {name: part}; `root`: a part. Throws a RangeError for one that is too large. */
  constructor(rules, root) {
    this.nodes = []; // {bytes: [first, last, node, …], free: [node, …], calls: [rule, node, …], end}
    this.rules = Object.fromEntries(Object.keys(rules).map((name) => [name, this.#node()]));
    for (const [name, part] of Object.entries(rules)) this.nodes[this.#build(part, this.rules[name])].end = true;
    const start = this.#node();
    this.nodes[this.#build(root, start)].end = true;
    this.stacks = [null]; // [parent, node to go on at]
    this.stackIds = new Map();
    this.states = new Map();
    this.start = this.#state([start, 0]);
  }

  /** The state after `byte`, or null. */
  step(state, byte) {
    const known = state.next[byte];
    if (known !== undefined) return known;
    const found = [];
    for (let at = 0; at < state.ways.length; at += 2) {
      const { bytes } = this.nodes[state.ways[at]];
      for (let edge = 0; edge < bytes.length; edge += 3) {
        if (bytes[edge] <= byte && byte <= bytes[edge + 1]) found.push(bytes[edge + 2], state.ways[at + 1]);
      }
    }
    return (state.next[byte] = found.length ? this.#state(found) : null);
  }

  // -- states ----------------------------------------------------------------------------------------------

  /** What `ways` lead to without reading anything; null where that is nowhere. */
  #state(ways) {
    const seen = new Set();
    const waiting = [];
    const reading = [];
    let ends = false;
    const add = (node, stack) => {
      const key = node * 2 ** 31 + stack;
      if (seen.has(key)) return;
      if (seen.size >= MAX_WAYS) throw new RangeError("it can be read in too many ways");
      seen.add(key);
      waiting.push(node, stack);
    };
    for (let at = 0; at < ways.length; at += 2) add(ways[at], ways[at + 1]);
    while (waiting.length) {
      const stack = waiting.pop();
      const index = waiting.pop();
      const node = this.nodes[index];
      if (node.bytes.length) reading.push([index, stack]);
      for (const next of node.free) add(next, stack);
      for (let at = 0; at < node.calls.length; at += 2) add(this.rules[node.calls[at]], this.#pushed(stack, node.calls[at + 1]));
      if (!node.end) continue;
      if (stack === 0) ends = true;
      else add(this.stacks[stack][1], this.stacks[stack][0]);
    }
    if (reading.length === 0 && !ends) return null;
    const sorted = reading.sort((a, b) => a[0] - b[0] || a[1] - b[1]).flat();
    const key = `${ends}${sorted}`;
    if (!this.states.has(key)) {
      if (this.states.size >= MAX_STATES) this.#forget();
      this.states.set(key, new State(sorted, ends));
    }
    return this.states.get(key);
  }

  /** A stack with one more place to go on at; a rule's last part needs none. */
  #pushed(stack, node) {
    const { end, bytes, free, calls } = this.nodes[node];
    if (end && bytes.length + free.length + calls.length === 0) return stack;
    const key = node * 2 ** 31 + stack;
    if (!this.stackIds.has(key)) {
      this.stackIds.set(key, this.stacks.length);
      this.stacks.push([stack, node]);
    }
    return this.stackIds.get(key);
  }

  #forget() {
    for (const state of this.states.values()) [state.next, state.mask] = [new Array(256), null];
    this.states.clear();
  }

  // -- nodes -----------------------------------------------------------------------------------------------

  #node() {
    if (this.nodes.length >= MAX_NODES) throw new RangeError("it is too large, or repeats too much");
    this.nodes.push({ bytes: [], free: [], calls: [], end: false });
    return this.nodes.length - 1;
  }

  /** Adds `part` behind the node `from`; the node behind it. */
  #build(part, from) {
    if (part.bytes) return this.#bytes(from, Array.from(part.bytes, (byte) => [byte, byte]), this.#node());
    if (part.ranges) {
      const to = this.#node();
      for (const [first, last] of part.ranges) for (const bytes of encoded(first, last)) this.#bytes(from, bytes, to);
      return to;
    }
    if (part.sequence) return part.sequence.reduce((at, each) => this.#build(each, at), from);
    if (part.choice) {
      const to = this.#node();
      for (const each of part.choice) this.nodes[this.#build(each, this.#free(from))].free.push(to);
      return to;
    }
    if (part.rule) {
      const to = this.#node();
      this.nodes[from].calls.push(part.rule, to);
      return to;
    }
    return part.repeat ? this.#repeat(part, from) : this.#text(part, from);
  }

  #free(from) {
    const to = this.#node();
    this.nodes[from].free.push(to);
    return to;
  }

  #bytes(from, ranges, to) {
    ranges.forEach(([first, last], index) => {
      const next = index === ranges.length - 1 ? to : this.#node();
      this.nodes[from].bytes.push(first, last, next);
      from = next;
    });
    if (ranges.length === 0) this.nodes[from].free.push(to);
    return to;
  }

  #repeat({ repeat: part, least, most }, from) {
    let at = from;
    for (let count = 0; count < least; count++) at = this.#build(part, at);
    const to = this.#node();
    if (most === Infinity) {
      at = this.#free(at);
      this.nodes[this.#build(part, at)].free.push(at);
    }
    for (let count = least; count < most && most !== Infinity; count++) {
      this.nodes[at].free.push(to);
      at = this.#build(part, this.#free(at));
    }
    this.nodes[at].free.push(to);
    return to;
  }

  /** Text up to a tag, or without it: by how much of the tag stands at the text's end (Knuth, Morris, Pratt). */
  #text({ through, without }, from) {
    const tag = through ?? without;
    const to = this.#node();
    const nodes = Array.from(tag, () => this.#node());
    this.nodes[from].free.push(nodes[0]);
    const goOn = (length, byte) => {
      for (let kept = length; kept >= 0; kept--) {
        if (tag[kept] === byte && tag.slice(0, kept).every((each, at) => each === tag[length - kept + at])) return kept + 1;
      }
      return 0;
    };
    nodes.forEach((node, length) => {
      for (let byte = 0; byte < 256; byte++) {
        const next = goOn(length, byte);
        if (next < tag.length) this.nodes[node].bytes.push(byte, byte, nodes[next]);
        else if (through) this.nodes[node].bytes.push(byte, byte, to);
      }
      if (without) this.nodes[node].free.push(to);
    });
    return to;
  }
}

/** Code points first to last as ranges of their bytes in UTF-8: lists of [first, last] for each byte. */
function encoded(first, last) {
  for (const limit of BYTE_LIMITS) {
    if (first <= limit && last > limit) return [...encoded(first, limit), ...encoded(limit + 1, last)];
  }
  if (last <= 0x7f) return [[[first, last]]];
  for (let bits = 6; bits <= 18; bits += 6) {
    const rest = 2 ** bits - 1;
    if (first >> bits === last >> bits) continue;
    if (first & rest) return [...encoded(first, first | rest), ...encoded((first | rest) + 1, last)];
    if ((last & rest) !== rest) return [...encoded(first, (last & ~rest) - 1), ...encoded(last & ~rest, last)];
  }
  const low = new TextEncoder().encode(String.fromCodePoint(first));
  const high = new TextEncoder().encode(String.fromCodePoint(last));
  return [Array.from(low, (byte, index) => [byte, high[index]])];
}
