// Extractive question answering: a long text is read in windows that overlap, and the likeliest span is the answer. As
// serve.engines.onnx.encoders.extraction.

import { EverlearnError } from "../errors.js";

const OVERLAP = 128; // tokens of a window with the next one, at most half of it
const MAX_WINDOWS = 64;

/** The context's windows, each behind the question: {ids, types, pieces}. Throws "context_length_exceeded". */
export function windowsOf(tokenizer, question, context, most) {
  const asked = tokenizer.pieces(question);
  const marks = tokenizer.withMarks([], []).ids.length;
  const room = most - asked.length - marks;
  if (room < Math.floor(most / 4)) throw new EverlearnError("context_length_exceeded", `inputs.question has ${asked.length} tokens, and the model reads ${most}: shorten it`);
  const read = tokenizer.pieces(context);
  const step = room - Math.min(OVERLAP, Math.floor(room / 2));
  const count = Math.max(1, Math.ceil((read.length - (room - step)) / step));
  if (count > MAX_WINDOWS) throw new EverlearnError("context_length_exceeded", `inputs.context has ${read.length} tokens, which are ${count} windows; at most ${MAX_WINDOWS} are read`);
  return Array.from({ length: count }, (_, index) => tokenizer.withMarks(asked, read.slice(index * step, index * step + room)));
}

/** The `most` likeliest spans, each place once; longest: tokens of one. Scores: products of probabilities. */
export function answers(context, windows, computed, { most, longest }) {
  const found = new Map();
  for (const [index, { pieces }] of windows.entries()) {
    const inside = pieces.map((piece) => piece?.second === true);
    const [starts, ends] = computed[index].map((logits) => probabilities(logits, inside));
    for (const { start, end, score } of likeliest(starts, ends, inside, most, longest)) {
      const place = `${pieces[start].start},${pieces[end].end}`;
      found.set(place, Math.max(found.get(place) ?? 0, score));
    }
  }
  const best = [...found].sort(([, one], [, other]) => other - one).slice(0, most);
  return best.map(([place, score]) => {
    const [start, end] = place.split(",").map(Number);
    return { answer: context.slice(start, end), score, start, end };
  });
}

function likeliest(starts, ends, inside, most, longest) {
  const spans = [];
  for (let start = 0; start < starts.length; start++) {
    for (let end = start; inside[start] && inside[end] && end < start + longest; end++) spans.push({ start, end, score: starts[start] * ends[end] });
  }
  return spans.sort((one, other) => other.score - one.score).slice(0, most);
}

/** Of each token of a window to be the place; none outside the context. */
function probabilities(logits, inside) {
  const largest = logits.reduce((so_far, logit, at) => (inside[at] ? Math.max(so_far, logit) : so_far), -Infinity);
  const powers = Array.from(logits, (logit, at) => (inside[at] ? Math.exp(logit - largest) : 0));
  const sum = powers.reduce((so_far, power) => so_far + power, 0);
  return powers.map((power) => power / sum);
}
