// Interactive figures: plain SVG and the browser's own controls, so that keyboard, touch and
// screen reader work without a line of code here. Data come from the page's JSON, never from a
// formula; formulas are drawn beside them, dashed. The files of this folder are one script.
"use strict";

const MINUS = "\u2212";

/** The array that the page's JSON holds: a flat typed array, and its shape. */
function unpack(packed) {
  const text = atob(packed.base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  if (packed.kind === "<f8") return new Float64Array(bytes.buffer);
  const whole = new Int32Array(bytes.buffer);
  const outermost = 2 ** 31 - 1, unit = 10 ** packed.places;
  return Float64Array.from(whole, (v) =>
    v < -outermost ? NaN : Math.abs(v) === outermost ? Math.sign(v) * Infinity : v / unit);
}

/** One row along the last axis. */
const row = (flat, size, index) => flat.subarray(index * size, (index + 1) * size);

function fixed(value, decimals) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return (value < 0 ? MINUS : "") + "\u221e";
  return value.toFixed(decimals).replace("-", MINUS);
}

/** 10^log10 as [mantissa, exponent]: the number itself may be too large for any float. */
function scientific(log10, decimals) {
  let exponent = Math.floor(log10);
  let mantissa = (10 ** (log10 - exponent)).toFixed(decimals);
  if (mantissa.startsWith("10")) [mantissa, exponent] = [(1).toFixed(decimals), exponent + 1];
  return [mantissa, exponent];
}

/** A number to so many digits, as the page's own text has it: `gradlab/page/numbers.py`. */
function significant(value, digits) {
  if (!Number.isFinite(value)) return fixed(value, 0);
  const rounded = Number(value.toPrecision(digits)), [mantissa, exponent] = rounded.toExponential().split("e");
  if (exponent >= -4 && exponent < 6) return String(rounded).replace("-", MINUS);
  return `${mantissa.replace("-", MINUS)} \u00d7 10${superscript(Number(exponent))}`;
}

/** 10^log10 as text, a plain number where that is short. */
function power(log10, decimals) {
  if (log10 === -Infinity) return "0";
  if (!Number.isFinite(log10)) return fixed(log10, 0);
  if (log10 >= -4 && log10 < 6) return significant(10 ** log10, decimals + 1);
  const [mantissa, exponent] = scientific(log10, decimals);
  return `${mantissa} \u00d7 10${superscript(exponent)}`;
}

const superscript = (whole) =>
  String(whole).replace(/[-0-9]/g, (c) => "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"["0123456789-".indexOf(c)]);

/** A number of a control, without the tail of its binary form. */
const short = (value) => String(Number(Number(value).toPrecision(6))).replace("-", MINUS);

const grouped = (whole) => String(whole).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** The index of the entry nearest to a value. */
function nearest(values, value) {
  let best = 0;
  values.forEach((v, i) => { if (Math.abs(v - value) < Math.abs(values[best] - value)) best = i; });
  return best;
}

/** A few round numbers within [low, high]. */
function ticks(low, high, count) {
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9) + 1e-9 * step; i++) found.push(i * step);
  return found;
}
