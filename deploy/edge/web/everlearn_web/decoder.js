// A decoder's graph, token by token, with the keys and values of what it has read.

import { int64 } from "./session.js";

const CHUNK = 128; // tokens of a prompt that are read at once

export class Decoder {
  constructor(runtime, session, manifest) {
    this.ort = runtime.ort;
    this.session = session;
    this.graph = manifest.graph;
    this.forget();
  }

  /** Empties the cache. */
  forget() {
    for (const tensor of Object.values(this.past ?? {})) tensor.dispose();
    const { layers, kv_heads, head_size, cache = "float32" } = this.graph;
    const half = cache === "float16";
    const empty = () => new this.ort.Tensor(cache, half ? new Uint16Array(0) : new Float32Array(0), [1, kv_heads, 0, head_size]);
    const names = Array.from({ length: layers }, (_, layer) => [`past_key_values.${layer}.key`, `past_key_values.${layer}.value`]);
    this.past = Object.fromEntries(names.flat().map((name) => [name, empty()]));
    this.read = [];
  }

  /** Reads `ids`, the whole of a prompt, and gives the logits after its last. What it has read before is not read again. */
  async prompt(ids, between = async () => {}) {
    const known = this.read.length < ids.length && this.read.every((id, index) => id === ids[index]);
    if (!known) this.forget();
    let logits;
    for (let at = this.read.length; at < ids.length; at += CHUNK) {
      logits = await this.step(ids.slice(at, at + CHUNK));
      await between();
    }
    return logits;
  }

  /** Reads `ids` behind what was read; logits (vocabulary,) after the last. */
  async step(ids) {
    const length = this.read.length + ids.length;
    const mask = new this.ort.Tensor("int64", new BigInt64Array(length).fill(1n), [1, length]);
    let outputs;
    try {
      outputs = await this.session.run({ input_ids: int64(this.ort, ids), attention_mask: mask, ...this.past });
    } catch (error) {
      this.forget();
      throw error;
    }
    for (const name of Object.keys(this.past)) {
      this.past[name].dispose();
      this.past[name] = outputs[name.replace("past_key_values", "present")];
    }
    this.read.push(...ids);
    const { data } = outputs.logits;
    return data.subarray(data.length - this.graph.vocabulary);
  }
}
