// Regular expressions of JSON schemas as parts of a grammar, over the text of a JSON string, in which some characters stand
// escaped. What depends on more than the text before it (look-around, references) has no such form.

import { CHARACTER, choice, repeat, sequence, set, text } from "./parts.js";

const LAST = 0x10ffff;
const ESCAPED = ['"', "\\", "\b", "\t", "\n", "\f", "\r"]; // what a string holds as an escape
const NOT_PLAIN = [[0, 0x1f], [0x22, 0x22], [0x5c, 0x5c], [0xd800, 0xdfff]];
const DIGIT = [[0x30, 0x39]];
const WORD = [[0x30, 0x39], [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]];
const SPACE = [[9, 13], [0x20, 0x20], [0xa0, 0xa0], [0x1680, 0x1680], [0x2000, 0x200a], [0x2028, 0x2029], [0x202f, 0x202f], [0x205f, 0x205f], [0x3000, 0x3000], [0xfeff, 0xfeff]];
const SETS = { d: DIGIT, w: WORD, s: SPACE, D: complement(DIGIT), W: complement(WORD), S: complement(SPACE) };
const LINE_ENDS = [[0x0a, 0x0a], [0x0d, 0x0d], [0x2028, 0x2029]];
const CONTROLS = { t: "\t", n: "\n", r: "\r", f: "\f", v: "\v", 0: "\0" };
const ANYTHING = repeat(CHARACTER);

/** `source` as a part; as in JSON schemas it may stand anywhere in the text. Throws an Error for what has no such form. */
export function pattern(source) {
  new RegExp(source);
  return new Pattern(source).alternatives(true);
}

class Pattern {
  constructor(source) {
    this.characters = Array.from(source);
    this.at = 0;
  }

  get next() {
    return this.characters[this.at];
  }

  eat(character) {
    if (this.next !== character) return false;
    this.at += 1;
    return true;
  }

  alternatives(outermost) {
    const found = [];
    do found.push(this.sequence(outermost));
    while (this.eat("|"));
    return choice(...found);
  }

  sequence(outermost) {
    const parts = outermost && !this.eat("^") ? [ANYTHING] : [];
    let open = outermost;
    while (this.next !== undefined && this.next !== "|" && !(this.next === ")" && !outermost)) {
      if (outermost && this.next === "$" && [undefined, "|"].includes(this.characters[this.at + 1])) {
        this.at += 1;
        open = false;
      } else parts.push(this.repeated(this.part()));
    }
    if (open) parts.push(ANYTHING);
    return sequence(...parts);
  }

  part() {
    const character = this.characters[this.at++];
    if (character === "(") return this.group();
    if (character === "[") return oneOf(this.characterClass());
    if (character === ".") return oneOf(complement(LINE_ENDS));
    if (character === "\\") return oneOf(this.escape());
    if (character === "^" || character === "$") throw new Error(`${character} inside of it`);
    return oneOf(only(character));
  }

  group() {
    if (this.eat("?") && !this.eat(":")) {
      const name = /^<[A-Za-z_]\w*>/.exec(this.characters.slice(this.at).join(""));
      if (!name) throw new Error("a look-around or a flag");
      this.at += name[0].length;
    }
    const inside = this.alternatives(false);
    if (!this.eat(")")) throw new Error("an open group");
    return inside;
  }

  repeated(part) {
    const found = /^(?:[*+?]|\{\d{1,6}(?:,\d{0,6})?\})/.exec(this.characters.slice(this.at, this.at + 16).join(""))?.[0] ?? "";
    this.at += found.length;
    if (found) this.eat("?");
    if (found === "*") return repeat(part);
    if (found === "+") return repeat(part, 1);
    if (found === "?") return repeat(part, 0, 1);
    if (!found) return part;
    const [least, most] = found.slice(1, -1).split(",");
    return repeat(part, Number(least), most === undefined ? Number(least) : most === "" ? Infinity : Number(most));
  }

  /** The ranges behind a backslash. */
  escape(inClass = false) {
    const character = this.characters[this.at++];
    if (SETS[character]) return SETS[character];
    if (character in CONTROLS) return only(CONTROLS[character]);
    if (character === "x" || character === "u") return only(this.hexadecimal(character === "x" ? 2 : 4));
    if (character === "b" && inClass) return only("\b");
    if (/[A-Za-z1-9]/.test(character)) throw new Error(`\\${character}`);
    return only(character);
  }

  hexadecimal(length) {
    const text = this.characters.slice(this.at, this.at + length).join("");
    if (!new RegExp(`^[0-9A-Fa-f]{${length}}$`).test(text)) throw new Error("an escape that is not of so many digits");
    this.at += length;
    return String.fromCodePoint(parseInt(text, 16));
  }

  characterClass() {
    const negated = this.eat("^");
    const ranges = [];
    while (!this.eat("]")) {
      const first = this.classItem();
      const isRange = this.next === "-" && this.characters[this.at + 1] !== "]";
      if (!isRange) {
        ranges.push(...first);
        continue;
      }
      this.at += 1;
      const last = this.classItem();
      if (first.length !== 1 || last.length !== 1) throw new Error("a range of sets");
      ranges.push([first[0][0], last[0][1]]);
    }
    return negated ? complement(ranges) : ranges;
  }

  classItem() {
    const character = this.characters[this.at++];
    return character === "\\" ? this.escape(true) : only(character);
  }
}

function only(character) {
  const code = character.codePointAt(0);
  return [[code, code]];
}

/** What the ranges leave, in order. */
function complement(ranges) {
  const found = [];
  let from = 0;
  for (const [first, last] of [...ranges].sort((one, other) => one[0] - other[0])) {
    if (first > from) found.push([from, first - 1]);
    from = Math.max(from, last + 1);
  }
  return from <= LAST ? [...found, [from, LAST]] : found;
}

/** One character of these ranges, as a JSON string writes it. */
function oneOf(ranges) {
  const escapes = ESCAPED.filter((character) => ranges.some(([first, last]) => first <= character.charCodeAt(0) && character.charCodeAt(0) <= last));
  return choice(set(complement([...complement(ranges), ...NOT_PLAIN])), ...escapes.map((character) => text(JSON.stringify(character).slice(1, -1))));
}
