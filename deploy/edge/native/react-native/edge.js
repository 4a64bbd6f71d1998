// An edge folder made by `everlearn deploy edge MODEL --target android` (or ios), run by onnxruntime-react-native.
// Nothing of React Native is imported here: `files` reads files, and `ort` has InferenceSession and Tensor.

const FORMAT = "everlearn-edge/1";
const GRAPH = "model.onnx";
const PATH = /^(?!.*(?:^|\/)\.{1,2}(?:\/|$))[A-Za-z0-9._-]+(?:\/[A-Za-z0-9._-]+)*$/;

/**
 * The folder's manifest, tokenizer and tokenizer's configuration, after every byte was checked.
 *
 * files: {text(path), sha256(path), bytes(path)}, each a promise. Throws naming the file that is not what was written.
 */
export async function openFolder(files, directory) {
  const manifest = JSON.parse(await files.text(`${directory}/edge.json`));
  if (manifest.format !== FORMAT) throw new Error(`${directory}/edge.json has format ${manifest.format}, not ${FORMAT}`);
  if (!manifest.runtime.name.startsWith("onnxruntime") || manifest.form === "int4-qdq") {
    throw new Error(`${directory} was made for ${manifest.target}: make one with --target android or ios`);
  }
  for (const { path, bytes, sha256 } of manifest.files) {
    const right = PATH.test(path) && (await files.bytes(`${directory}/${path}`)) === bytes;
    if (!right || (await files.sha256(`${directory}/${path}`)) !== sha256) {
      throw new Error(`${directory}/${path} is not the file that was written`);
    }
  }
  const json = async (name) => JSON.parse(await files.text(`${directory}/${name}`));
  return {
    manifest,
    graph: `${directory}/${GRAPH}`, // its weights lie beside it, where the runtime looks for them
    tokenizer: await json("tokenizer.json"),
    tokenizerConfig: await json("tokenizer_config.json"),
  };
}

/** A decoder's graph with the keys and values of what it has read. */
export class Decoder {
  constructor(ort, session, manifest) {
    Object.assign(this, { ort, session, graph: manifest.graph });
    this.forget();
  }

  forget() {
    const { layers, kv_heads, head_size, cache = "float32" } = this.graph;
    const nothing = cache === "int8" ? new Int8Array(0) : new Float32Array(0);
    this.length = 0;
    this.past = {};
    for (let layer = 0; layer < layers; layer += 1) {
      for (const one of ["key", "value"]) {
        this.past[`past_key_values.${layer}.${one}`] = new this.ort.Tensor(cache, nothing, [1, kv_heads, 0, head_size]);
      }
    }
  }

  /** Reads `ids` behind what was read; logits (vocabulary,) after the last. */
  async step(ids) {
    this.length += ids.length;
    const int64 = (values) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
    const mask = int64(new Array(this.length).fill(1));
    const outputs = await this.session.run({ input_ids: int64(ids), attention_mask: mask, ...this.past });
    for (const name of Object.keys(this.past)) {
      this.past[name] = outputs[name.replace("past_key_values", "present")];
    }
    const { data } = outputs.logits;
    return data.subarray(data.length - this.graph.vocabulary);
  }
}

/** Throws unless the phone computes the logits of every probe, within the folder's bound. */
export async function checkProbes(decoder, manifest) {
  for (const { token_ids, top_ids, top_logits } of manifest.probes) {
    decoder.forget();
    const logits = await decoder.step(token_ids);
    const difference = Math.max(...top_ids.map((id, index) => Math.abs(logits[id] - top_logits[index])));
    const clear = top_logits[0] - top_logits[1] > manifest.bound;
    if (!(difference <= manifest.bound) || (clear && largest(logits) !== top_ids[0])) {
      throw new Error(`this phone computes other numbers than the model's probes: they differ by ${difference}`);
    }
  }
  decoder.forget();
}

/** At most `tokens` ids, the likeliest each, after the prompt `ids`; `onIds` gets all so far. */
export async function complete(decoder, manifest, ids, tokens, onIds = () => {}) {
  const room = manifest.graph.context - ids.length;
  if (room <= 0) throw new Error(`the prompt has ${ids.length} tokens, and ${manifest.graph.context} are kept`);
  decoder.forget();
  const found = [];
  let logits = await decoder.step(ids);
  while (found.length < Math.min(tokens, room)) {
    const id = largest(logits);
    if (manifest.generation.eos_token_ids.includes(id)) break;
    found.push(id);
    onIds(found);
    if (found.length < Math.min(tokens, room)) logits = await decoder.step([id]);
  }
  return found;
}

const largest = (logits) => logits.reduce((best, value, id) => (value > logits[best] ? id : best), 0);
