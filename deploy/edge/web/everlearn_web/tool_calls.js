// Reads an answer as it comes: text, and calls of tools, which the grammar lets begin with a tag alone.

import { FORM } from "./grammar/grammar.js";

export class ToolCalls {
  /** names: of the tools on offer. `text(piece)` and `call(part)`, an entry of OpenAI's `delta.tool_calls`, get what is certain. */
  constructor(names, { text, call }) {
    this.heads = new Map(names.map((name) => [`${FORM.opening}${name}${FORM.middle}`, name]));
    this.text = text;
    this.call = call;
    this.held = "";
    this.count = 0;
    this.open = null; // the JSON of a call that has begun
  }

  push(piece) {
    this.held += piece;
    while (this.open ? this.#goOn() : this.#begin());
  }

  /** Whether the answer, which ended by itself or was `cut`, ends with calls. What was cut of a call's framing is no text. */
  end(cut) {
    if (!this.open && this.held && !(cut && begunAt(this.held, [...this.heads.keys()]) === 0)) this.#say(this.held);
    return this.count > 0 && !this.open && !cut;
  }

  #begin() {
    const begun = [...this.heads].map(([head, name]) => [this.held.indexOf(head), head, name]).filter(([at]) => at >= 0);
    if (begun.length === 0) {
      const length = begunAt(this.held, [...this.heads.keys()]);
      this.#say(this.held.slice(0, length));
      this.held = this.held.slice(length);
      return false;
    }
    const [at, head, name] = begun.sort((one, other) => one[0] - other[0])[0];
    this.#say(this.held.slice(0, at));
    this.held = this.held.slice(at + head.length);
    this.open = new JsonEnd();
    this.call({ index: this.count, id: `call_${crypto.randomUUID().replaceAll("-", "").slice(0, 24)}`, type: "function", function: { name, arguments: "" } });
    this.count += 1;
    return true;
  }

  #goOn() {
    const length = this.open.length(this.held);
    if (length) this.call({ index: this.count - 1, function: { arguments: this.held.slice(0, length) } });
    this.held = this.held.slice(length);
    if (!this.open.found || this.held.length < FORM.closing.length) return false;
    this.held = this.held.slice(FORM.closing.length);
    this.open = null;
    return true;
  }

  /** Between calls stands nothing but a line's end. */
  #say(text) {
    const said = this.count ? text.trimStart() : text;
    if (said) this.text(said);
  }
}

/** Where at the end of `text` one of `heads` may begin. */
function begunAt(text, heads) {
  for (let at = Math.max(0, text.length - Math.max(...heads.map((head) => head.length))); at < text.length; at++) {
    if (heads.some((head) => head.startsWith(text.slice(at)))) return at;
  }
  return text.length;
}

/** Finds the end of a JSON value, behind which a brace stands that it did not open. */
class JsonEnd {
  found = false;
  #depth = 0;
  #inString = false;
  #escaped = false;

  /** How many characters of `text`, the next piece, belong to the value. */
  length(text) {
    if (this.found) return 0;
    for (let at = 0; at < text.length; at++) {
      const character = text[at];
      if (this.#escaped) this.#escaped = false;
      else if (this.#inString && character === "\\") this.#escaped = true;
      else if (character === '"') this.#inString = !this.#inString;
      else if (!this.#inString && "{[".includes(character)) this.#depth += 1;
      else if (!this.#inString && "}]".includes(character) && --this.#depth < 0) {
        this.found = true;
        return at;
      }
    }
    return text.length;
  }
}
