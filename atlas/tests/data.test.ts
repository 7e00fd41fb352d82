import { describe, expect, it } from "vitest";
import { revived, unpacked } from "../src/data";
import { shade } from "../src/gallery";
import { inSight } from "../src/list";
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

  it("unpacks once, when it is asked", () => {
    const whole = revived({ entries: [{ codes: { type: "i8", data: "Af8=" } }, { codes: { type: "i8", data: "%%%" } }] }) as
      { entries: { codes: Int8Array }[] };
    expect(Array.from(whole.entries[0].codes)).toEqual([1, -1]);
    expect(whole.entries[0].codes).toBe(whole.entries[0].codes);
    expect(() => whole.entries[1].codes).toThrow();
  });
});

describe("lists", () => {
  it("draws the rows in sight and a few beside them, and no others", () => {
    expect(inSight(0, 440, 3)).toEqual({ first: 0, end: 3 });
    expect(inSight(0, 440, 16000)).toEqual({ first: 0, end: 18 });
    expect(inSight(44 * 1000 + 1, 440, 16000)).toEqual({ first: 992, end: 1019 });
    const { first, end } = inSight(44 * 16000, 440, 16000);
    expect([first, end]).toEqual([15992, 16000]);
    expect(inSight(44 * 16000, 440, 0)).toEqual({ first: 0, end: 0 });
  });
});

describe("maps", () => {
  it("goes from one end of the palette to the other", () => {
    const palette = [[0, 0, 10], [100, 50, 30], [200, 100, 0]];
    expect([-1, 0, 0.25, 0.5, 1, 2].map((share) => shade(palette, share))).toEqual(
      [[0, 0, 10], [0, 0, 10], [50, 25, 20], [100, 50, 30], [200, 100, 0], [200, 100, 0]]);
  });
});

describe("text", () => {
  it("shortens numbers", () => {
    expect([0, 1, 0.12345, 12.345, 123.45, 999.6, 4567.8, 1e6, 1e-5, -2.5, Infinity].map((value) => short(value))).toEqual(
      ["0", "1.00", "0.123", "12.3", "123", "1000", "4568", "1.0 e+6", "1.0 e−5", "−2.50", "never"]);
    expect([percent(0.1234), percent(-1), percent(NaN)]).toEqual(["12.3 %", "–", "–"]);
    expect([points(0.01), points(-0.25), points(0)]).toEqual(["+1.0", "−25.0", "±0"]);
    expect([count(1, "class", "classes"), count(1200, "latent")]).toEqual(["1 class", "1,200 latents"]);
  });
});
