import { describe, expect, it } from "vitest";
import {
  confusion, counted, criticalStrengths, factors, firstRoot, type Head, limitOf, predictions, quantile,
  reachOf, restOf, StepFunction,
} from "../src/edits";

/** Numbers from -1 to 1, the same every time. */
function random(seed: number) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return (state >>> 0) / 2 ** 31 - 1;
  };
}

function problem(seed: number, classes = 6, width = 9, images = 40) {
  const next = random(seed);
  const numbers = (n: number) => Float32Array.from({ length: n }, next);
  const head: Head = { weight: numbers(classes * width), bias: numbers(classes), width, classes };
  const x = numbers(images * width).map(Math.abs);
  const logits = new Float32Array(images * classes);
  for (let i = 0; i < images; i++) {
    for (let k = 0; k < classes; k++) {
      let sum = head.bias[k];
      for (let j = 0; j < width; j++) sum += x[i * width + j] * head.weight[k * width + j];
      logits[i * classes + k] = sum;
    }
  }
  const labels = Int32Array.from({ length: images }, (_, i) => i % classes);
  const atom = numbers(width);
  const norm = Math.hypot(...atom);
  return { head, recorded: { x, logits, labels }, reach: reachOf([atom.map((each) => each / norm)]) };
}

/** The largest logit of each image, everything computed anew in float64. */
function recounted({ head, recorded }: ReturnType<typeof problem>, scale: Float32Array, rows: number[]) {
  return Array.from(recorded.labels, (_, i) => {
    let best = -1;
    let most = -Infinity;
    for (let k = 0; k < head.classes; k++) {
      let sum = head.bias[k];
      for (let j = 0; j < head.width; j++) {
        const factor = rows.includes(k) ? scale[j] : 1;
        sum += recorded.x[i * head.width + j] * Math.fround(head.weight[k * head.width + j] * factor);
      }
      if (sum > most) [best, most] = [k, sum];
    }
    return best;
  });
}

describe("edits", () => {
  it("takes |c| of one atom and the root of squares of several", () => {
    expect(Array.from(reachOf([Float32Array.of(-0.5, 0.25)]))).toEqual([0.5, 0.25]);
    expect(Array.from(reachOf([Float32Array.of(3, 0), Float32Array.of(4, 1)]))).toEqual([5, 1]);
  });

  it("closes columns when it suppresses and opens them when it enhances", () => {
    const reach = Float64Array.of(0, 0.5, 1);
    expect(Array.from(factors(reach, 1.5, "suppress"))).toEqual([1, 0.25, 0]);
    expect(Array.from(factors(reach, 1.5, "enhance"))).toEqual([1, 1.75, 2.5]);
  });

  it.each([[[2]], [[0, 3, 5]], [null]])("predicts what recounting gives, rows %j", (rows) => {
    for (let seed = 1; seed < 20; seed++) {
      const given = problem(seed);
      const rest = restOf(given.head, given.recorded, rows);
      const scale = factors(given.reach, 0.3 * seed, "suppress");
      const all = rows ?? [0, 1, 2, 3, 4, 5];
      expect(Array.from(predictions(given.head, given.recorded, rest, scale))).toEqual(recounted(given, scale, all));
    }
  });

  it("never predicts a masked class", () => {
    const given = problem(3);
    const masked = predictions(given.head, given.recorded, restOf(given.head, given.recorded, [1, 2]), null);
    expect(masked.some((each) => each === 1 || each === 2)).toBe(false);
    expect(new Set(masked).size).toBeGreaterThan(1);
  });

  it.each([["suppress", "own"], ["suppress", "both"], ["suppress", "rival"], ["suppress", "all"], ["enhance", "rival"]] as const)(
    "finds where decisions break: %s, rows %s", (operator, chosen) => {
      let broken = 0;
      for (let seed = 1; seed < 12; seed++) {
        const { head, recorded, reach } = problem(seed, 6, 9, 60);
        const base = restOf(head, recorded, []).best;
        const label = base[0];
        const rival = (label + 1) % 6;
        recorded.labels.fill(label, 0, 50);
        const rows = { own: [label], both: [label, rival], rival: [rival], all: null }[chosen];
        const images = Array.from(recorded.labels.keys()).filter((i) => recorded.labels[i] === label);
        const rest = restOf(head, recorded, rows);
        const crits = criticalStrengths(head, recorded, rest, reach, operator, label, images);
        images.forEach((image, at) => {
          const predicted = (alpha: number) => predictions(head, recorded, rest, factors(reach, alpha, operator))[image];
          if (base[image] !== label) return expect(crits[at]).toBe(0);
          const end = Math.min(crits[at], 200);
          for (const share of [0.25, 0.5, 0.75, 0.999]) expect(predicted(share * end)).toBe(label);
          if (Number.isFinite(crits[at])) {
            broken++;
            expect(predicted(crits[at] * 1.0001 + 1e-6)).not.toBe(label);
          }
        });
      }
      expect(broken).toBeGreaterThan(5);
    });

  it("finds the first root even where the function comes back", () => {
    const u = Float64Array.of(3, -2);
    const reach = Float64Array.of(1, 0.25);
    expect(firstRoot(u, reach, Int32Array.of(1, 0), 0.5, false)).toBeCloseTo(0.6, 12);
    expect(firstRoot(u, reach, Int32Array.of(1, 0), -2, false)).toBe(0);
    expect(firstRoot(u, reach, Int32Array.of(1, 0), 5, false)).toBe(Infinity);
  });

  it("follows steps that were computed ahead", () => {
    const steps = new StepFunction(Int32Array.of(4, 7), {
      images: Int32Array.of(1, 1), strengths: Float64Array.of(1, 2), classes: Int32Array.of(5, 6),
    });
    expect([0, 1, 1.5, 2, 9].map((alpha) => Array.from(steps.at(alpha)))).toEqual([[4, 7], [4, 5], [4, 5], [4, 6], [4, 6]]);
    expect([steps.firstStep(0), steps.firstStep(1)]).toEqual([Infinity, 1]);
  });

  it("counts", () => {
    const labels = Int32Array.of(0, 0, 1, 2);
    const predicted = Int32Array.of(0, 1, 1, 9);
    const counts = counted(labels, predicted, 10);
    expect([counts.overall, counts.right[0], counts.total[0], counts.right[2]]).toEqual([0.5, 1, 2, 0]);
    expect(confusion(labels, predicted, [0, 2])).toEqual([[1, 0, 1], [0, 0, 1]]);
    expect(quantile([1, 2, 4], 0.75)).toBe(3);
  });

  it("ends the slider where nine tenths of the columns are closed", () => {
    expect(limitOf(Float64Array.from({ length: 10 }, (_, i) => (i + 1) / 10))).toBe(5);
    expect(limitOf(Float64Array.of(1, 1e-9))).toBe(1000);
  });
});
