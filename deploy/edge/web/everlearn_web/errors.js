// One error of everlearn-web. `code` is for programs; the message says what was wrong, where, and what would be right.

export class EverlearnError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "EverlearnError";
    this.code = code;
  }
}

/** What crosses from a worker to the page: an error as plain data, and back. */
export const packed = (error) => ({ code: error.code ?? "runtime", message: String(error.message ?? error) });
export const unpacked = ({ code, message }) => new EverlearnError(code, message);

export function invalid(name, value, right) {
  throw new EverlearnError("invalid_input", `${name} is ${String(JSON.stringify(value)).slice(0, 80)}; it must be ${right}`);
}
