// Text to token ids and back, and chats to prompts. The work is done by @huggingface/tokenizers and @huggingface/jinja.

import { Template } from "./vendor/jinja.js";
import { Tokenizer } from "./vendor/tokenizers.js";
import { Places } from "./encoders/places.js";
import { EverlearnError } from "./errors.js";
import { withTools } from "./tools.js";

const TOKEN_NAMES = ["bos_token", "eos_token", "pad_token", "unk_token"];
const UNFINISHED = "\ufffd"; // what a decoder gives for the first bytes of a character

/** `config`: tokenizer_config.json. */
export class TextTokenizer {
  constructor(tokenizer, config) {
    this.tokenizer = new Tokenizer({ ...tokenizer, pre_tokenizer: unicodeDigits(tokenizer.pre_tokenizer) }, config);
    this.definition = tokenizer;
    const special = (tokenizer.added_tokens ?? []).filter((token) => token.special).map((token) => token.content);
    this.special = special.sort((one, other) => other.length - one.length);
  }

  /** With the special tokens that the tokenizer adds around a text. */
  encode(text) {
    return this.tokenizer.encode(text).ids;
  }

  /** A text, or a pair of them, with the marks around: {ids, types}, types 1 in the second text. */
  encodePair(text, second = null) {
    const { ids, token_type_ids: types } = this.tokenizer.encode(text, { text_pair: second, return_token_type_ids: true });
    return { ids, types: types ?? ids.map(() => 0) };
  }

  /** The tokens of a text, without marks around it: [{token, start, end}], places in the text. */
  pieces(text) {
    this.places ??= new Places(this.definition, this.tokenizer);
    const tokens = this.tokenizer.tokenize(text);
    return this.places.of(text, tokens).map(([start, end], index) => ({ token: tokens[index], start, end }));
  }

  /**
   * Pieces of a text, or of a pair of them, with the marks around: {ids, types, pieces}; of a mark the piece is null, and
   * of the second text `second` is true.
   */
  withMarks(pieces, seconds = null) {
    const post = this.tokenizer.post_processor;
    const second = seconds?.map((piece) => ({ ...piece, second: true })) ?? null;
    const { tokens, token_type_ids: types } = post ? post(pieces, second, true) : { tokens: [...pieces, ...(second ?? [])] };
    const names = tokens.map((one) => one.token ?? one);
    return {
      ids: names.map((name) => this.tokenizer.token_to_id(name) ?? this.tokenizer.model.unk_token_id),
      types: types ?? names.map(() => 0),
      pieces: tokens.map((one) => (typeof one === "string" ? null : one)),
    };
  }

  /**
   * The ids of a rendered chat: special tokens that the template wrote, and none that somebody wrote into a message,
   * where `mark` stands after each one's first character.
   */
  encodeChat(text, mark) {
    return text.split(mark).flatMap((piece) => (piece ? this.tokenizer.encode(piece, { add_special_tokens: false }).ids : []));
  }

  /** The same texts, also in lists and objects, in which no special token is one. */
  marked(value, mark) {
    if (Array.isArray(value)) return value.map((each) => this.marked(each, mark));
    if (value !== null && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, each]) => [this.marked(key, mark), this.marked(each, mark)]));
    if (typeof value !== "string") return value;
    return this.special.reduce((so_far, token) => {
      const [first, ...rest] = token;
      return so_far.replaceAll(token, first + mark + rest.join(""));
    }, value);
  }

  decode(ids) {
    return ids.length ? this.tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }
}

/**
 * Splits digits as the Rust library does: every number of Unicode, where @huggingface/tokenizers 0.2.0 knows 0 to 9.
 * "٢٠" of an Arabic text would be other tokens than those that the model was trained on.
 */
function unicodeDigits(part) {
  if (part?.type === "Sequence") return { ...part, pretokenizers: part.pretokenizers.map(unicodeDigits) };
  if (part?.type !== "Digits") return part;
  return { type: "Split", pattern: { Regex: part.individual_digits ? "\\p{N}" : "\\p{N}+" }, behavior: "Isolated", invert: false };
}

/** Gives text as soon as no later token can change it. */
export class TextStream {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.ids = [];
    this.start = 0; // ids before it are told; those from `start` to `told` are decoded again, for their spaces
    this.told = 0;
  }

  push(id) {
    this.ids.push(id);
    return this.#next(false);
  }

  end() {
    return this.#next(true);
  }

  #next(last) {
    const known = this.tokenizer.decode(this.ids.slice(this.start, this.told));
    const text = this.tokenizer.decode(this.ids.slice(this.start));
    if (text.length <= known.length || (!last && text.endsWith(UNFINISHED))) return "";
    this.start = this.told;
    this.told = this.ids.length;
    return text.slice(known.length);
  }
}

/** The chat template of a folder. Throws "unsupported" where it cannot be read. */
export class ChatTemplate {
  constructor(source, config) {
    try {
      this.template = new Template(source);
      this.knowsTools = source.includes("tools");
    } catch (error) {
      throw new EverlearnError("unsupported", `chat_template.jinja is not understood here: ${error.message}`);
    }
    this.names = Object.fromEntries(TOKEN_NAMES.map((name) => [name, config[name]?.content ?? config[name] ?? ""]));
  }

  /** messages: [{role, content}], content a text; tools: signatures. Throws "invalid_input" for what the template refuses. */
  render(messages, tools = []) {
    try {
      return this.template.render({ ...this.names, messages, add_generation_prompt: true, tools: tools.length ? tools : null });
    } catch (error) {
      throw new EverlearnError("invalid_input", `messages: the chat template refuses them: ${error.message}`);
    }
  }
}

/** The prompt's token ids. tools: those on offer, as `readTools` gives them. */
export function encodeChat(tokenizer, template, messages, tools = []) {
  const mark = `\ue000${crypto.randomUUID()}\ue000`;
  const plain = tokenizer.marked(withTools(messages, tools, template.knowsTools), mark);
  return tokenizer.encodeChat(template.render(plain, tokenizer.marked(tools.map(({ signature }) => signature), mark)), mark);
}
