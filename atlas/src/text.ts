/** Numbers as people read them. */
export function short(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return value > 0 ? "never" : "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e", " e").replaceAll("-", "−");
  // From what rounds to a power of ten on: `toPrecision` writes that with an exponent.
  const text = size >= 10 ** digits - 0.5 ? Math.round(value).toString() : value.toPrecision(digits);
  return text.replace("-", "−");
}

/** The address of a picture, if it holds the picture: a notebook has no policy against all others. */
export const held = (address: string) => (address.startsWith("data:image/") ? address : "");

export function percent(share: number): string {
  return Number.isFinite(share) && share >= 0 ? `${(100 * share).toFixed(1)} %` : "–";
}

export function points(change: number): string {
  if (!Number.isFinite(change)) return "–";
  const value = (100 * change).toFixed(1);
  if (Number(value) === 0) return "±0";
  return change > 0 ? `+${value}` : value.replace("-", "−");
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}
