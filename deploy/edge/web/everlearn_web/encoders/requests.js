// What encoders with a head are asked, in the words of the server's routes.

import { invalid } from "../errors.js";
import { forThis, isText, known, whole } from "../request.js";

const MAX_TEXTS = 2048;
const MAX_DOCUMENTS = 1024;
const STRATEGIES = ["none", "simple"];

/** /classify: {texts}. */
export function readClassify(request, manifest) {
  known(request, ["input", "model", "user"]);
  forThis(request.model, manifest);
  return { texts: texts("input", request.input, MAX_TEXTS) };
}

/** /score: {pairs}. */
export function readScore(request, manifest) {
  known(request, ["text_1", "text_2", "model", "user"]);
  forThis(request.model, manifest);
  const first = texts("text_1", request.text_1, MAX_TEXTS);
  const second = texts("text_2", request.text_2, MAX_TEXTS);
  if (first.length !== 1 && first.length !== second.length) invalid("text_1", `${first.length} texts`, `one text, or ${second.length}, as many as text_2 has`);
  return { pairs: second.map((text, index) => [first.length === 1 ? first[0] : first[index], text]) };
}

/** /rerank: {query, documents, most, returned}. */
export function readRerank(request, manifest) {
  known(request, ["query", "documents", "top_n", "return_documents", "model", "user"]);
  forThis(request.model, manifest);
  if (!isText(request.query)) invalid("query", request.query, "a text that is not empty");
  if (!Array.isArray(request.documents)) invalid("documents", request.documents, "a list of texts");
  const documents = texts("documents", request.documents.map((one) => one?.text ?? one), MAX_DOCUMENTS);
  return { query: request.query, documents, most: whole("top_n", request.top_n ?? 0, 0) || documents.length, returned: request.return_documents ?? true };
}

/** Hugging Face's token classification: {texts, several, simple, ignored}. */
export function readTokenClassify(request, manifest) {
  const parameters = readTask(request, manifest, ["aggregation_strategy", "ignore_labels"]);
  const strategy = parameters.aggregation_strategy ?? "simple";
  if (!STRATEGIES.includes(strategy)) invalid("parameters.aggregation_strategy", strategy, STRATEGIES.join(" or "));
  const ignored = parameters.ignore_labels ?? ["O"];
  if (!Array.isArray(ignored)) invalid("parameters.ignore_labels", ignored, "a list of labels");
  return { texts: texts("inputs", request.inputs, MAX_TEXTS), several: Array.isArray(request.inputs), simple: strategy === "simple", ignored: new Set(ignored) };
}

/** Hugging Face's question answering: {question, context, most, longest}. */
export function readAnswer(request, manifest) {
  const parameters = readTask(request, manifest, ["top_k", "max_answer_len"]);
  const { question, context } = request.inputs ?? {};
  for (const [name, text] of Object.entries({ question, context })) {
    if (!isText(text) || !text.trim()) invalid(`inputs.${name}`, text, "a text that is not empty");
  }
  return { question, context, most: whole("parameters.top_k", parameters.top_k ?? 1, 1), longest: whole("parameters.max_answer_len", parameters.max_answer_len ?? 15, 1) };
}

function readTask(request, manifest, names) {
  known(request, ["inputs", "parameters", "model"]);
  forThis(request.model, manifest);
  known(request.parameters ?? {}, names);
  return request.parameters ?? {};
}

function texts(name, value, most) {
  const all = typeof value === "string" ? [value] : value;
  if (!Array.isArray(all) || all.length === 0 || all.length > most || !all.every(isText)) invalid(name, value, `a text that is not empty, or up to ${most} of them`);
  return all;
}
