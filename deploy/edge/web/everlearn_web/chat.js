// The answer to a chat, piece by piece.

import { EverlearnError } from "./errors.js";
import { random, sample } from "./sampling.js";
import { encodeChat, TextStream } from "./tokenizer.js";

/**
 * Generates until an end token, a stop text, or `max_tokens`. `between()` is awaited between two steps, and may throw to
 * stop; `told(text)` gets the answer as it comes. Returns {finish_reason, usage, timings}.
 */
export async function answer({ decoder, tokenizer, template, manifest }, settings, { told, between }) {
  const ids = encodeChat(tokenizer, template, settings.messages);
  const { context } = manifest.graph;
  if (ids.length >= context) {
    throw new EverlearnError("context_length_exceeded", `messages have ${ids.length} tokens, and the model's context has ${context}: shorten them`);
  }
  const most = Math.min(settings.max_tokens, context - ids.length);
  const ends = new Set(manifest.generation?.eos_token_ids ?? []);
  const next = random(settings.seed);
  const text = new TextStream(tokenizer);
  const stops = new StopTexts(settings.stop, told);
  const begun = performance.now();
  let logits = await decoder.prompt(ids, between);
  const first = performance.now();
  let count = 0;
  let finish_reason = "length";
  while (count < most) {
    const id = sample(logits, settings, next);
    count += 1;
    if (ends.has(id) || stops.push(text.push(id))) {
      finish_reason = "stop";
      break;
    }
    await between();
    if (count < most) logits = await decoder.step([id]);
  }
  if (!stops.found) stops.end(text.end());
  const last = performance.now();
  return {
    finish_reason,
    usage: { prompt_tokens: ids.length, completion_tokens: count, total_tokens: ids.length + count },
    timings: { prompt_ms: first - begun, predicted_ms: last - first, predicted_per_second: count > 1 ? ((count - 1) * 1000) / (last - first) : 0 },
  };
}

/** Passes text on, except the first stop text and what follows; keeps back what may become one. */
class StopTexts {
  constructor(stops, told) {
    this.stops = stops;
    this.told = told;
    this.kept = "";
    this.found = false;
  }

  /** Whether a stop text is there. */
  push(text) {
    this.kept += text;
    const places = this.stops.map((stop) => this.kept.indexOf(stop)).filter((place) => place >= 0);
    this.found = places.length > 0;
    this.#tell(this.found ? Math.min(...places) : this.kept.length - this.#begun());
    return this.found;
  }

  end(text) {
    if (!this.push(text)) this.#tell(this.kept.length);
  }

  #tell(length) {
    if (length > 0) this.told(this.kept.slice(0, length));
    this.kept = this.kept.slice(length);
  }

  /** How many characters at the end begin a stop text. */
  #begun() {
    const lengths = this.stops.flatMap((stop) => Array.from({ length: stop.length - 1 }, (_, index) => index + 1).filter((length) => this.kept.endsWith(stop.slice(0, length))));
    return Math.max(0, ...lengths);
  }
}
