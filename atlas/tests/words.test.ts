import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { columns, command, fieldsOf, literal, quoted, recipe, script } from "../src/words";

const edit = { operator: "suppress" as const, latents: [5], rows: [3, 1], alpha: 4.25 };
const HOSTILE = ["a b", "it's", "$(touch x)", "`id`", "-x", "two\nlines", '"', "\\", "é", "", "a;b", "*", "~"];

describe("words", () => {
  it("quotes so that a shell passes every word on unchanged", () => {
    for (const word of HOSTILE) {
      const out = execFileSync("/bin/sh", ["-c", `printf '%s|' ${quoted(word)} end`], { encoding: "utf8" });
      expect(out).toBe(`${word}|end|`);
    }
  });

  it("writes numbers that Python reads as floats", () => {
    expect([literal(0), literal(4), literal(0.1), literal(1e-7), literal(1e21), literal(-7)]).toEqual(["0.0", "4.0", "0.1", "1e-7", "1e+21", "-7.0"]);
  });

  it("writes the command", () => {
    expect(command(edit, "my study", "it's", false)).toEqual({
      line: `salve edit 'my study' --class='it'\\''s' --latent 5 --rows 3,1 --strength 4.25 --out latent-5-edit`,
    });
    expect(command({ ...edit, operator: "enhance", rows: null }, "s", null, true)).toEqual({
      line: "salve edit s --latent 5 --rows all --strength 4.25 --enhance --out latent-5-edit",
    });
    expect(command({ ...edit, latents: [1, 2] }, "s", "-x", true)).toEqual({
      line: "salve edit s --class=-x --recipe suppress-latent-1-2.safetensors --out suppress-latent-1-2",
    });
    expect(command({ ...edit, operator: "mask", rows: [3] }, "s", null, true)).toEqual({
      line: "salve edit s --recipe mask-class-3.safetensors --out mask-class-3",
    });
    expect(command({ ...edit, operator: "mask" }, "s", null, false)).toHaveProperty("missing");
    expect(command({ ...edit, operator: "fold" }, "s", null, false)).toHaveProperty("missing");
    expect(command(edit, null, null, true)).toHaveProperty("missing");
  });

  it("writes Python", () => {
    const text = script({ ...edit, latents: [5, 6], rows: null }, 'a "b"');
    expect(text).toContain('salve.Dictionary.from_pretrained("a \\"b\\"/dictionary")');
    expect(text).toContain("edit = salve.suppress(hooked, dictionary, latent=[5, 6], strength=4.25, rows=None)");
    expect(script({ ...edit, operator: "mask", rows: [3] }, "s")).toContain("edit = salve.mask(hooked, 3, acts)");
    const fold = script({ ...edit, operator: "fold", latents: [5], alpha: 0.75 }, "s");
    expect(fold).toContain("latents = (5,)\n");
    expect(fold).toContain("scale=0.25)");
    expect(fold).toContain('acts = salve.Activations.load("s/activations")');
  });

  it("writes a recipe as aligned safetensors", () => {
    const shared = { site: `{"name":"ü","share":1.0}` };
    const file = recipe(fieldsOf(edit, shared, "d"), { directions: { shape: [1, 2], values: Float32Array.of(1, -2) } });
    const size = Number(new DataView(file.buffer).getBigUint64(0, true));
    expect(size % 8).toBe(0);
    const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + size)));
    expect(header.directions).toEqual({ dtype: "F32", shape: [1, 2], data_offsets: [0, 8] });
    expect(header.__metadata__.recipe).toContain('"share":1.0');
    expect(JSON.parse(header.__metadata__.recipe)).toMatchObject({ site: { name: "ü" }, rows: [1, 3], provenance: { latents: [5] } });
    expect(Array.from(new Float32Array(file.slice(8 + size).buffer))).toEqual([1, -2]);
  });

  it("writes folds and masks with the fields that they have", () => {
    const fold = fieldsOf({ ...edit, operator: "fold", latents: [5, 6], alpha: 0.75 }, {}, "d");
    expect(JSON.parse(fold.operator)).toEqual({ form: "low_rank_map", scale: 0.25 });
    expect(JSON.parse(fold.provenance)).toEqual({ dictionary: "d", kind: "latents", latents: [5, 6], note: "" });
    const mask = fieldsOf({ ...edit, operator: "mask", rows: [3] }, {}, "d", "lowered");
    expect(JSON.parse(mask.operator)).toEqual({ form: "low_rank_update" });
    expect(JSON.parse(mask.provenance)).toEqual({ dictionary: null, kind: "written", latents: [], note: "lowered" });
    expect(columns([[1, 2, 3], [4, 5, 6]])).toEqual({ shape: [3, 2], values: Float64Array.of(1, 4, 2, 5, 3, 6) });
    const empty = { shape: [1, 0], values: new Float64Array(0) };
    const file = recipe(mask, { left: empty, shift: { shape: [1], values: Float64Array.of(-3) } });
    const size = Number(new DataView(file.buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + size)));
    expect([header.left.data_offsets, header.shift.data_offsets]).toEqual([[0, 0], [0, 8]]);
  });
});
