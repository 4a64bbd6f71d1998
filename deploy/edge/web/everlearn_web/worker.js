// The worker behind EverlearnWeb: it downloads, keeps, checks and runs a model. Messages in: {id, method, params} and
// {id, cancel: true}; out: {id, event}, and at the end {id, result} or {id, error}. Requests run one after another.

import { answer } from "./chat.js";
import { Decoder } from "./decoder.js";
import { Asking, HEADS } from "./encoders/heads.js";
import { downloadFiles, fetchManifest } from "./download.js";
import { EverlearnError, packed } from "./errors.js";
import { compiled, Constraint } from "./grammar/constraint.js";
import { grammarOf } from "./grammar/grammar.js";
import { Vocabulary } from "./grammar/vocabulary.js";
import { readManifest } from "./manifest.js";
import { complete } from "./seq2seq/completion.js";
import { EncoderDecoder } from "./seq2seq/encoder_decoder.js";
import { readChat, readEmbeddings } from "./request.js";
import { checkProbes, encode, openRuntime, openSessions, OUTPUTS } from "./session.js";
import { MANIFEST, openStorage } from "./storage.js";
import { ChatTemplate, TextTokenizer } from "./tokenizer.js";

const UPDATES = "./updates/update.js"; // loaded for those who follow a channel

const cancelled = new Set();
let last = Promise.resolve();
let model = null; // what answers: {manifest, runtime, session, tokenizer, …}

self.onmessage = ({ data }) => {
  if (data.cancel) cancelled.add(data.id);
  else last = last.then(() => handle(data));
};

async function handle({ id, method, params }) {
  const told = (event) => self.postMessage({ id, event });
  try {
    self.postMessage({ id, result: await METHODS[method](params, told, () => pause(id)) });
  } catch (error) {
    self.postMessage({ id, error: packed(error) });
  } finally {
    cancelled.delete(id);
  }
}

/** Lets messages in, as a step of WebAssembly does not, and throws if one cancelled this request. */
async function pause(id) {
  await new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
  if (cancelled.has(id)) throw new EverlearnError("cancelled", "the request was cancelled");
}

const METHODS = {
  /** {url, name, channel} -> the version that storage has whole now: the server's, or else the one that served last. */
  async fetch({ url, name, channel }, told) {
    const onBytes = (loaded, total) => told({ phase: "download", loaded, total });
    try {
      return channel ? await fromChannel(channel, onBytes) : await fromFolder(url, onBytes);
    } catch (error) {
      const storage = name ? await openStorage(name) : null;
      const version = await storage?.current();
      if (!version) throw error;
      const offline = error.code === "unavailable";
      return { model: name, version, offline, notice: offline ? null : `a newer version was refused: ${error.message}` };
    }
  },

  /**
   * {model, version, channel, code} -> the version to serve instead of one that did not open for `code`, or null. Of a
   * channel it is not fetched again if its numbers are others here; whatever else was wrong may pass.
   */
  async refuse({ model: name, version, channel, code }) {
    const storage = await openStorage(name);
    return storage.locked(async () => {
      const current = await storage.current();
      if (channel && code === "mismatch") {
        await (await import(UPDATES)).refuse(storage, version);
        if (current !== version) await storage.remove(version);
      }
      return current === version ? storage.previous() : current;
    });
  },

  /** {model} -> the version that serves from now on: the one before. */
  async goBack({ model: name }) {
    const storage = await openStorage(name);
    return storage.locked(async () => (await import(UPDATES)).goBack(storage));
  },

  /** {model, version, device, threads} -> what answers. Throws "mismatch" where the device computes other numbers. */
  async open({ model: name, version, device, threads }, told) {
    const storage = await openStorage(name);
    const folder = storage.folder(version);
    const manifest = readManifest(await folder.read(MANIFEST));
    told({ phase: "start" });
    const runtime = await openRuntime(device, threads);
    const sessions = await openSessions(runtime, manifest, folder);
    const [session] = sessions;
    const opened = { manifest, runtime, session, folder, ...(await texts(folder)) };
    if (manifest.task === "generate") opened.decoder = new Decoder(runtime, session, manifest);
    if (manifest.task === "text2text") opened.decoder = new EncoderDecoder(runtime, sessions, manifest);
    told({ phase: "check" });
    await checkProbes(manifest, (probe) => probed(opened, probe));
    opened.decoder?.forget();
    model = opened;
    await storage.locked(() => settle(storage, version));
    return { task: manifest.task, model: manifest.model, version: manifest.version, threads: runtime.threads, graph: manifest.graph };
  },

  async chat(request, told, between) {
    if (model.manifest.task !== "generate") throw new EverlearnError("unsupported", `${model.manifest.model} is no model that chats, but one to ${model.manifest.task}`);
    const settings = readChat(request, model.manifest);
    const grammar = grammarOf(settings);
    const constraint = grammar && (await constrained(settings, grammar));
    const answered = await answer(model, settings, constraint, { told, between });
    return grammar?.leftOpen.length ? { ...answered, left_open: grammar.leftOpen } : answered;
  },

  async completion(request, told, between) {
    if (model.manifest.task !== "text2text") throw new EverlearnError("unsupported", `${model.manifest.model} is a model to ${model.manifest.task}, and completions.create takes one to text2text`);
    return complete(model, request, { told, between });
  },

  async embeddings(request, told, between) {
    if (model.manifest.task !== "embed") throw new EverlearnError("unsupported", `${model.manifest.model} is no model that embeds, but one to ${model.manifest.task}`);
    const data = [];
    let tokens = 0;
    for (const [index, text] of readEmbeddings(request, model.manifest).entries()) {
      const ids = model.tokenizer.encode(text);
      const most = model.manifest.graph.context;
      if (ids.length > most) throw new EverlearnError("context_length_exceeded", `input[${index}] has ${ids.length} tokens, and the model reads ${most}: split it`);
      const [embedding] = await encode(model.runtime.ort, model.session, OUTPUTS.embed, ids);
      data.push({ object: "embedding", index, embedding: Array.from(embedding) });
      tokens += ids.length;
      await between();
    }
    return { object: "list", data, model: model.manifest.model, usage: { prompt_tokens: tokens, total_tokens: tokens } };
  },

  /** {method, request} -> what an encoder with a head answers: see HEADS. */
  async predict({ method, request }, told, between) {
    const { task, answer: answered } = HEADS[method];
    if (model.manifest.task !== task) throw new EverlearnError("unsupported", `${model.manifest.model} is a model to ${model.manifest.task}, and ${method} takes one to ${task}`);
    return answered(new Asking(model, between), request);
  },
};

async function fromFolder(url, onBytes) {
  const bytes = await fetchManifest(url);
  const manifest = readManifest(bytes);
  const storage = await openStorage(manifest.model);
  await storage.locked(async () => {
    const folder = storage.folder(manifest.id);
    if (await folder.whole()) return;
    await downloadFiles(url, manifest, folder, { onBytes, found: await unchanged(storage) });
    await folder.seal(bytes);
  });
  return { model: manifest.model, version: manifest.id, offline: false };
}

async function fromChannel({ url, model: name, root }, onBytes) {
  const { update } = await import(UPDATES);
  const storage = await openStorage(name);
  const { version } = await storage.locked(() => update(storage, { url, target: "web", root }, onBytes));
  return { model: name, version, channel: true, offline: false };
}

/** Finds a file that some whole version has already. */
async function unchanged(storage) {
  const places = new Map();
  for (const { version, whole } of await storage.versions()) {
    if (!whole) continue;
    const folder = storage.folder(version);
    for (const { path, sha256 } of readManifest(await folder.read(MANIFEST)).files) places.set(sha256, () => folder.file(path));
  }
  return async ({ sha256 }) => places.get(sha256)?.();
}

/** This version serves; the one before stays, to go back to; older ones and unfinished ones go. */
async function settle(storage, version) {
  const before = await storage.current();
  await storage.makeCurrent(version);
  if (before === version) return;
  for (const other of await storage.versions()) {
    if (other.version !== version && other.version !== before) await storage.remove(other.version);
  }
}

/** The vocabulary, and the last grammar, are kept for the next request. */
async function constrained({ format, tools, mustCall, severalCalls }, grammar) {
  const { manifest, folder } = model;
  if (!model.vocabulary) {
    const tokenizer = JSON.parse(new TextDecoder().decode(await folder.read("tokenizer.json")));
    model.vocabulary = new Vocabulary(tokenizer, manifest.graph.vocabulary, manifest.generation?.eos_token_ids ?? []);
  }
  const key = JSON.stringify([format, tools, mustCall, severalCalls]);
  if (model.compiled?.key !== key) model.compiled = { key, automaton: compiled(grammar) };
  return new Constraint(model.compiled.automaton, model.vocabulary, grammar.place);
}

async function texts(folder) {
  const json = async (path) => JSON.parse(new TextDecoder().decode(await folder.read(path)));
  const config = await json("tokenizer_config.json").catch(() => ({}));
  const tokenizer = new TextTokenizer(await json("tokenizer.json"), config);
  const source = await folder.file("chat_template.jinja");
  return { tokenizer, template: source && new ChatTemplate(await source.text(), config) };
}

/** The numbers that `checkProbes` compares. */
async function probed({ manifest, runtime, session, decoder }, { token_ids: ids, type_ids: types, answer_ids: answered, logits }) {
  if (decoder) {
    decoder.forget();
    const said = await decoder.prompt(ids);
    const further = answered?.slice(manifest.graph.first.length) ?? [];
    return further.length ? decoder.step(further) : said;
  }
  const said = await encode(runtime.ort, session, OUTPUTS[manifest.task], ids, types);
  return logits ? said.flatMap((one) => Array.from(one.subarray(0, logits.length / said.length))) : said[0];
}
