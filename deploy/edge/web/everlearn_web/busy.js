// A server that is busy (429, 503) says when to ask again.

const FIRST_MS = 500;
const MOST_MS = 60_000;

export const isBusy = ({ status }) => status === 429 || status === 503;

/** Milliseconds until the next try: Retry-After's seconds, where the page may read them, else twice as many each time. */
export function busyMs({ headers }, tried) {
  const said = headers.get("retry-after") ?? "";
  return Math.min(/^\d{1,9}$/.test(said) ? said * 1000 : FIRST_MS * 2 ** tried, MOST_MS);
}
