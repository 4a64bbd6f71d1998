// What the playground asks models that do not chat, and how it shows what they say.

import { element } from "./playground_text.js";

function bar(label, share, said = percent(share)) {
  const meter = element("progress");
  meter.max = 1;
  meter.value = Math.max(0, share);
  meter.setAttribute("aria-label", `${label}: ${said}`);
  return element("div", "bar-row", element("span", "bar-label", label), meter, element("span", "bar-share", said));
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** Label and share of each, the likeliest first. */
function bars(found) {
  const rows = [...found].sort((a, b) => b.score - a.score).map(({ label, score }) => bar(label, score));
  return [element("div", "bars", ...rows)];
}

/** `text` with some of its parts marked: {start, end, label}, in characters (code points), in order. */
function marked(text, parts) {
  const characters = [...text];
  const line = element("p");
  let at = 0;
  for (const { start, end, label } of parts) {
    const mark = element("mark", "", characters.slice(start, end).join(""));
    if (label) mark.append(element("small", "", label));
    line.append(characters.slice(at, start).join(""), mark);
    at = end;
  }
  line.append(characters.slice(at).join(""));
  return line;
}

/** The first line, and those behind it that are not empty. */
function lines(text) {
  const [first, ...others] = text.split("\n").map((line) => line.trim());
  return [first, others.filter(Boolean)];
}

/** One caption per line, without empty lines. */
const captions = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** Of two vectors of length 1. */
const cosine = (one, other) => one.reduce((sum, value, at) => sum + value * other[at], 0);

/** By the task of the model: where it is asked, what, and {text, nodes} of its answer. */
export const TASKS = {
  text2text: {
    hint: "Write a source text",
    path: () => "completions",
    body: (model, text, { limit }) => ({ model, prompt: text, ...(limit ? { max_tokens: limit } : {}) }),
    show: ({ choices }) => ({ text: choices[0].text, nodes: [element("p", "", choices[0].text || "(nothing)")] }),
  },
  classify: {
    hint: "Write a text to be labelled",
    path: (model) => `../models/${model}`,
    body: (_, text) => ({ inputs: text }),
    show: ([found]) => ({ text: found[0].label, nodes: bars(found) }),
  },
  score: {
    hint: "A query, and below it a document per line",
    path: () => "rerank",
    body: (model, text) => ({ model, query: lines(text)[0], documents: lines(text)[1] }),
    show: ({ results }) => {
      const items = results.map(({ document, relevance_score }) =>
        element("li", "", element("p", "", document.text), bar("relevance", relevance_score)));
      return { text: results.map(({ document }) => document.text).join("\n"), nodes: [element("ol", "ranked", ...items)] };
    },
  },
  image_text: {
    hint: "Captions, one per line",
    takesImage: true,
    path: () => "embeddings",
    body: (model, text, { image }) => ({ model, input: [{ image }, ...captions(text)] }),
    show: ({ data: [image, ...said] }, text) => {
      const found = captions(text).map((label, at) => ({ label, near: cosine(image.embedding, said[at].embedding) }));
      found.sort((a, b) => b.near - a.near);
      const rows = found.map(({ label, near }) => bar(label, near, near.toFixed(2)));
      return { text: found[0].label, nodes: [element("div", "bars", ...rows)] };
    },
  },
  token_classify: {
    hint: "Write a text with names in it",
    path: (model) => `../models/${model}`,
    body: (_, text) => ({ inputs: text }),
    show: (found, text) => {
      const parts = found.map(({ start, end, entity_group }) => ({ start, end, label: entity_group }));
      return { text: found.map(({ word }) => word).join("\n"), nodes: [marked(text, parts)] };
    },
  },
  question_answer: {
    hint: "A question, and below it the text that answers it",
    path: (model) => `../models/${model}`,
    body: (_, text) => ({ inputs: { question: lines(text)[0], context: lines(text)[1].join("\n") } }),
    show: ({ answer, start, end, score }, text) => ({
      text: answer,
      nodes: [bar(answer, score), marked(lines(text)[1].join("\n"), [{ start, end }])],
    }),
  },
};
