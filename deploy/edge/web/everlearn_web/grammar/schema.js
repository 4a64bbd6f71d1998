// JSON schemas as grammars whose every text is a valid value.

import { EverlearnError } from "../errors.js";
import { decimals, integers } from "./numbers.js";
import { CHARACTER, choice, repeat, rule, sequence, spaced, text } from "./parts.js";
import { pattern } from "./pattern.js";

const MAX_BYTES = 128 * 1024;
const MAX_DEPTH = 64;
const MAX_COUNT = 1_000_000;
const ANNOTATIONS = new Set(["$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"]);
const BOUNDS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
const KEYWORDS = {
  string: ["minLength", "maxLength", "pattern", "format"],
  integer: BOUNDS,
  number: BOUNDS,
  array: ["items", "prefixItems", "additionalItems", "minItems", "maxItems"],
  object: ["properties", "required", "additionalProperties"],
  boolean: [],
  null: [],
};
const KNOWN = new Set(["type", ...Object.values(KEYWORDS).flat()]);
const DATE = "\\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))";
const TIME = "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)";
const FORMATS = {
  date: DATE,
  time: TIME,
  "date-time": `${DATE}T${TIME}`,
  email: "[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*@[A-Za-z0-9]+(-[A-Za-z0-9]+)*(\\.[A-Za-z0-9]+(-[A-Za-z0-9]+)*)+",
  ipv4: "((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)",
  uuid: "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
};

/**
 * {root, rules, leftOpen} of a schema, the value of the request's field `place`: a part, {name: part} for rules whose
 * names begin with `prefix`, and the places of what a grammar cannot enforce. It allows less than the schema does where
 * that is simpler, and never more but in those places. Throws "invalid_input" for a schema that means nothing, or too
 * large; where `strict`, "unsupported" for one that cannot be enforced as it is.
 */
export function schemaGrammar(schema, place, { strict, prefix }) {
  const bytes = new TextEncoder().encode(JSON.stringify(schema)).length;
  if (bytes > MAX_BYTES) throw new EverlearnError("invalid_input", `${place} has ${bytes} bytes; a schema may have at most ${MAX_BYTES}`);
  const converter = new Converter(schema, place, prefix);
  const root = converter.schema(schema, place, 0);
  const leftOpen = [...new Set(converter.leftOpen)];
  if (strict && leftOpen.length) throw new EverlearnError("unsupported", `A grammar cannot enforce ${leftOpen[0]}; leave it out, or leave out strict, so that it is left open.`);
  return { root, rules: converter.rules, leftOpen };
}

class Converter {
  constructor(document, place, prefix) {
    this.document = document;
    this.place = place;
    this.prefix = prefix;
    this.rules = {};
    this.names = 0;
    this.leftOpen = [];
    this.references = new Map(); // pointer -> name of a rule
  }

  /** `part` under a name of its own, so that it may stand in several places. */
  named(part, name = this.name()) {
    this.rules[name] = part;
    return rule(name);
  }

  name() {
    this.names += 1;
    return `${this.prefix}_${this.names}`;
  }

  /** The part that a schema is. */
  schema(schema, place, depth) {
    if (depth > MAX_DEPTH) refuse(place, `is nested more than ${MAX_DEPTH} levels deep`);
    if (schema === true) return rule("value");
    if (schema === false) refuse(place, "is false, and so admits no value");
    if (!isObject(schema)) refuse(place, "must be an object, or true");
    const keys = Object.keys(schema).filter((key) => !ANNOTATIONS.has(key) && schema[key] !== undefined);
    const leave = (...used) => keys.filter((key) => !used.includes(key)).forEach((key) => this.leftOpen.push(`${place}.${key}`));
    if (keys.includes("$ref")) {
      leave("$ref");
      return this.reference(schema.$ref, `${place}.$ref`, depth);
    }
    if (keys.includes("const") || keys.includes("enum")) {
      leave("const", "enum", "type");
      return this.enumeration(schema, place);
    }
    for (const either of ["anyOf", "oneOf"]) {
      if (!keys.includes(either)) continue;
      leave("anyOf", "type"); // of oneOf it stays open that no second one may fit
      return choice(...list(schema[either], `${place}.${either}`).map((each, index) => this.schema(typed(each, schema.type), `${place}.${either}[${index}]`, depth + 1)));
    }
    if (keys.includes("allOf") && keys.length === 1 && schema.allOf?.length === 1) return this.schema(schema.allOf[0], `${place}.allOf[0]`, depth + 1);
    leave(...KNOWN);
    const types = [schema.type ?? inferred(keys)].flat();
    const parts = types.map((type) => {
      if (!Object.hasOwn(KEYWORDS, type)) refuse(`${place}.type`, `is ${JSON.stringify(type)}; it must be one of ${Object.keys(KEYWORDS).join(", ")}`);
      return this[type](schema, place, depth);
    });
    return parts.length ? choice(...parts) : rule("value");
  }

  reference(pointer, place, depth) {
    if (typeof pointer !== "string" || !/^#($|\/)/.test(pointer)) refuse(place, `is ${JSON.stringify(pointer)}; it must point into the schema: "#/$defs/name"`);
    if (this.references.has(pointer)) return rule(this.references.get(pointer));
    let target = this.document;
    for (const part of pointer.split("/").slice(1)) {
      const key = decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
      if (!isObject(target) && !Array.isArray(target)) target = undefined;
      else target = Object.hasOwn(target, key) ? target[key] : undefined;
    }
    if (target === undefined) refuse(place, `is ${pointer}, and nothing is there`);
    const name = this.name();
    this.references.set(pointer, name);
    return this.named(this.schema(target, `${this.place}${pointer.slice(1).replaceAll("/", ".")}`, depth + 1), name);
  }

  enumeration(schema, place) {
    const values = "const" in schema ? [schema.const] : list(schema.enum, `${place}.enum`);
    const types = schema.type === undefined ? null : [schema.type].flat();
    const right = values.filter((value) => !types || types.some((type) => isOf(value, type)));
    if (right.length === 0) refuse(place, "has no value of its type");
    return choice(...right.map((value) => text(spaced(value))));
  }

  string(schema, place) {
    const said = KEYWORDS.string.filter((key) => schema[key] !== undefined);
    const inside = said.length ? this.inside(schema, place, said) : null;
    return inside ? sequence(text('"'), inside, text('"')) : rule("string");
  }

  /** What stands between the quotes, or null for anything. Of a pattern, a format and lengths the first is enforced. */
  inside(schema, place, said) {
    const leave = (...keys) => keys.filter((key) => said.includes(key)).forEach((key) => this.leftOpen.push(`${place}.${key}`));
    if (said.includes("pattern")) {
      leave("format", "minLength", "maxLength");
      if (typeof schema.pattern !== "string") refuse(`${place}.pattern`, "must be a text");
      try {
        return pattern(schema.pattern);
      } catch (error) {
        if (error instanceof SyntaxError) refuse(`${place}.pattern`, `is no regular expression: ${error.message}`);
        leave("pattern");
        return null;
      }
    }
    if (said.includes("format")) {
      if (!Object.hasOwn(FORMATS, schema.format)) leave("format");
      else {
        leave("minLength", "maxLength");
        return pattern(`^(${FORMATS[schema.format]})$`);
      }
    }
    const [least, most] = counts(schema, place, "minLength", "maxLength");
    return least || most !== undefined ? repeat(CHARACTER, least, most) : null;
  }

  integer(schema, place) {
    const bounds = numbers(schema, place);
    if (Object.keys(bounds).length === 0) return rule("integer");
    return integers(bounds) ?? refuse(place, "admits no integer");
  }

  number(schema, place) {
    const bounds = numbers(schema, place);
    if (Object.keys(bounds).length === 0) return rule("number");
    const found = decimals(bounds);
    if (found === undefined) {
      this.leftOpen.push(...Object.keys(bounds).map((key) => `${place}.${key}`));
      return rule("number");
    }
    return found ?? refuse(place, "admits no number of a few decimals");
  }

  boolean() {
    return rule("boolean");
  }

  null() {
    return rule("null");
  }

  array(schema, place, depth) {
    const [least, most] = counts(schema, place, "minItems", "maxItems");
    const tuple = Array.isArray(schema.items); // as schemas wrote prefixItems until 2019
    const first = schema.prefixItems ?? (tuple ? schema.items : []);
    const rest = (tuple ? schema.additionalItems : schema.items) ?? true;
    const before = list(first, `${place}.prefixItems`, 0).map((each, index) => this.schema(each, `${place}.${tuple ? "items" : "prefixItems"}[${index}]`, depth + 1));
    const closed = rest === false || (before.length > 0 && least <= before.length); // no more than the first ones
    if (before.length > (most ?? Infinity) || (rest === false && before.length < least)) refuse(place, "has bounds that no list keeps");
    const comma = text(", ");
    const written = before.flatMap((each, index) => (index ? [comma, each] : [each]));
    if (closed) return sequence(text("["), ...written, text("]"));
    if (most === 0) return text("[]");
    const item = this.named(this.schema(rest, `${place}.items`, depth + 1));
    const more = (least, most) => repeat(sequence(comma, item), least, most);
    if (before.length) return sequence(text("["), ...written, more(least - before.length, most && most - before.length), text("]"));
    const filled = sequence(text("["), item, more(Math.max(least - 1, 0), most && most - 1), text("]"));
    return least ? filled : choice(text("[]"), filled);
  }

  /** An object whose properties are given has no others: a grammar cannot keep a name from coming twice. */
  object(schema, place, depth) {
    const others = schema.additionalProperties ?? true;
    const properties = new Map(Object.entries(object(schema.properties ?? {}, `${place}.properties`)));
    const required = new Set(list(schema.required ?? [], `${place}.required`, 0));
    for (const name of required) {
      if (typeof name !== "string") refuse(`${place}.required`, "must be a list of names");
      if (!properties.has(name)) properties.set(name, others);
      if (properties.get(name) === false) refuse(`${place}.required`, `names ${JSON.stringify(name)}, which has no value that is allowed`);
    }
    if (properties.size === 0) {
      if (others === false) return text("{}");
      const pair = this.named(sequence(rule("string"), text(": "), this.schema(others, `${place}.additionalProperties`, depth + 1)));
      return choice(text("{}"), sequence(text("{"), pair, repeat(sequence(text(", "), pair)), text("}")));
    }
    const members = [...properties].filter(([, value]) => value !== false).map(([name, value]) => ({
      pair: sequence(text(`${JSON.stringify(name)}: `), this.schema(value, `${place}.properties.${name}`, depth + 1)),
      needed: required.has(name),
    }));
    return sequence(text("{"), ...this.members(members), text("}"));
  }

  /** In their order; those that are not needed may be left out. The first that comes has no comma before it. */
  members(members) {
    const first = members.findIndex(({ needed }) => needed);
    const later = ({ pair, needed }) => (needed ? sequence(text(", "), pair) : repeat(sequence(text(", "), pair), 0, 1));
    if (first >= 0) return [...members.slice(0, first).map(({ pair }) => repeat(sequence(pair, text(", ")), 0, 1)), members[first].pair, ...members.slice(first + 1).map(later)];
    let after = text("");
    const begun = [...members].reverse().map(({ pair }) => {
      const [its, rest] = [this.named(pair), after];
      after = this.named(sequence(repeat(sequence(text(", "), its), 0, 1), rest));
      return sequence(its, rest);
    });
    return [choice(text(""), ...begun)];
  }
}

function refuse(place, why) {
  throw new EverlearnError("invalid_input", `${place} ${why}`);
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function object(value, place) {
  return isObject(value) ? value : refuse(place, "must be an object");
}

function list(value, place, least = 1) {
  return Array.isArray(value) && value.length >= least ? value : refuse(place, `must be a list${least ? " that is not empty" : ""}`);
}

function typed(schema, type) {
  return type === undefined || !isObject(schema) || "type" in schema || "$ref" in schema ? schema : { ...schema, type };
}

/** The types that keywords speak of: a schema that says none admits others too, and less is simpler. */
function inferred(keys) {
  const types = Object.keys(KEYWORDS).filter((type) => type !== "integer" && KEYWORDS[type].some((key) => keys.includes(key)));
  return types;
}

function isOf(value, type) {
  if (type === "integer") return Number.isInteger(value);
  if (type === "array") return Array.isArray(value);
  if (type === "object") return isObject(value);
  return type === (value === null ? "null" : typeof value);
}

function numbers(schema, place) {
  const said = BOUNDS.filter((key) => schema[key] !== undefined);
  for (const key of said) if (!Number.isFinite(schema[key])) refuse(`${place}.${key}`, "must be a number");
  return Object.fromEntries(said.map((key) => [key, schema[key]]));
}

function counts(schema, place, ...keys) {
  const [least = 0, most] = keys.map((key) => {
    const value = schema[key];
    if (value !== undefined && !(Number.isSafeInteger(value) && value >= 0 && value <= MAX_COUNT)) refuse(`${place}.${key}`, `must be a whole number from 0 to ${MAX_COUNT}`);
    return value;
  });
  if (most < least) refuse(place, `has a ${keys[0]} of ${least} and a ${keys[1]} of ${most}`);
  return [least, most];
}
