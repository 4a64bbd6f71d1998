// The next token's id from logits.

/** A generator of numbers in [0, 1) that a seed determines (mulberry32, Tommy Ettinger, public domain). */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/**
 * logits (vocabulary,); allowed (vocabulary / 32,): the bits of the ids that may come, or null for all. Temperature 0 takes
 * the largest; otherwise top_k (0: all), then top_p, as transformers does.
 */
export function sample(logits, { temperature, top_p, top_k }, next, allowed = null) {
  const best = largest(logits, allowed);
  if (temperature === 0) return best;
  const candidates = likeliest(logits, logits[best], temperature, top_k, allowed);
  const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
  let kept = 0;
  let mass = 0;
  while (kept < candidates.length && (kept === 0 || mass < top_p * total)) mass += candidates[kept++].weight;
  let left = next() * mass;
  for (const { id, weight } of candidates.slice(0, kept)) {
    left -= weight;
    if (left < 0) return id;
  }
  return candidates[kept - 1].id;
}

const may = (allowed, id) => allowed === null || (allowed[id >> 5] >>> (id & 31)) & 1;

function largest(logits, allowed) {
  let best = -1;
  for (let id = 0; id < logits.length; id++) if ((best < 0 || logits[id] > logits[best]) && may(allowed, id)) best = id;
  return best;
}

/** The likeliest first, each with exp((logit - largest) / temperature); those under e^-30 are left out. */
function likeliest(logits, top, temperature, top_k, allowed) {
  const candidates = [];
  for (let id = 0; id < logits.length; id++) {
    const power = (logits[id] - top) / temperature;
    if (power > -30 && may(allowed, id)) candidates.push({ id, weight: Math.exp(power) });
  }
  candidates.sort((one, other) => other.weight - one.weight || one.id - other.id);
  return top_k ? candidates.slice(0, top_k) : candidates;
}
