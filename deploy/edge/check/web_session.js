// Sessions of onnxruntime-web in node: `node web_session.js NODE_MODULES < request.json > answer.json`.
// It answers what native_session.py answers, on WebAssembly with one thread.
'use strict'
const fs = require('node:fs')
const path = require('node:path')
const { pathToFileURL } = require('node:url')

async function main() {
  const modules = path.resolve(process.argv[2])
  const request = JSON.parse(fs.readFileSync(0, 'utf8'))
  const dist = path.join(modules, 'onnxruntime-web', 'dist', 'ort.wasm.min.mjs')
  const ort = await import(pathToFileURL(dist).href)
  ort.env.wasm.numThreads = 1
  ort.env.logLevel = 'fatal'
  const said = { runtime: ort.env.versions.web, failures: {} }
  for (const graph of request.operators ?? []) {
    try {
      const session = await open(ort, graph, {})
      await session.release()
    } catch (error) {
      said.failures[graph] = String(error?.message ?? error)
    }
  }
  if (request.graphs) {
    const started = performance.now()
    const sessions = []
    for (const graph of request.graphs) sessions.push(await open(ort, graph, request.session))
    said.load_s = (performance.now() - started) / 1000
    const run = { generate: runDecoder, text2text: runAnswers }[request.task] ?? runEncoder
    Object.assign(said, await run(ort, request, ...sessions))
    said.peak_bytes = peakBytes()
  }
  process.stdout.write(JSON.stringify(said))
}

/** A session of a graph with the files of weights beside it; `entries` as native onnxruntime has them. */
async function open(ort, graph, entries) {
  const folder = path.dirname(graph)
  const names = fs.readdirSync(folder).filter((name) => /^weights-\d{3}\.bin$/.test(name))
  const externalData = names.map((name) => ({ path: name, data: fs.readFileSync(path.join(folder, name)) }))
  const session = {}
  for (const [key, value] of Object.entries(entries)) session[key.replace(/^session\./, '')] = value
  return ort.InferenceSession.create(new Uint8Array(fs.readFileSync(graph)), {
    executionProviders: ['wasm'],
    logSeverityLevel: 4,
    externalData,
    extra: { session },
  })
}

async function runDecoder(ort, request, session) {
  const outputs = []
  for (const prompt of request.prompts) {
    const { logits } = await step(ort, session, prompt.token_ids, nothing(ort, session, request), 0)
    const top = largest(logits, request.top)
    const ids = prompt.ids ?? top
    outputs.push({ ids, values: ids.map((id) => logits[id]), best: top[0] })
  }
  return { outputs, tokens_per_s: await decodingSpeed(ort, session, request) }
}

/** Tokens per second, one after the other, by the median step. */
async function decodingSpeed(ort, session, request) {
  let ids = request.prompts[0].token_ids
  let past = nothing(ort, session, request)
  let total = 0
  const steps = []
  for (let n = 0; n <= request.steps; n++) {
    const started = performance.now()
    const made = await step(ort, session, ids, past, total)
    steps.push(performance.now() - started)
    total += ids.length
    past = made.past
    ids = [largest(made.logits, 1)[0]]
  }
  const decoding = steps.slice(1).sort((a, b) => a - b)
  return 1000 / decoding[decoding.length >> 1]
}

async function step(ort, session, ids, past, total) {
  const all = total + ids.length
  const made = await session.run({ ...past, input_ids: int64(ort, ids), attention_mask: int64(ort, Array(all).fill(1)) })
  const data = made.logits.data
  const vocabulary = made.logits.dims[2]
  const next = {}
  for (const name of session.outputNames) {
    if (name.startsWith('present.')) next[name.replace('present.', 'past_key_values.')] = made[name]
  }
  return { logits: data.subarray(data.length - vocabulary), past: next }
}

/** Keys and values of no token: (1, kv_heads, 0, head_size) each. */
function nothing(ort, session, request) {
  const { kv_heads, head_size, cache } = request.shape
  const past = {}
  for (const name of session.inputNames) {
    if (name.startsWith('past_key_values.')) past[name] = new ort.Tensor(cache, [], [1, kv_heads, 0, head_size])
  }
  return past
}

async function runAnswers(ort, request, encoder, decoder) {
  const outputs = []
  const speeds = []
  for (const prompt of request.prompts) {
    const state = await readSource(ort, request, encoder, decoder, prompt.token_ids)
    let logits
    for (const token of prompt.answer_ids) logits = await nextLogits(ort, request, decoder, state, token)
    const top = largest(logits, request.top)
    const ids = prompt.ids ?? top
    outputs.push({ ids, values: ids.map((id) => logits[id]), best: top[0] })
    if (outputs.length < request.prompts.length) continue
    for (let n = 0; n < request.steps; n++) {
      const started = performance.now()
      logits = await nextLogits(ort, request, decoder, state, largest(logits, 1)[0])
      speeds.push(performance.now() - started)
    }
  }
  speeds.sort((a, b) => a - b)
  return { outputs, tokens_per_s: 1000 / speeds[speeds.length >> 1] }
}

/** The decoder's inputs before an answer's first token. */
async function readSource(ort, request, encoder, decoder, ids) {
  const mask = int64(ort, ids.map(() => 1))
  const crossed = await encoder.run({ input_ids: int64(ort, ids), attention_mask: mask })
  const { heads, head_size } = request.shape
  const state = { encoder_attention_mask: mask }
  for (const name of decoder.inputNames) {
    if (name.includes('.encoder.')) state[name] = crossed[name.replace('past_key_values.', 'present.')]
    if (name.includes('.decoder.')) state[name] = new ort.Tensor('float32', [], [1, heads, 0, head_size])
  }
  return state
}

/** Logits after one token more of an answer, which `state` then holds. */
async function nextLogits(ort, request, decoder, state, token) {
  const made = await decoder.run({ input_ids: int64(ort, [token]), ...state })
  for (const name of Object.keys(state)) {
    if (name.includes('.decoder.')) state[name] = made[name.replace('past_key_values.', 'present.')]
  }
  const logits = Float32Array.from(made.logits.data)
  for (const id of request.shape.never) logits[id] = -Infinity
  return logits
}

async function runEncoder(ort, request, session) {
  const outputs = []
  for (const prompt of request.prompts) {
    const made = await encode(ort, session, request.outputs, prompt.token_ids, prompt.type_ids)
    outputs.push({ values: made.flatMap((one) => Array.from(one.subarray(0, request.top))) })
  }
  const ids = request.prompts[0].token_ids
  const long = Array.from({ length: request.context }, (_, n) => ids[n % ids.length])
  await encode(ort, session, request.outputs, long)
  const started = performance.now()
  await encode(ort, session, request.outputs, long)
  return { outputs, tokens_per_s: long.length / ((performance.now() - started) / 1000) }
}

/** What the graph says of one text, by each of `names`. */
async function encode(ort, session, names, ids, types = ids.map(() => 0)) {
  const given = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types }
  const feeds = {}
  for (const name of session.inputNames) feeds[name] = int64(ort, given[name])
  const made = await session.run(feeds, names)
  return names.map((name) => made[name].data)
}

function int64(ort, values) {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length])
}

/** The indices of the `count` largest values, the largest first. */
function largest(values, count) {
  const found = []
  for (let n = 0; n < count; n++) {
    let best = -1
    for (let i = 0; i < values.length; i++) {
      if (!found.includes(i) && (best < 0 || values[i] > values[best])) best = i
    }
    found.push(best)
  }
  return found
}

function peakBytes() {
  const status = fs.existsSync('/proc/self/status') ? fs.readFileSync('/proc/self/status', 'utf8') : ''
  const found = /VmHWM:\s*(\d+)/.exec(status)
  return found ? Number(found[1]) * 1024 : 0
}

main().catch((error) => {
  process.stderr.write(`${error?.message ?? error}\n`)
  process.exit(1)
})
