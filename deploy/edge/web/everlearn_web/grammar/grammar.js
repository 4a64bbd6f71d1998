// The grammar that an answer must follow, from a chat request.

import { schemaGrammar } from "./schema.js";
import { choice, COMMON, repeat, rule, sequence, text, through, without } from "./parts.js";

export const TAG = "<tool_call>";
export const FORM = { opening: `${TAG}\n{"name": "`, middle: '", "arguments": ', closing: "}\n</tool_call>" };

const MAX_CALLS = 8; // in one answer: a small model that may repeat itself does so until it is stopped
const VALUE = "response_format.json_schema.schema";

/**
 * {rules, root, place, leftOpen} for the settings of a chat, or null where nothing binds its answer. With tools it is text
 * and then calls; with a format besides, calls or a value of that format; where a call must come, calls.
 */
export function grammarOf({ format, tools, mustCall, severalCalls }) {
  const value = mustCall ? null : valueOf(format);
  if (tools.length === 0) return value && { rules: { ...COMMON, ...value.rules }, root: value.root, place: value.place, leftOpen: value.leftOpen };
  const schemas = tools.map((tool, index) => schemaGrammar(tool.parameters, tool.place, { strict: tool.strict, prefix: `tool${index}` }));
  const calls = tools.map(({ name }, index) => sequence(text(name + FORM.middle), schemas[index].root, text(FORM.closing)));
  const rules = Object.assign({ ...COMMON, call: sequence(text(FORM.opening.slice(TAG.length)), choice(...calls)) }, value?.rules, ...schemas.map((each) => each.rules));
  const more = severalCalls ? [repeat(sequence(text(`\n${TAG}`), rule("call")), 0, MAX_CALLS - 1)] : [];
  const called = sequence(rule("call"), ...more);
  const onlyCalls = sequence(text(TAG), called);
  const root = mustCall ? onlyCalls : value ? choice(value.root, onlyCalls) : choice(without(TAG), sequence(through(TAG), called));
  return { rules, root, place: "tools", leftOpen: [value, ...schemas].flatMap((each) => each?.leftOpen ?? []) };
}

function valueOf(format) {
  if (format.type === "text") return null;
  if (format.type === "json_object") return { root: rule("object"), rules: {}, place: "response_format", leftOpen: [] };
  const { schema, strict = false } = format.json_schema;
  return { ...schemaGrammar(schema, VALUE, { strict: Boolean(strict), prefix: "value" }), place: VALUE };
}
