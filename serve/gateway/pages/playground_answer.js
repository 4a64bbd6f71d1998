// One answer on the page.

import { button, copy, element, render } from "./playground_text.js";

const scroller = document.getElementById("scroller");

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = scroller;
  return scrollHeight - scrollTop - clientHeight < 80;
}

export function scrollToEnd() {
  scroller.scrollTop = scroller.scrollHeight;
}

/** An answer on the page, and what is measured while it arrives. */
export class Answer {
  /** `again` is called with the answer's node where another is wanted. */
  constructor(model, again) {
    this.model = model;
    this.again = again;
    this.text = "";
    this.tokens = 0;
    this.asked = performance.now();
    this.first = this.last = null;
    this.body = element("div", "text");
    this.meta = element("div", "meta");
    this.node = element("article", "answer working", this.body, this.meta);
    this.node.setAttribute("aria-label", `Answer of ${model}`);
  }

  add(delta) {
    this.last = performance.now();
    this.first ??= this.last;
    this.text += delta;
    this.tokens += 1;
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const follow = isAtEnd();
    if (this.nodes) this.body.replaceChildren(...this.nodes);
    else render(this.body, this.text);
    this.meta.replaceChildren(...this.figures());
    if (follow) scrollToEnd();
  }

  figures() {
    if (this.first === null) return [];
    const parts = [];
    const decode_s = (this.last - this.first) / 1000;
    if (this.tokens > 1 && decode_s > 0) {
      const speed = (this.tokens - 1) / decode_s;
      parts.push(element("span", "speed", element("b", "", speed.toFixed(speed < 10 ? 1 : 0)), " tok/s"));
    }
    const wait_ms = this.first - this.asked;
    const wait = wait_ms < 1000 ? `${Math.round(wait_ms)} ms` : `${(wait_ms / 1000).toFixed(1)} s`;
    parts.push(element("span", "wait", `first token in ${wait}`));
    parts.push(element("span", "count", this.tokens === 1 ? "1 token" : `${this.tokens} tokens`));
    return parts;
  }

  /** Close the answer: exact token count from `usage`, a note on why it ended, and the buttons. */
  end({ usage, note } = {}) {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = null;
    if (usage) this.tokens = usage.completion_tokens;
    this.draw();
    this.node.classList.remove("working");
    const follow = isAtEnd();
    this.meta.append(element("span", "", this.model));
    if (note) this.meta.append(element("span", "note", note));
    const tools = element("span", "tools");
    if (this.text) tools.append(button("Copy", (from) => copy(this.text, from)));
    tools.append(button("Try again", () => this.again(this.node)));
    this.meta.prepend(tools);
    if (follow) scrollToEnd();
  }

  fail(problem) {
    const box = element("div", "problem", element("strong", "", problem.message), problem.detail ?? "");
    box.setAttribute("role", "alert");
    this.body.after(box);
  }
}
