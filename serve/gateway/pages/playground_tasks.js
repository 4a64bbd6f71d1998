// What the playground asks models that do not chat, and how it shows what they say.

export function element(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function bar(label, share) {
  const meter = element("progress");
  meter.max = 1;
  meter.value = share;
  meter.setAttribute("aria-label", `${label}: ${percent(share)}`);
  return element("div", "bar-row", element("span", "bar-label", label), meter, element("span", "bar-share", percent(share)));
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

/** By the task of the model: where it is asked, what, and {text, nodes} of its answer. */
export const TASKS = {
  text2text: {
    hint: "Write a source text",
    path: () => "completions",
    body: (model, text, limit) => ({ model, prompt: text, ...(limit ? { max_tokens: limit } : {}) }),
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
