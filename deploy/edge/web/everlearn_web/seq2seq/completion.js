// The answer of an encoder-decoder to a source, piece by piece, as the server's /v1/completions gives it.

import { EverlearnError, invalid } from "../errors.js";
import { generate } from "../chat.js";
import { COMPLETION, isText, known, forThis, readSampling } from "../request.js";

const MAX_TOKENS = 16; // OpenAI's default

/** As chat.answer: `told` gets {content}, and {finish_reason, usage, timings} is returned. */
export async function complete(model, request, { told, between }) {
  const { manifest, tokenizer } = model;
  known(request, COMPLETION);
  forThis(request.model, manifest);
  if (!isText(request.prompt)) invalid("prompt", request.prompt, "one text that is not empty");
  const settings = { ...readSampling(request, manifest, MAX_TOKENS), tools: [] };
  const ids = tokenizer.encode(request.prompt);
  const { context, first } = manifest.graph;
  if (ids.length > context) throw new EverlearnError("context_length_exceeded", `prompt has ${ids.length} tokens, and the model reads ${context}: shorten it`);
  const longest = context - first.length + 1; // the last one is not read
  if (settings.max_tokens > longest) throw new EverlearnError("context_length_exceeded", `max_tokens is ${settings.max_tokens}, and the model's answers have at most ${longest}`);
  return generate(model, ids, settings.max_tokens, settings, null, { told: withoutFirstSpace(told), between });
}

/** Tokenizers that mark words by the space before them write one before a text's first word as well. */
function withoutFirstSpace(told) {
  let begun = false;
  return ({ content }) => {
    const text = begun ? content : content.replace(/^ /, "");
    begun = true;
    if (text) told({ content: text });
  };
}
