// An encoder-decoder's two graphs: a source is read once, and its answer is written token by token, with keys and values of
// both. It answers `prompt` and `step` as a Decoder does.

import { int64 } from "../session.js";

const OWN = ".decoder."; // in the names of an answer's keys and values
const CROSSED = ".encoder."; // of its source's

export class EncoderDecoder {
  constructor(runtime, [encoder, decoder], manifest) {
    this.ort = runtime.ort;
    this.encoder = encoder;
    this.decoder = decoder;
    this.graph = manifest.graph;
    this.state = {};
  }

  /** Empties the cache. */
  forget() {
    for (const tensor of Object.values(this.state)) tensor.dispose();
    this.state = {};
  }

  /** Reads `ids`, a whole source, and gives the logits (vocabulary,) of its answer's first token. */
  async prompt(ids, between = async () => {}) {
    this.forget();
    const mask = int64(this.ort, ids.map(() => 1));
    this.state = { encoder_attention_mask: mask };
    const crossed = await this.encoder.run({ input_ids: int64(this.ort, ids), attention_mask: mask });
    await between();
    const { heads, head_size } = this.graph;
    for (const name of this.decoder.inputNames) {
      if (name.includes(CROSSED)) this.state[name] = crossed[name.replace("past_key_values", "present")];
      if (name.includes(OWN)) this.state[name] = new this.ort.Tensor("float32", new Float32Array(0), [1, heads, 0, head_size]);
    }
    return this.step(this.graph.first);
  }

  /** Writes `ids` behind the answer; logits (vocabulary,) after the last. */
  async step(ids) {
    let logits;
    for (const id of ids) logits = await this.#next(id);
    for (const id of this.graph.never ?? []) logits[id] = -Infinity;
    return logits;
  }

  async #next(id) {
    let outputs;
    try {
      outputs = await this.decoder.run({ input_ids: int64(this.ort, [id]), ...this.state });
    } catch (error) {
      this.forget();
      throw error;
    }
    for (const name of Object.keys(this.state).filter((one) => one.includes(OWN))) {
      this.state[name].dispose();
      this.state[name] = outputs[name.replace("past_key_values", "present")];
    }
    return outputs.logits.data;
  }
}
