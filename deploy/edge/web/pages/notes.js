// Semantic search of the reader's own notes, with the embedding model beside this page.

import { allNotes, putNote, removeNote } from "./notes_store.js";
import { start } from "./start.js";

const one = (id) => document.getElementById(id);
const SHOWN = 10;
const AT_ONCE = 16; // passages per request, so that the progress moves
const MAX_FILE_BYTES = 2_000_000;

let notes = await allNotes();
list();
const client = await start();
const passageCharacters = Math.min(500, Math.floor(client.context * 0.8)); // no character is more than about a token
await embedAgain();
for (const id of ["query", "find", "input", "add", "choose"]) one(id).disabled = false;
one("query").focus();

one("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = one("input").value.trim();
  if (text) said(async () => (await add(text), (one("input").value = "")));
});
one("choose").addEventListener("click", () => one("files").click());
one("files").addEventListener("change", () => said(addFiles));
one("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = one("query").value.trim();
  if (query) said(() => search(query));
});

async function said(work) {
  try {
    await work();
    one("adding").textContent = "";
    delete one("adding").dataset.error;
  } catch (error) {
    one("adding").textContent = error.message;
    one("adding").dataset.error = error.code ?? "runtime";
  }
}

async function addFiles() {
  const files = [...one("files").files];
  one("files").value = "";
  for (const file of files) {
    if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} has ${file.size} bytes; a note has at most ${MAX_FILE_BYTES}`);
    const text = (await file.text()).trim();
    if (text) await add(`${file.name}\n\n${text}`);
  }
}

async function add(text) {
  const note = { text, ...(await embedded(text)) };
  note.id = await putNote(note);
  notes.push(note);
  list();
}

/** Notes whose embeddings another version of the model made. */
async function embedAgain() {
  for (const note of notes.filter(({ model }) => model !== ours())) {
    Object.assign(note, await embedded(note.text));
    await putNote(note);
  }
  one("adding").textContent = "";
}

function ours() {
  return `${client.model} ${client.version}`;
}

async function embedded(text) {
  const texts = passages(text);
  const vectors = [];
  for (let at = 0; at < texts.length; at += AT_ONCE) {
    one("adding").textContent = `Reading ${at} of ${texts.length} passages…`;
    vectors.push(...(await embed(texts.slice(at, at + AT_ONCE))));
  }
  return { passages: texts.map((passage, index) => ({ text: passage, vector: vectors[index] })), model: ours() };
}

/** Unit vectors. */
async function embed(texts) {
  const { data } = await client.embeddings.create({ input: texts });
  return data.map(({ embedding }) => {
    const length = Math.hypot(...embedding) || 1;
    return Float32Array.from(embedding, (value) => value / length);
  });
}

/** Paragraphs, short ones together, long ones cut at the end of a word. */
function passages(text) {
  const found = [];
  for (const paragraph of text.split(/\n\s*\n/).map((each) => each.trim()).filter(Boolean)) {
    const last = found.at(-1);
    if (last !== undefined && last.length + paragraph.length + 2 <= passageCharacters) found[found.length - 1] = `${last}\n\n${paragraph}`;
    else found.push(...pieces(paragraph));
  }
  return found;
}

function pieces(paragraph) {
  const found = [];
  let rest = paragraph;
  while (rest.length > passageCharacters) {
    const space = rest.lastIndexOf(" ", passageCharacters);
    const cut = space > passageCharacters / 2 ? space : passageCharacters;
    found.push(rest.slice(0, cut));
    rest = rest.slice(cut).trim();
  }
  return rest ? [...found, rest] : found;
}

async function search(query) {
  const begun = performance.now();
  const [asked] = await embed([query.slice(0, passageCharacters)]);
  const scored = notes.flatMap((note) => note.passages.map(({ text, vector }) => ({ text, score: dot(asked, vector) })));
  const best = scored.sort((first, second) => second.score - first.score).slice(0, SHOWN);
  one("outcome").textContent = `The closest of ${scored.length} passages, in ${Math.round(performance.now() - begun)} ms`;
  one("results").replaceChildren(...best.map(result));
}

function dot(first, second) {
  return first.reduce((sum, value, index) => sum + value * second[index], 0);
}

function result({ text, score }) {
  const meter = document.createElement("meter");
  meter.max = 1;
  meter.value = Math.max(0, score);
  meter.title = `similarity ${score.toFixed(2)}`;
  return item(text, meter);
}

function list() {
  one("none").hidden = notes.length > 0;
  one("list").replaceChildren(...notes.toReversed().map((note) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Delete";
    button.addEventListener("click", async () => {
      await removeNote(note.id);
      notes = notes.filter((other) => other !== note);
      list();
    });
    return item(note.text.length > 200 ? `${note.text.slice(0, 200)}…` : note.text, button);
  }));
}

function item(text, beside) {
  const element = document.createElement("li");
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  element.append(paragraph, beside);
  return element;
}
