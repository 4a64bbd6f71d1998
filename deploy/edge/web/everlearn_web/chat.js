// The answer to a chat, piece by piece.

import { EverlearnError } from "./errors.js";
import { random, sample } from "./sampling.js";
import { ToolCalls } from "./tool_calls.js";
import { encodeChat, TextStream } from "./tokenizer.js";

/**
 * Generates until an end token, a stop text, the end of what `constraint` allows, or `max_tokens`. `between()` is awaited
 * between two steps, and may throw to stop; `told(delta)` gets the answer as it comes: {content} or {tool_calls}. Returns
 * {finish_reason, usage, timings}.
 */
export async function answer(model, settings, constraint, { told, between }) {
  const { tokenizer, template, manifest } = model;
  const ids = encodeChat(tokenizer, template, settings.messages, settings.tools);
  const { context } = manifest.graph;
  if (ids.length >= context) {
    throw new EverlearnError("context_length_exceeded", `messages have ${ids.length} tokens, and the model's context has ${context}: shorten them`);
  }
  return generate(model, ids, Math.min(settings.max_tokens, context - ids.length), settings, constraint, { told, between });
}

/** The same of a prompt's `ids`, to which the answer's are added: at most `most`. */
export async function generate({ decoder, tokenizer, manifest }, ids, most, settings, constraint, { told, between }) {
  const ends = new Set(manifest.generation?.eos_token_ids ?? []);
  const next = random(settings.seed);
  const text = new TextStream(tokenizer);
  const reading = new Reading(settings, told);
  const begun = performance.now();
  let logits = await decoder.prompt(ids, between);
  const first = performance.now();
  let count = 0;
  let reason = "length";
  for (;;) {
    if (constraint?.isOver) reason = "stop";
    if (reason === "stop" || count === most) break;
    if (count) logits = await decoder.step([ids.at(-1)]);
    const id = sample(logits, settings, next, constraint?.allowed());
    count += 1;
    if (ends.has(id) || reading.push(text.push(id))) reason = "stop";
    else constraint?.accept(id);
    ids.push(id);
    await between();
  }
  const finish_reason = reading.end(text.end(), reason);
  const last = performance.now();
  const read = ids.length - count;
  return {
    finish_reason,
    usage: { prompt_tokens: read, completion_tokens: count, total_tokens: ids.length },
    timings: { prompt_ms: first - begun, predicted_ms: last - first, predicted_per_second: count > 1 ? ((count - 1) * 1000) / (last - first) : 0 },
  };
}

/** Tells text and calls apart; stop texts are looked for in text alone. */
class Reading {
  constructor({ stop, tools }, told) {
    this.stops = new StopTexts(stop, (content) => told({ content }));
    if (tools.length === 0) return;
    const call = (part) => {
      this.stops.flush();
      told({ tool_calls: [part] });
    };
    this.calls = new ToolCalls(tools.map(({ name }) => name), { text: (piece) => this.stops.found || this.stops.push(piece), call });
  }

  /** Whether a stop text is there. */
  push(piece) {
    if (this.calls) this.calls.push(piece);
    else this.stops.push(piece);
    return this.stops.found;
  }

  /** The finish reason of an answer that ends with `piece`, by itself ("stop") or cut ("length"). */
  end(piece, reason) {
    if (this.stops.found) return "stop";
    this.push(piece);
    const called = this.calls?.end(reason === "length");
    if (this.stops.found) return "stop";
    this.stops.flush();
    return called ? "tool_calls" : reason;
  }
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

  /** What was kept back is text. */
  flush() {
    this.#tell(this.kept.length);
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
