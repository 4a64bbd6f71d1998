// The tools of a chat request, and how a model whose template knows none is told of them.

import { invalid } from "./errors.js";
import { spaced } from "./grammar/parts.js";
import { FORM } from "./grammar/grammar.js";

const MAX_TOOLS = 128;
const NAME = /^[A-Za-z0-9_.-]{1,64}$/;
const VALUES = ["array", "boolean", "integer", "null", "number", "string"];
const CHOICES = ["none", "auto", "required"];
const PROMPT = (signatures) => `You can call functions. Their signatures, as JSON, one a line:
<tools>
${signatures}
</tools>
To call a function, answer with its name and arguments as JSON between tags:
<tool_call>
{"name": "function_name", "arguments": {"argument": "value"}}
</tool_call>`;

/** {tools: those that this answer may call, mustCall, severalCalls}. */
export function readTools({ tools, tool_choice: said, parallel_tool_calls: several = true }) {
  const all = tools ?? [];
  if (!Array.isArray(all) || all.length > MAX_TOOLS) invalid("tools", tools, `a list of at most ${MAX_TOOLS}`);
  const read = all.map(readTool);
  if (new Set(read.map(({ name }) => name)).size !== read.length) invalid("tools", read.map(({ name }) => name), "functions that each have a name of their own");
  if (typeof several !== "boolean") invalid("parallel_tool_calls", several, "true or false");
  const named = said?.type === "function" ? said.function?.name : undefined;
  if (said !== undefined && said !== null && !CHOICES.includes(said) && typeof named !== "string") invalid("tool_choice", said, `one of ${CHOICES.join(", ")}, or a function of tools`);
  if (named !== undefined && !read.some(({ name }) => name === named)) invalid("tool_choice", named, "a function that is in tools");
  if (said === "required" && read.length === 0) invalid("tool_choice", said, "used with tools");
  const offered = said === "none" ? [] : read.filter(({ name }) => named === undefined || name === named);
  return { tools: offered, mustCall: named !== undefined || said === "required", severalCalls: several && named === undefined };
}

function readTool(tool, index) {
  const place = `tools[${index}]`;
  if (tool?.type !== "function") invalid(`${place}.type`, tool?.type, '"function"');
  const { name, description, parameters, strict = false } = tool.function ?? {};
  if (typeof name !== "string" || !NAME.test(name)) invalid(`${place}.function.name`, name, "up to 64 letters, digits, dots, dashes and underscores");
  if (description !== undefined && typeof description !== "string") invalid(`${place}.function.description`, description, "a text");
  const given = parameters ?? {};
  if (typeof given !== "object" || Array.isArray(given)) invalid(`${place}.function.parameters`, given, "a JSON schema");
  if (VALUES.includes(given.type)) invalid(`${place}.function.parameters.type`, given.type, '"object": a function\'s arguments are one');
  const says = ["type", "$ref", "allOf", "anyOf", "oneOf", "enum", "const"].some((key) => key in given);
  const { strict: _, ...signature } = tool.function;
  return { name, strict: Boolean(strict), parameters: says ? given : { type: "object", ...given }, signature: { type: "function", function: signature }, place: `${place}.function.parameters` };
}

/** Messages as a template takes them: arguments as objects; as texts, with the tools, where the template knows no tools. */
export function withTools(messages, tools, knowsTools) {
  const plain = messages.map((message) => plainMessage(message, knowsTools));
  if (tools.length === 0 || knowsTools) return plain;
  const prompt = PROMPT(tools.map(({ signature }) => spaced(signature.function)).join("\n"));
  const [first, ...rest] = plain;
  if (first.role === "system") return [{ ...first, content: `${first.content}\n\n${prompt}` }, ...rest];
  return [{ role: "system", content: prompt }, ...plain];
}

function plainMessage({ role, content, tool_calls: calls }, knowsTools) {
  if (calls?.length) {
    const functions = calls.map(({ function: { name, arguments: text } }) => ({ name, arguments: parsed(text) }));
    if (knowsTools) return { role, content, tool_calls: functions.map((each) => ({ type: "function", function: each })) };
    const written = functions.map((each) => `${FORM.opening}${each.name}${FORM.middle}${spaced(each.arguments)}${FORM.closing}`).join("\n");
    return { role, content: content ? `${content}\n${written}` : written };
  }
  if (role === "tool" && !knowsTools) return { role: "user", content: `<tool_response>\n${content}\n</tool_response>` };
  return { role, content };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
