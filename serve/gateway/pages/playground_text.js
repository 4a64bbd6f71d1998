// Text on the page: what a model writes becomes paragraphs, lists and blocks of code, and never HTML.

export function element(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function button(label, action) {
  const node = element("button", "mini", label);
  node.type = "button";
  node.addEventListener("click", () => action(node));
  return node;
}

export async function copy(text, from) {
  const label = from.textContent;
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Not allowed";
  }
  setTimeout(() => (from.textContent = label), 1500);
}

/** Split model output into blocks: {kind: "code" | "list" | "heading" | "text", …}. */
function blocks(text) {
  const found = [];
  let code = null;
  let open = null;
  for (const line of text.split("\n")) {
    const fence = line.match(/^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/);
    if (code) {
      if (fence && !fence[2]) code = null;
      else code.lines.push(line);
      continue;
    }
    const item = line.match(/^\s*(?:[-*+•]|(\d{1,9})[.)])\s+(.*)$/);
    const heading = line.match(/^#{1,6}\s+(.*)$/);
    if (fence) {
      found.push((code = { kind: "code", language: fence[2], lines: [] }));
      open = null;
    } else if (heading) {
      found.push({ kind: "heading", lines: [heading[1]] });
      open = null;
    } else if (item) {
      const ordered = item[1] !== undefined;
      if (open?.kind !== "list" || open.ordered !== ordered) {
        found.push((open = { kind: "list", ordered, start: Number(item[1] ?? 1), lines: [] }));
      }
      open.lines.push(item[2]);
    } else if (!line.trim()) {
      if (open?.kind === "text") open = null;
    } else if (open?.kind === "list" && /^\s{2,}/.test(line)) {
      open.lines[open.lines.length - 1] += `\n${line.trim()}`;
    } else {
      if (open?.kind !== "text") found.push((open = { kind: "text", lines: [] }));
      open.lines.push(line);
    }
  }
  return found;
}

/** `code` and **bold** within a line; everything else stays the text it is. */
function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part) => {
    if (part.length > 2 && part.startsWith("`")) return element("code", "", part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**")) return element("strong", "", part.slice(2, -2));
    return part;
  });
}

function blockElement(block) {
  const text = block.lines.join("\n");
  if (block.kind === "code") {
    const code = element("code", "", text);
    const head = element("div", "block-head", element("span", "", block.language || "code"));
    head.append(button("Copy", (from) => copy(code.textContent, from)));
    const pre = element("pre", "", code);
    pre.tabIndex = 0;
    return element("div", "block", head, pre);
  }
  if (block.kind === "list") {
    const list = element(block.ordered ? "ol" : "ul", "", ...block.lines.map((line) => element("li", "", ...inline(line))));
    if (block.ordered) list.start = block.start;
    return list;
  }
  return element(block.kind === "heading" ? "h3" : "p", "", ...inline(text));
}

/** Show `text` in `target`, replacing only the blocks that changed since the last call. */
export function render(target, text) {
  const fresh = blocks(text);
  fresh.forEach((block, index) => {
    const now = JSON.stringify(block);
    const old = target.children[index];
    if (old?.source === now) return;
    const node = blockElement(block);
    node.source = now;
    if (old) old.replaceWith(node);
    else target.append(node);
  });
  while (target.children.length > fresh.length) target.lastChild.remove();
}
