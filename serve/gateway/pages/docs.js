// The API's page: openapi.json of this server, route by route, each to be tried. Text goes in as text only.

const $ = (id) => document.getElementById(id);
const METHODS = ["get", "post", "put", "patch", "delete"];
/** The playground's and the console's name for it; forgotten with the tab. */
const KEY = "everlearn.apiKey";
/** Bounds as far as this are the machine's, and tell nobody anything. */
const FAR = 2 ** 31 - 1;
const key = $("api-key");

let api = {};
/** Names of served models by what they do. */
let models = {};

function element(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// ------------------------------------------------------------------------------------------------------ schemas

const named = (schema) => schema.$ref?.split("/").at(-1);
const resolved = (schema) => (schema.$ref ? api.components.schemas[named(schema)] : schema);

/** What a value may be, `null` for "not given" left out. */
function choices(schema) {
  const several = schema.anyOf ?? schema.oneOf;
  return several ? several.flatMap(choices).filter((one) => one.type !== "null") : [schema];
}

function typeOf(schema) {
  const all = choices(schema).map((one) => {
    if (one.$ref) return named(one);
    if ("const" in one) return JSON.stringify(one.const);
    if (one.enum) return one.enum.map((value) => JSON.stringify(value)).join(" | ");
    if (one.type === "array") return `list of ${typeOf(one.items ?? {})}`;
    return one.type ?? "any";
  });
  return [...new Set(all)].join(" or ");
}

function bounds(schema) {
  const told = choices(schema).flatMap((one) => [
    one.minimum > -FAR && `at least ${one.minimum}`,
    one.exclusiveMinimum !== undefined && `above ${one.exclusiveMinimum}`,
    one.maximum < FAR && `at most ${one.maximum}`,
    one.maxLength !== undefined && `at most ${one.maxLength} characters`,
    one.maxItems !== undefined && `at most ${one.maxItems} of them`,
    one.pattern && `as ${one.pattern}`,
  ]);
  return [...new Set(told.filter(Boolean))].join(", ");
}

/** The objects that a value holds, itself or as its items. */
function inside(schema) {
  return choices(schema).flatMap((one) => {
    const full = resolved(one);
    if (one.$ref && full.properties) return [one];
    if (full.anyOf || full.oneOf) return inside(full);
    return full.items ? inside(full.items) : [];
  });
}

/** A table of an object's fields; the objects in them open where somebody asks, since some hold themselves. */
function fields(schema) {
  const full = resolved(schema);
  const needed = new Set(full.required);
  const sorted = Object.entries(full.properties ?? {}).sort(([a], [b]) => needed.has(b) - needed.has(a));
  const rows = sorted.map(([name, field]) => {
    const must = needed.has(name) ? [" ", element("span", "must", "required")] : [];
    const told = element("td", "", typeOf(field));
    for (const note of [field.description, bounds(field)].filter(Boolean)) told.append(element("span", "note", note));
    for (const one of inside(field)) {
      const more = element("details", "", element("summary", "", named(one)));
      more.addEventListener("toggle", () => more.open && more.children.length === 1 && more.append(fields(one)));
      told.append(more);
    }
    return element("tr", "", element("td", "", name, ...must), told);
  });
  return element("table", "fields", element("tbody", "", ...rows));
}

// ------------------------------------------------------------------------------------------------------- routes

/** An example with a model that is served here. */
function example(content) {
  const body = structuredClone(content.example ?? {});
  if (body.model) body.model = models[/embed/.test(body.model) ? "embed" : "generate"] ?? body.model;
  return JSON.stringify(body, null, 2);
}

function route(path, method, operation) {
  const id = `${method}${path.replaceAll(/[^a-z0-9]+/gi, "-")}`;
  const title = element("h3", "", element("span", `method ${method}`, method.toUpperCase()), path);
  const article = element("article", "route", title);
  article.id = id;
  if (operation.description) article.append(element("p", "", operation.description));
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    const schema = {
      properties: Object.fromEntries(parameters.map((one) => [one.name, { description: one.description, ...one.schema }])),
      required: parameters.filter((one) => one.required).map((one) => one.name),
    };
    article.append(element("h4", "", "Parameters"), fields(schema));
  }
  const [kind, content] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [];
  if (content) article.append(element("h4", "", `Body (${kind})`), fields(content.schema));
  const answers = Object.entries(operation.responses).map(([status, one]) =>
    element("tr", "", element("td", "", status), element("td", "", one.description)));
  const all = element("details", "", element("summary", "", "Answers"));
  all.append(element("table", "fields", element("tbody", "", ...answers)));
  article.append(element("div", "fields", all));
  if (kind !== "multipart/form-data") article.append(trial(path, method, parameters, content));
  const entry = element("a", "", element("span", `method ${method}`, method.toUpperCase()), path);
  entry.href = `#${id}`;
  return [article, entry];
}

/** Inputs for the parameters and the body, and what the server answers. */
function trial(path, method, parameters, content) {
  const form = element("form", "try");
  const inputs = parameters.map((one) => {
    const input = element("input");
    input.name = one.name;
    input.required = one.in === "path";
    form.append(element("label", "", one.name, input));
    return [one, input];
  });
  const body = content && element("textarea");
  if (body) {
    body.spellcheck = false;
    body.value = example(content);
    form.append(element("label", "", "Body", body));
  }
  const send = element("button", "solid", "Try it");
  const answer = element("pre");
  answer.hidden = true;
  form.append(send, answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    let url = path.slice(1);
    for (const [one, input] of inputs) {
      if (one.in === "path") url = url.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (input.value) query.set(one.name, input.value);
    }
    send.disabled = true;
    await ask(`${url}${query.size ? `?${query}` : ""}`, method, body?.value, answer);
    send.disabled = false;
  });
  return form;
}

/** Shows the answer as it comes; JSON is indented when it is whole. */
async function ask(url, method, body, answer) {
  answer.hidden = false;
  answer.textContent = "…";
  const headers = key.value ? { authorization: `Bearer ${key.value}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    const response = await fetch(url, { method: method.toUpperCase(), headers, body });
    const head = `${response.status} ${response.statusText}\n\n`;
    let text = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      answer.textContent = head + text;
    }
    if (response.headers.get("content-type")?.startsWith("application/json")) {
      text = JSON.stringify(JSON.parse(text), null, 2);
    }
    answer.textContent = head + text;
  } catch (error) {
    answer.textContent = `No answer: ${error.message}`;
  }
}

// --------------------------------------------------------------------------------------------------------- page

async function findModels() {
  const headers = key.value ? { authorization: `Bearer ${key.value}` } : {};
  const answer = await fetch("v1/models", { headers });
  if (!answer.ok) return;
  for (const model of (await answer.json()).data) models[model.task] ??= model.id;
}

async function show() {
  api = await (await fetch("openapi.json")).json();
  await findModels().catch(() => {});
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((name) => name in operations)) {
      const operation = operations[method];
      const group = operation.tags?.[0] ?? "Other";
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(route(path, method, operation));
    }
  }
  $("main").replaceChildren();
  for (const [group, routes] of groups) {
    $("main").append(element("h2", "", group), ...routes.map(([article]) => article));
    $("contents").append(element("h2", "", group), ...routes.map(([, entry]) => entry));
  }
  if (location.hash) document.querySelector(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView();
}

try {
  key.value = sessionStorage.getItem(KEY) ?? "";
} catch {
  // a browser that forbids it
}
key.addEventListener("change", () => {
  try {
    sessionStorage.setItem(KEY, key.value);
  } catch {
    // it holds while the page is open
  }
});
show().catch((error) => { $("main").replaceChildren(element("p", "problem", `openapi.json could not be read: ${error.message}`)); });
