// Where tokens are in their text, as the Rust library says it and @huggingface/tokenizers does not: [start, end) in
// UTF-16 units, as `String.slice` takes them.

import { EverlearnError } from "../errors.js";

const WORD = /^(?:[^\s\p{P}$+<=>^`|~]+|\S)/u; // what BERT's pre-tokenizer keeps together
const CONTINUES = "##";
const METASPACE = "\u2581";

/** Of one tokenizer. `definition`: tokenizer.json; `tokenizer`: the library's, made of it. */
export class Places {
  constructor(definition, tokenizer) {
    this.normalize = tokenizer.normalizer ? (text) => tokenizer.normalizer(text) : (text) => text;
    this.model = definition.model;
    const before = steps(definition.pre_tokenizer, "pretokenizers").find(({ type }) => type === "ByteLevel");
    this.bytes = before ?? null;
    this.trims = steps(definition.post_processor, "processors").some(({ type, trim_offsets }) => (type === "ByteLevel" || type === "RobertaProcessing") && trim_offsets);
  }

  /** [start, end] of each of `tokens`, which are all that `text` has. Throws "unsupported" where they are not found in it. */
  of(text, tokens) {
    const { normalized, origins } = this.#read(text);
    const spans = this.bytes ? byBytes(normalized, tokens, this.bytes) : this.#byText(normalized, tokens);
    return spans.map(([start, end]) => {
      const place = start === end ? [0, 0] : [origins[start][0], origins[end - 1][1]];
      return this.trims ? trimmed(text, place) : place;
    });
  }

  /** The normalized text, and of each of its units [start, end] of the character that it comes from. */
  #read(text) {
    const normalized = this.normalize(text);
    const origins = this.#origins(normalized, text) ?? this.#origins(normalized, Array.from(new Intl.Segmenter().segment(text), ({ segment }) => segment));
    if (!origins) throw unknown(text);
    return { normalized, origins };
  }

  /** characters: of the text, each normalized alone. null where the whole normalized text is not made of these. */
  #origins(normalized, characters) {
    const units = [];
    let place = 0;
    for (const character of characters) {
      for (const unit of this.normalize(character).split("")) units.push([unit, [place, place + character.length]]);
      place += character.length;
    }
    const found = [];
    let at = 0;
    for (const unit of normalized.split("")) {
      while (at < units.length && units[at][0] !== unit) at++; // spaces that the whole text loses
      if (at === units.length) return null;
      found.push(units[at++][1]);
    }
    return found;
  }

  #byText(text, tokens) {
    let at = 0;
    return tokens.map((token) => {
      let said = token.startsWith(METASPACE) ? ` ${token.slice(1)}` : token;
      if (said.startsWith(" ") && text[at] !== " ") said = said.slice(1);
      if (this.model.type === "WordPiece") {
        while (at < text.length && /\s/.test(text[at])) at++;
        if (said === this.model.unk_token) said = WORD.exec(text.slice(at))?.[0] ?? "";
        else if (said.startsWith(CONTINUES)) said = said.slice(CONTINUES.length);
      }
      said = said.replaceAll(METASPACE, " ");
      if (said === "") return [at, Math.min(at + 1, text.length)]; // the space that every text begins with
      if (!text.startsWith(said, at)) said = this.normalize(said); // a special token's name
      if (!text.startsWith(said, at)) throw unknown(text.slice(at));
      at += said.length;
      return [at - said.length, at];
    });
  }
}

/** Byte-level tokens have a character for each byte; one that begins or ends within a character has the whole of it. */
function byBytes(text, tokens, { add_prefix_space: prefixed }) {
  const starts = []; // of each byte, [start, end] of its character
  if (prefixed && !text.startsWith(" ")) starts.push([0, 0]);
  let place = 0;
  for (const character of text) {
    const bytes = new TextEncoder().encode(character).length;
    for (let byte = 0; byte < bytes; byte++) starts.push([place, place + character.length]);
    place += character.length;
  }
  let at = 0;
  return tokens.map((token) => {
    const span = starts.slice(at, (at += [...token].length));
    if (at > starts.length || span.length === 0) throw unknown(text);
    return [span[0][0], span.at(-1)[1]];
  });
}

/** A step and those within it. */
function steps(step, inside) {
  if (!step) return [];
  return step.type === "Sequence" ? step[inside].flatMap((one) => steps(one, inside)) : [step];
}

function trimmed(text, [start, end]) {
  const said = text.slice(start, end);
  const from = start + said.length - said.trimStart().length;
  return [from, Math.max(from, start + said.trimEnd().length)];
}

const unknown = (text) => new EverlearnError("unsupported", `this tokenizer's tokens are not found in the text ${JSON.stringify(text.slice(0, 40))}`);
