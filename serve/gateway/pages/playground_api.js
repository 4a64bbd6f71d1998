// The API that the playground asks, as every other client does.

export const api = new URL("v1/", location.href);

/** An error told to the person: a title, a detail, and the HTTP status if there was one. */
export class Problem extends Error {
  constructor(title, detail = "", status = 0) {
    super(title);
    this.detail = detail;
    this.status = status;
  }
}

const TITLES = {
  400: "The server did not accept this request",
  401: "This server asks for an API key",
  403: "This API key may not use this model",
  404: "This model is not being served",
  413: "The message is too long",
  429: "Too many requests just now",
  503: "The model is not ready",
  504: "The model took too long to answer",
};

export async function request(path, { body, signal } = {}) {
  const key = document.getElementById("api-key").value.trim();
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, api), {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached", "Is it still running? Your message is kept.");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  const title = TITLES[response.status] ?? `The server answered with status ${response.status}`;
  throw new Problem(title, answer?.error?.message ?? response.statusText, response.status);
}

/** The JSON events of a server-sent event stream. Throws a Problem when the stream reports an error or breaks off. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Problem("The answer broke off", "The connection was closed before the model had finished.");
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Problem("The answer broke off", event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem("The answer broke off", "The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
