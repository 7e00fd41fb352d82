import { describe, expect, it } from "vitest";
import { revived, unpacked } from "../src/data";
import { count, percent, points, short } from "../src/text";

describe("data", () => {
  it("unpacks little-endian numbers", () => {
    expect(Array.from(unpacked({ type: "i8", data: "Af8=" }))).toEqual([1, -1]);
    expect(Array.from(unpacked({ type: "f32", data: "AACAPwAAAMA=" }))).toEqual([1, -2]);
    expect(Array.from(unpacked({ type: "f64", data: "AAAAAAAA8H8=" }))).toEqual([Infinity]);
  });

  it("leaves everything else as it is", () => {
    const value = { name: "</script>", list: [1, { type: "i8", data: "Af8=" }], type: "f32", none: null };
    expect(revived(value)).toEqual({ ...value, list: [1, Int8Array.of(1, -1)] });
  });
});

describe("text", () => {
  it("shortens numbers", () => {
    expect([0, 1, 0.12345, 12.345, 123.45, 4567.8, 1e6, 1e-5, -2.5, Infinity].map((value) => short(value))).toEqual(
      ["0", "1.00", "0.123", "12.3", "123", "4568", "1.0 e+6", "1.0 e−5", "−2.50", "never"]);
    expect([percent(0.1234), percent(-1), percent(NaN)]).toEqual(["12.3 %", "–", "–"]);
    expect([points(0.01), points(-0.25), points(0)]).toEqual(["+1.0", "−25.0", "±0"]);
    expect([count(1, "class", "classes"), count(1200, "latent")]).toEqual(["1 class", "1,200 latents"]);
  });
});
