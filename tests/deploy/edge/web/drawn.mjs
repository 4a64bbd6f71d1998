// Reads {modules, tokenizer, ends, schemas, draws} from stdin; prints what each schema says, and texts drawn at random from
// its grammar, token by token.

import { readFileSync } from "node:fs";

const asked = JSON.parse(readFileSync(0, "utf-8"));
const { schemaGrammar } = await import(`${asked.modules}/schema.js`);
const { COMMON } = await import(`${asked.modules}/parts.js`);
const { compiled, Constraint } = await import(`${asked.modules}/constraint.js`);
const { Vocabulary } = await import(`${asked.modules}/vocabulary.js`);
const vocabulary = new Vocabulary(asked.tokenizer, Object.keys(asked.tokenizer.model.vocab).length, asked.ends);
const MOST_TOKENS = 60;

let seed = 20;
const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
const one = (list) => list[Math.floor(random() * list.length)];

function ids(mask) {
  const found = [];
  mask.forEach((bits, word) => {
    for (let bit = 0; bits; bit++, bits >>>= 1) if (bits & 1) found.push(word * 32 + bit);
  });
  return found;
}

/** A text that ends, or nothing: short tokens and those that end a value come more often than others. */
function draw(automaton) {
  const constraint = new Constraint(automaton, vocabulary, "schema");
  const bytes = [];
  for (let count = 0; count < MOST_TOKENS; count++) {
    const allowed = ids(constraint.allowed());
    const others = allowed.filter((id) => !asked.ends.includes(id));
    if (others.length < allowed.length && (constraint.isOver || random() < 0.3)) return Buffer.from(bytes).toString();
    const length = (id) => vocabulary.bytes(id).length;
    const ending = others.filter((id) => length(id) === 1 && '"]},'.includes(String.fromCharCode(vocabulary.bytes(id)[0])));
    const short = others.filter((id) => length(id) <= 2);
    const chosen = ending.length && random() < 0.4 ? ending : short.length && random() < 0.5 ? short : others;
    const id = one(chosen);
    constraint.accept(id);
    bytes.push(...vocabulary.bytes(id));
  }
  return null;
}

function tried(schema) {
  try {
    const { root, rules, leftOpen } = schemaGrammar(schema, "schema", { strict: false, prefix: "s" });
    const automaton = compiled({ root, rules: { ...COMMON, ...rules }, place: "schema" });
    return { leftOpen, texts: Array.from({ length: asked.draws }, () => draw(automaton)).filter((text) => text !== null) };
  } catch (error) {
    return { code: error.code, message: error.message };
  }
}

console.log(JSON.stringify(asked.schemas.map(tried)));
