// Labels of texts and tokens, scores of pairs, answers in a text: what an encoder with a head says, as the server answers.

import { EverlearnError } from "../errors.js";
import { encode, OUTPUTS } from "../session.js";
import { entities } from "./entities.js";
import { answers, windowsOf } from "./extraction.js";
import { readAnswer, readClassify, readRerank, readScore, readTokenClassify } from "./requests.js";

/** By method: the task whose models answer it, and how. answer(asking, request) */
export const HEADS = {
  classify: { task: "classify", answer: classify },
  score: { task: "score", answer: score },
  rerank: { task: "score", answer: rerank },
  tokenClassify: { task: "token_classify", answer: tokenClassify },
  answer: { task: "question_answer", answer: question },
};

/** One request to `model`. `between()` is awaited after each text, and may throw to stop. */
export class Asking {
  constructor(model, between) {
    this.model = model;
    this.between = between;
    this.tokens = 0;
  }

  /** What the graph says of a text, or of a pair: an array of numbers by each output. Throws "context_length_exceeded". */
  async compute({ ids, types }, name) {
    const { runtime, session, manifest } = this.model;
    const most = manifest.graph.context;
    if (ids.length > most) throw new EverlearnError("context_length_exceeded", `${name} has ${ids.length} tokens, and the model reads ${most}: shorten it`);
    const said = await encode(runtime.ort, session, OUTPUTS[manifest.task], ids, types);
    this.tokens += ids.length;
    await this.between();
    return said;
  }

  async scores(pairs, name) {
    const found = [];
    for (const [index, [first, second]] of pairs.entries()) {
      const [logits] = await this.compute(this.model.tokenizer.encodePair(first, second), `${name}[${index}]`);
      found.push(sigmoid(logits[0]));
    }
    return found;
  }

  get usage() {
    return { prompt_tokens: this.tokens, total_tokens: this.tokens };
  }

  list(prefix, data) {
    return { ...this.head(prefix), object: "list", created: Math.floor(Date.now() / 1000), data, usage: this.usage };
  }

  head(prefix) {
    return { id: `${prefix}-${crypto.randomUUID()}`, model: this.model.manifest.model };
  }
}

async function classify(asking, request) {
  const { manifest, tokenizer } = asking.model;
  const { labels, multi_label } = manifest.graph;
  const data = [];
  for (const [index, text] of readClassify(request, manifest).texts.entries()) {
    const [logits] = await asking.compute(tokenizer.encodePair(text), `input[${index}]`);
    const probs = multi_label || labels.length === 1 ? Array.from(logits, sigmoid) : softmax(logits);
    data.push({ index, label: labels[probs.indexOf(Math.max(...probs))], probs, num_classes: labels.length });
  }
  return asking.list("classify", data);
}

async function score(asking, request) {
  const scores = await asking.scores(readScore(request, asking.model.manifest).pairs, "text_2");
  return asking.list("score", scores.map((one, index) => ({ index, object: "score", score: one })));
}

/** The most relevant first, and of equals the one that was named first. */
async function rerank(asking, request) {
  const { query, documents, most, returned } = readRerank(request, asking.model.manifest);
  const scores = await asking.scores(documents.map((one) => [query, one]), "documents");
  const order = scores.map((_, index) => index).sort((one, other) => scores[other] - scores[one] || one - other);
  const results = order.slice(0, most).map((index) => ({ index, ...(returned && { document: { text: documents[index] } }), relevance_score: scores[index] }));
  return { ...asking.head("rerank"), usage: asking.usage, results };
}

async function tokenClassify(asking, request) {
  const { manifest, tokenizer } = asking.model;
  const { labels } = manifest.graph;
  const { texts, several, simple, ignored } = readTokenClassify(request, manifest);
  const found = [];
  for (const [index, text] of texts.entries()) {
    const read = tokenizer.withMarks(tokenizer.pieces(text));
    const [logits] = await asking.compute(read, `inputs[${index}]`);
    const rows = read.ids.map((_, at) => softmax(logits.subarray(at * labels.length, (at + 1) * labels.length)));
    found.push(entities(text, read.pieces, rows, labels, { simple, ignored }));
  }
  return several ? found : found[0];
}

async function question(asking, request) {
  const { manifest, tokenizer } = asking.model;
  const { question, context, most, longest } = readAnswer(request, manifest);
  const windows = windowsOf(tokenizer, question, context, manifest.graph.context);
  const computed = [];
  for (const window of windows) computed.push(await asking.compute(window, "inputs"));
  const found = answers(context, windows, computed, { most, longest });
  return most > 1 ? found : found[0];
}

const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

/** Probabilities of one row of logits. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((so_far, power) => so_far + power, 0);
  return powers.map((power) => power / sum);
}
