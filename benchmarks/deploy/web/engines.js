// The same answer by three engines in the same browser: {load_ms, first_ms, tokens, decode_ms, text}.

export const ENGINES = {
  async everlearn({ folder, messages, tokens, threads }) {
    const { EverlearnWeb } = await import(`${folder}everlearn_web/index.js`);
    return measured(
      () => EverlearnWeb.load(folder, { threads, device: "wasm" }),
      async (client, told) => {
        const stream = await client.chat.completions.create({ messages, temperature: 0, max_tokens: tokens, stream: true, stream_options: { include_usage: true } });
        let count = 0;
        for await (const chunk of stream) {
          if (chunk.usage) count = chunk.usage.completion_tokens;
          else told(chunk.choices[0].delta.content ?? "");
        }
        return count;
      },
    );
  },

  async wllama({ model, messages, tokens, threads }) {
    const { Wllama } = await import("/wllama/index.min.js");
    return measured(
      async () => {
        const wllama = new Wllama({ default: "/wllama/wasm/wllama.wasm" }, { suppressNativeLog: true });
        await wllama.loadModelFromUrl(new URL(model, location.href).href, { n_threads: threads, n_ctx: 2048, n_gpu_layers: 0 });
        return wllama;
      },
      async (wllama, told) => {
        let timings = null;
        let count = 0;
        for await (const chunk of await wllama.createChatCompletion({ messages, temperature: 0, max_tokens: tokens, stream: true })) {
          const text = chunk.choices?.[0]?.delta?.content ?? "";
          if (text) count += 1;
          told(text);
          timings = chunk.timings ?? timings;
        }
        return timings?.predicted_n ?? count;
      },
    );
  },

  async transformers({ model, dtype, external, messages, tokens, threads }) {
    const { pipeline, TextStreamer, env } = await import("/transformers/transformers.min.js");
    Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "/peers/" });
    Object.assign(env.backends.onnx.wasm, { wasmPaths: new URL("/ort/", location.href).href, numThreads: threads });
    return measured(
      () => pipeline("text-generation", model, { dtype, device: "wasm", use_external_data_format: external }),
      async (generate, told) => {
        let count = 0;
        const streamer = new TextStreamer(generate.tokenizer, { skip_prompt: true, skip_special_tokens: true, callback_function: told, token_callback_function: (ids) => (count += ids.length) });
        await generate(messages, { max_new_tokens: tokens, do_sample: false, streamer });
        return count;
      },
    );
  },
};

/** First: until the first text is there. Decode: from then to the end, for the tokens after the first. */
async function measured(load, answer) {
  const begun = performance.now();
  const engine = await load();
  const loaded = performance.now();
  let text = "";
  let first = null;
  const tokens = await answer(engine, (more) => {
    if (more && first === null) first = performance.now();
    text += more;
  });
  return { load_ms: loaded - begun, first_ms: first - loaded, tokens, decode_ms: performance.now() - first, text };
}
