// What the console is drawn of: elements, tables, and figures as people read them. A button for an act sends an "act" event.

// ---------------------------------------------------------------------------------------------------- elements

export function element(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function drawn(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** What stands in a cell: text, or {text, look, hint}, {state, kind}, {reason}, {done, of, label}, or an act to ask for. */
function part(told) {
  if (typeof told !== "object") return String(told);
  if ("act" in told) {
    const button = element("button", told.risky ? "act risky" : "act", told.does);
    button.type = "button";
    button.setAttribute("aria-label", `${told.does} ${told.name}`);
    button.addEventListener("click", () => button.dispatchEvent(new CustomEvent("act", { bubbles: true, detail: told })));
    return button;
  }
  if ("state" in told) return element("span", `state ${told.kind}`, told.state);
  if ("reason" in told) return element("span", "reason", told.reason);
  if ("done" in told) {
    const bar = element("progress", "bar-of");
    bar.max = told.of || 1;
    bar.value = told.done;
    bar.setAttribute("aria-label", told.label);
    return bar;
  }
  const node = element("span", told.look ?? "", told.text);
  if (told.hint) node.title = told.hint;
  return node;
}

/** A section with its heading and a table; `columns` are names, a name that begins with ">" ends its column. */
export class Sheet {
  constructor(id, title, columns, empty) {
    this.columns = columns.map((name) => ({ name: name.replace(">", ""), look: name.startsWith(">") ? "end" : "" }));
    const heading = element("h2", "", title);
    heading.id = `${id}-title`;
    this.note = element("p", "note");
    this.empty = element("p", "empty", empty);
    const head = element("tr", "", ...this.columns.map(({ name, look }) => {
      const cell = element("th", look, name || element("span", "hidden", "Acts"));
      cell.scope = "col";
      return as("columnheader", cell);
    }));
    this.body = as("rowgroup", element("tbody"));
    this.table = as("table", element("table", "sheet", as("rowgroup", element("thead", "", as("row", head))), this.body));
    this.table.setAttribute("aria-labelledby", heading.id);
    document.getElementById(id).append(element("div", "head", heading, this.note), this.table, this.empty);
  }

  /** Show `rows`: {key, look, cells}, each cell a list of parts. Only what changed is touched: focus and selection stay. */
  show(rows, total = rows.length, shown = rows.length) {
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0;
    this.note.textContent = total > shown ? `${shown} of ${total}` : "";
    const old = new Map([...this.body.children].map((row) => [row.key, row]));
    rows.forEach((row, index) => {
      const node = old.get(row.key) ?? this.#row(row);
      old.delete(row.key);
      node.className = row.look ?? "";
      row.cells.forEach((parts, column) => fill(node.cells[column].firstChild, parts));
      if (this.body.children[index] !== node) this.body.insertBefore(node, this.body.children[index] ?? null);
    });
    for (const row of old.values()) row.remove();
  }

  #row({ key, cells }) {
    const whole = cells.length === 1;
    const node = as("row", element("tr", "", ...cells.map((_, index) => {
      const cell = as("cell", element("td", whole ? "" : this.columns[index].look, element("div")));
      if (whole) cell.colSpan = this.columns.length;
      else cell.dataset.label = this.columns[index].name;
      return cell;
    })));
    node.key = key;
    return node;
  }
}

/** Tables keep their meaning where the style sheet turns rows into cards. */
function as(role, node) {
  node.setAttribute("role", role);
  return node;
}

/** The parts with spaces between them, anew only where they changed. */
export function fill(node, parts) {
  const now = JSON.stringify(parts);
  if (node.source === now) return;
  node.source = now;
  node.replaceChildren(...parts.filter((told) => told !== null && told !== "").flatMap((told) => [part(told), " "]));
}

// ---------------------------------------------------------------------------------------------------- figures

export function count(value, digits = 1) {
  const [unit, letter] = value >= 1e9 ? [1e9, "B"] : value >= 1e6 ? [1e6, "M"] : value >= 1e4 ? [1e3, "k"] : [1, ""];
  return `${Number((value / unit).toFixed(letter ? digits : 0))}${letter}`;
}

export function bytes(value) {
  const [unit, name] = value >= 1e9 ? [1e9, "GB"] : value >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
  return `${(value / unit).toFixed(1)} ${name}`;
}

export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  return whole < 2 * 86400 ? `${Math.floor(whole / 3600)} h` : `${Math.floor(whole / 86400)} d`;
}

export function latency(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.0995) return `${(seconds * 1e3).toFixed(seconds < 0.00995 ? 1 : 0)} ms`;
  return seconds < 1 ? `${Math.round(seconds * 1e3)} ms` : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

function moment(at) {
  return new Date(at * 1000).toLocaleString();
}

export function age(at, now) {
  return { text: span(now - at), hint: moment(at) };
}
