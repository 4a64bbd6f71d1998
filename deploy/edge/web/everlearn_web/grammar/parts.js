// What grammars are made of: plain objects, which automaton.js turns into states.

/** A text as it is. */
export const text = (string) => ({ bytes: new TextEncoder().encode(string) });

/** One character of these ranges of code points: [[first, last], …]. */
export const set = (ranges) => ({ ranges });

export const sequence = (...parts) => ({ sequence: parts });

export const choice = (...parts) => ({ choice: parts });

export const repeat = (part, least = 0, most = Infinity) => ({ repeat: part, least, most });

export const optional = (part) => repeat(part, 0, 1);

/** What the rule of this name says. */
export const rule = (name) => ({ rule: name });

/** Any text up to the first `tag`, and the tag. */
export const through = (tag) => ({ through: new TextEncoder().encode(tag) });

/** Any text without `tag`. */
export const without = (tag) => ({ without: new TextEncoder().encode(tag) });

const LAST = 0x10ffff;
export const DIGIT = set([[0x30, 0x39]]);
const HEX = set([[0x30, 0x39], [0x41, 0x46], [0x61, 0x66]]);
const PLAIN_RANGES = [[0x20, 0x21], [0x23, 0x5b], [0x5d, 0xd7ff], [0xe000, LAST]];
const one = (characters) => set(Array.from(characters, (character) => [character.codePointAt(0), character.codePointAt(0)]));
const notSurrogate = choice(sequence(one("0123456789ABCEFabcef"), HEX), sequence(one("Dd"), one("01234567")));

/** A character in a JSON string, escaped or not: never half of one, so that each counts. */
export const CHARACTER = choice(set(PLAIN_RANGES), sequence(text("\\"), choice(one('"\\/bfnrt'), sequence(text("u"), notSurrogate, HEX, HEX))));

const listed = (open, item, close) => choice(text(open + close), sequence(text(open), item, repeat(sequence(text(", "), item)), text(close)));
const whole = choice(text("0"), sequence(set([[0x31, 0x39]]), repeat(DIGIT, 0, 14)));

/**
 * Rules that every grammar may name. A value is written in one way: on one line, as Python's `json.dumps` does. Numbers
 * have no exponent and at most 15 digits on each side of the point, so that a double holds them.
 */
export const COMMON = {
  string: sequence(text('"'), repeat(CHARACTER), text('"')),
  integer: choice(text("0"), sequence(optional(text("-")), set([[0x31, 0x39]]), repeat(DIGIT, 0, 14))),
  number: sequence(optional(text("-")), whole, optional(sequence(text("."), repeat(DIGIT, 1, 15)))),
  boolean: choice(text("true"), text("false")),
  null: text("null"),
  array: listed("[", rule("value"), "]"),
  object: listed("{", sequence(rule("string"), text(": "), rule("value")), "}"),
  value: choice(...["object", "array", "string", "number", "boolean", "null"].map(rule)),
};

/** JSON on one line, as a grammar has it. */
export function spaced(value) {
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${spaced(each)}`).join(", ")}}`;
}
