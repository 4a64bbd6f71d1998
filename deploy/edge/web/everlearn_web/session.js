// A session of onnxruntime-web on a folder in storage, and whether it computes what edge.json says.

import { EverlearnError } from "./errors.js";

const VENDOR = new URL("./vendor/ort/", import.meta.url);
const GRAPHS = { wasm: "model.onnx", webgpu: "model-webgpu.onnx" }; // a folder without the second has one for both
const TWO_GRAPHS = ["encoder_model.onnx", "decoder_model.onnx"]; // of an encoder-decoder

/** What an encoder's graph computes, by its task. */
export const OUTPUTS = {
  embed: ["sentence_embedding"],
  classify: ["logits"],
  score: ["logits"],
  token_classify: ["logits"],
  question_answer: ["start_logits", "end_logits"],
};

// The graph's weights are dequantized once, as it loads: without the entry, at every token.
const ENTRIES = { "int4-qdq": { session: { disable_quant_qdq: "1" } } };

/** Where sessions run: {device: "wasm" | "webgpu", threads}. */
export async function openRuntime(device, threads) {
  const ort = await import(`${VENDOR}ort.${device}.js`);
  const build = device === "wasm" ? "ort-wasm-simd-threaded" : "ort-wasm-simd-threaded.asyncify";
  ort.env.wasm.wasmPaths = { mjs: `${VENDOR}${build}.js`, wasm: `${VENDOR}${build}.wasm` };
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(threads, navigator.hardwareConcurrency || 1) : 1;
  ort.env.logLevel = "error";
  return { ort, device, threads: ort.env.wasm.numThreads };
}

/** The folder's sessions: one, or of an encoder-decoder two. */
export async function openSessions(runtime, manifest, folder) {
  const [{ device }, has] = [runtime, (name) => manifest.files.some(({ path }) => path === name)];
  const graphs = manifest.task === "text2text" ? TWO_GRAPHS : [has(GRAPHS[device]) ? GRAPHS[device] : GRAPHS.wasm];
  const sessions = [];
  for (const graph of graphs) sessions.push(await openSession(runtime, manifest, folder, graph));
  return sessions;
}

/** Weights are read from disk as the runtime asks for them: no copy of them stays in the page. */
async function openSession({ ort, device }, manifest, folder, graph) {
  const weights = manifest.files.filter((file) => file.path.endsWith(".bin"));
  const files = await Promise.all(weights.map(async ({ path }) => ({ path, data: new StoredBytes(await folder.file(path)) })));
  const options = { executionProviders: [device], externalData: files, enableMemPattern: false, enableCpuMemArena: false };
  if (device === "wasm") options.extra = ENTRIES[manifest.form] ?? {};
  if (device === "webgpu") options.preferredOutputLocation = cacheOnGpu(manifest);
  try {
    return await ort.InferenceSession.create(await folder.read(graph), options);
  } catch (error) {
    throw new EverlearnError("runtime", `onnxruntime-web cannot run ${manifest.model} on ${device}: ${error.message ?? error}`);
  }
}

/** A file's bytes without the memory: onnxruntime-web asks external data for `byteLength`, and for one part after another. */
class StoredBytes extends Uint8Array {
  constructor(file) {
    super(0);
    this.file = file;
  }

  get byteLength() {
    return this.file.size;
  }

  subarray(start, end) {
    return new Uint8Array(new FileReaderSync().readAsArrayBuffer(this.file.slice(start, end)));
  }
}

function cacheOnGpu(manifest) {
  if (manifest.task !== "generate") return {};
  const layers = Array.from({ length: manifest.graph.layers ?? 0 }, (_, layer) => layer);
  return Object.fromEntries(layers.flatMap((layer) => [[`present.${layer}.key`, "gpu-buffer"], [`present.${layer}.value`, "gpu-buffer"]]));
}

/**
 * Throws "mismatch" unless `compute(probe)` gives the numbers of every probe, within the manifest's bound: the logits after
 * the last token of a prompt or of an answer, an embedding, or the first logits of a head.
 */
export async function checkProbes(manifest, compute) {
  for (const probe of manifest.probes) {
    const found = await compute(probe);
    const expected = probe.top_logits ?? probe.embedding ?? probe.logits;
    const ids = probe.top_ids ?? expected.map((_, index) => index);
    const difference = Math.max(...expected.map((value, index) => Math.abs(value - found[ids[index]])));
    const clear = probe.top_ids && expected[0] - expected[1] > manifest.bound;
    const argmax = clear ? found.reduce((best, value, id) => (value > found[best] ? id : best), 0) : ids[0];
    if (!(difference <= manifest.bound) || argmax !== ids[0]) {
      throw new EverlearnError("mismatch", `it computes other numbers than the model's author: they differ by ${difference.toPrecision(3)}, and ${manifest.bound} is allowed`);
    }
  }
}

/** (1, length) of int64. */
export const int64 = (ort, values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

/** What an encoder's graph says of one text, or of a pair, by each of `outputs`: the numbers of each in a row. */
export async function encode(ort, session, outputs, ids, types = ids.map(() => 0)) {
  const all = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, int64(ort, all[name])]));
  const said = await session.run(feeds, outputs);
  return outputs.map((name) => said[name].data);
}
