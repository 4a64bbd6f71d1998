// Requests of OpenAI's API: what is understood, and one clear error for the rest.

import { EverlearnError, invalid } from "./errors.js";
import { readTools } from "./tools.js";

const ROLES = ["system", "developer", "user", "assistant", "tool"];
const FORMATS = ["text", "json_object", "json_schema"];
const MAX_CHARACTERS = 1_000_000;
const MAX_INPUTS = 2048;
const NOT_HERE = {
  logprobs: "logprobs are not given",
  top_logprobs: "logprobs are not given",
  logit_bias: "logit_bias is not applied",
};
const SAMPLED = ["model", "stream", "stream_options", "temperature", "top_p", "seed", "max_tokens", "stop", "n", "user"];
const CHAT = ["messages", ...SAMPLED, "max_completion_tokens", "response_format", "tools", "tool_choice", "parallel_tool_calls"];
export const COMPLETION = ["prompt", ...SAMPLED];

/** The settings of a chat request, defaults filled in from the model's own. */
export function readChat(request, manifest) {
  known(request, CHAT);
  forThis(request.model, manifest);
  return {
    messages: readMessages(request.messages),
    ...readSampling(request, manifest, manifest.graph.context),
    format: readFormat(request.response_format ?? { type: "text" }),
    ...readTools(request),
  };
}

/** How an answer is drawn, and what ends it. most: tokens, unless the request says how many. */
export function readSampling(request, manifest, most) {
  const own = manifest.generation ?? {};
  if ((request.n ?? 1) !== 1) invalid("n", request.n, "1");
  return {
    temperature: number("temperature", request.temperature ?? own.temperature ?? 1, 0, 2),
    top_p: number("top_p", request.top_p ?? own.top_p ?? 1, 0, 1),
    top_k: own.top_k ?? 0,
    seed: whole("seed", request.seed ?? crypto.getRandomValues(new Uint32Array(1))[0], Number.MIN_SAFE_INTEGER),
    max_tokens: whole("max_tokens", request.max_completion_tokens ?? request.max_tokens ?? most, 1),
    stop: readStop(request.stop ?? []),
  };
}

/** The texts of an embeddings request. */
export function readEmbeddings(request, manifest) {
  known(request, ["input", "model", "encoding_format", "user"]);
  forThis(request.model, manifest);
  const format = request.encoding_format ?? "float";
  if (format !== "float") invalid("encoding_format", format, '"float"');
  const texts = typeof request.input === "string" ? [request.input] : request.input;
  const right = Array.isArray(texts) && texts.length > 0 && texts.length <= MAX_INPUTS && texts.every(isText);
  if (!right) invalid("input", request.input, `a text that is not empty, or up to ${MAX_INPUTS} of them`);
  return texts;
}

function readMessages(messages) {
  if (!Array.isArray(messages) || messages.length === 0) invalid("messages", messages, "a list of at least one message");
  const read = messages.map(readMessage);
  const characters = JSON.stringify(read).length;
  if (characters > MAX_CHARACTERS) invalid("messages", `${characters} characters`, `at most ${MAX_CHARACTERS}`);
  return read;
}

function readMessage({ role, content, tool_calls: calls }, index) {
  const where = `messages[${index}]`;
  if (!ROLES.includes(role)) invalid(`${where}.role`, role, ROLES.join(", "));
  const called = role === "assistant" && calls ? readCalls(calls, `${where}.tool_calls`) : [];
  const parts = typeof content === "string" ? [{ type: "text", text: content }] : called.length ? (content ?? []) : content;
  const texts = Array.isArray(parts) && parts.every((part) => part?.type === "text" && typeof part.text === "string");
  if (!texts) invalid(`${where}.content`, content, "a text, or parts of type text");
  const message = { role: role === "developer" ? "system" : role, content: parts.map((part) => part.text).join("") };
  return called.length ? { ...message, tool_calls: called } : message;
}

function readCalls(calls, where) {
  if (!Array.isArray(calls)) invalid(where, calls, "a list");
  return calls.map((call, index) => {
    const { name, arguments: text } = call?.function ?? {};
    if (typeof name !== "string" || typeof text !== "string") invalid(`${where}[${index}].function`, call?.function, "{name, arguments}, both texts");
    return { function: { name, arguments: text } };
  });
}

function readFormat(format) {
  if (!FORMATS.includes(format.type)) invalid("response_format.type", format.type, `one of ${FORMATS.join(", ")}`);
  const schema = format.json_schema?.schema;
  if (format.type === "json_schema" && (schema === null || typeof schema !== "object")) invalid("response_format.json_schema.schema", schema, "a JSON schema");
  return format;
}

function readStop(stop) {
  const all = typeof stop === "string" ? [stop] : stop;
  if (!Array.isArray(all) || all.length > 4 || !all.every(isText)) invalid("stop", stop, "a text, or up to four, none of them empty");
  return all;
}

export const isText = (value) => typeof value === "string" && value.length > 0 && value.length <= MAX_CHARACTERS;

export function known(request, names) {
  for (const name of Object.keys(request)) {
    if (request[name] === undefined || names.includes(name)) continue;
    if (NOT_HERE[name]) throw new EverlearnError("unsupported", `${name}: ${NOT_HERE[name]}`);
    throw new EverlearnError("invalid_input", `${name} is not known here; these are: ${names.join(", ")}`);
  }
}

export function forThis(model, manifest) {
  if (model !== undefined && model !== manifest.model) invalid("model", model, `${manifest.model}, or nothing`);
}

function number(name, value, least, most) {
  if (typeof value !== "number" || !(value >= least && value <= most)) invalid(name, value, `a number from ${least} to ${most}`);
  return value;
}

export function whole(name, value, least) {
  if (!Number.isSafeInteger(value) || value < least) invalid(name, value, `a whole number${least > 0 ? ` of at least ${least}` : ""}`);
  return value;
}
