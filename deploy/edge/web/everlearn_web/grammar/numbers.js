// Numbers between bounds as parts of a grammar, digit by digit. Computed in whole numbers, so that no rounding lets one through.

import { choice, sequence, set, text } from "./parts.js";

const DIGITS = 15;
const MOST = 10n ** BigInt(DIGITS) - 1n;
const MAX_DECIMALS = 6;

/** Bounds of a schema: {minimum, maximum, exclusiveMinimum, exclusiveMaximum}. A part, or null where nothing lies between them. */
export function integers(bounds) {
  return between(limits(bounds, 0), 0);
}

/**
 * As `integers`, with up to two decimals more than the bounds have. Undefined where a bound has more decimals, or is
 * larger, than is written here.
 */
export function decimals(bounds) {
  const said = Object.values(bounds).map(String);
  const most = Math.max(...said.map((text) => (text.split(".")[1] ?? "").length));
  if (most > MAX_DECIMALS || said.some((text) => text.includes("e"))) return undefined;
  const found = Array.from({ length: most + 3 }, (_, places) => between(limits(bounds, places), places)).filter(Boolean);
  return found.length ? choice(...found) : null;
}

/** The smallest and the largest n for which n / 10^places keeps to the bounds. */
function limits({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }, places) {
  const widest = MOST * 10n ** BigInt(places);
  let [low, high] = [-widest, widest];
  const raise = (value) => value > low && (low = value);
  const lower = (value) => value < high && (high = value);
  if (minimum !== undefined) raise(-floor(-minimum, places));
  if (exclusiveMinimum !== undefined) raise(floor(exclusiveMinimum, places) + 1n);
  if (maximum !== undefined) lower(floor(maximum, places));
  if (exclusiveMaximum !== undefined) lower(-floor(-exclusiveMaximum, places) - 1n);
  return [low, high];
}

/** The largest whole number that is not over value * 10^places. */
function floor(value, places) {
  const [whole, fraction = ""] = plain(Math.abs(value)).split(".");
  const shifted = BigInt(whole + fraction.slice(0, places).padEnd(places, "0"));
  if (value >= 0) return shifted;
  return /[1-9]/.test(fraction.slice(places)) ? -shifted - 1n : -shifted;
}

/** Without an exponent. */
function plain(value) {
  const text = String(value);
  if (!text.includes("e")) return text;
  return value >= 1 ? String(BigInt(value)) : value.toFixed(100);
}

function between([low, high], places) {
  if (low > high) return null;
  const parts = [];
  if (low < 0n) parts.push(...lengths(high < 0n ? -high : 1n, -low, places).map((each) => sequence(text("-"), each)));
  if (high >= 0n) parts.push(...lengths(low > 0n ? low : 0n, high, places));
  return parts.length ? choice(...parts) : null;
}

/** Whole numbers from low to high, by their number of digits, with a point before the last `places`. */
function lengths(low, high, places) {
  const found = [];
  const shortest = places + 1;
  for (let length = shortest; length <= Math.max(String(high).length, shortest); length++) {
    const first = length === shortest ? 0n : 10n ** BigInt(length - 1);
    const last = 10n ** BigInt(length) - 1n;
    const [from, to] = [low > first ? low : first, high < last ? high : last];
    if (from <= to) found.push(...sameLength(digits(from, length), digits(to, length)).map((each) => pointed(each, places)));
  }
  return found;
}

const digits = (value, length) => String(value).padStart(length, "0");

/** Two texts of as many digits -> lists of [first, last] for each digit, which together allow what lies between. */
function sameLength(low, high) {
  if (low === "") return [[]];
  const [first, last] = [Number(low[0]), Number(high[0])];
  const [restLow, restHigh] = [low.slice(1), high.slice(1)];
  const [none, all] = ["0".repeat(restLow.length), "9".repeat(restLow.length)];
  const begun = (digit, lists) => lists.map((list) => [[digit, digit], ...list]);
  if (first === last) return begun(first, sameLength(restLow, restHigh));
  const found = [];
  const from = restLow === none ? first : first + 1;
  const to = restHigh === all ? last : last - 1;
  if (from > first) found.push(...begun(first, sameLength(restLow, all)));
  if (from <= to) found.push([[from, to], ...Array.from(restLow, () => [0, 9])]);
  if (to < last) found.push(...begun(last, sameLength(none, restHigh)));
  return found;
}

function pointed(list, places) {
  const written = list.map(([first, last]) => set([[0x30 + first, 0x30 + last]]));
  if (places) written.splice(written.length - places, 0, text("."));
  return sequence(...written);
}
