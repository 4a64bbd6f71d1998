// What the answer to one request may say next.

import { EverlearnError } from "../errors.js";
import { Automaton } from "./automaton.js";

const SPENT_MS = 5_000;
const TOKEN_MS = 50; // an answer's grammar may use SPENT_MS of computing, and gets so much back with each token

/** grammar: {rules, root, place}. Throws "invalid_input" for one that is too large or admits nothing. */
export function compiled({ rules, root, place }) {
  const automaton = bounded(place, "cannot be compiled", () => new Automaton(rules, root));
  if (!automaton.start) throw new EverlearnError("invalid_input", `${place} admits no answer`);
  return automaton;
}

export class Constraint {
  constructor(automaton, vocabulary, place) {
    this.automaton = automaton;
    this.vocabulary = vocabulary;
    this.place = place;
    this.state = automaton.start;
    this.leftMs = SPENT_MS;
  }

  /** The bits of the tokens that may come next: (vocabulary / 32,). Throws "invalid_input" where none may, or it takes too long. */
  allowed() {
    const began = performance.now();
    const mask = bounded(this.place, "cannot be followed", () => this.vocabulary.mask(this.automaton, this.state, began + this.leftMs));
    this.leftMs -= performance.now() - began;
    if (mask.every((bits) => bits === 0)) throw new EverlearnError("invalid_input", `${this.place} admits no answer that ends`);
    return mask;
  }

  /** Whether the answer can only end here. */
  get isOver() {
    return this.state.ends && this.allowed().every((bits, index) => (bits & ~this.vocabulary.endBits[index]) === 0);
  }

  accept(id) {
    this.leftMs = Math.min(SPENT_MS, this.leftMs + TOKEN_MS);
    bounded(this.place, "cannot be followed", () => {
      for (const byte of this.vocabulary.bytes(id)) this.state = this.automaton.step(this.state, byte);
    });
  }
}

function bounded(place, what, work) {
  try {
    return work();
  } catch (error) {
    if (error instanceof RangeError) throw new EverlearnError("invalid_input", `${place} ${what}: ${error.message}`);
    throw error;
  }
}
