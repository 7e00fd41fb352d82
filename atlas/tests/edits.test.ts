import { describe, expect, it } from "vitest";
import {
  confusion, counted, criticalAmounts, criticalStrengths, factors, Fall, firstRoot, gated, type Head, limitOf,
  predictions, quantile, reachOf, restOf, StepFunction, type Top,
} from "../src/edits";

/** Numbers from -1 to 1, the same every time. */
function random(seed: number) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return (state >>> 0) / 2 ** 31 - 1;
  };
}

/** The highest `kept` logits of each image. */
function topOf(logits: Float32Array, classes: number, kept: number): Top {
  const orders = Array.from({ length: logits.length / classes }, (_, i) => {
    const own = Array.from(logits.subarray(i * classes, (i + 1) * classes));
    return own.map((_, k) => k).sort((a, b) => own[b] - own[a] || a - b).slice(0, kept);
  });
  return {
    classes: Int32Array.from(orders.flat()), kept,
    logits: Float32Array.from(orders.flatMap((order, i) => order.map((k) => logits[i * classes + k]))),
  };
}

function problem(seed: number, classes = 6, width = 9, images = 40, kept = classes) {
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
  return { head, recorded: { x, labels, top: topOf(logits, classes, kept) }, reach: reachOf([atom.map((each) => each / norm)]) };
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
      expect(Array.from(predictions(given.head, rest, gated(given.head, given.recorded, scale)))).toEqual(recounted(given, scale, all));
    }
  });

  it.each([[[2]], [[0, 3]], [[0, 3, 5]], [[0, 1, 3, 5]]])("knows the best of the other rows from few logits an image, rows %j", (rows) => {
    for (let seed = 1; seed < 9; seed++) {
      const [whole, few] = [problem(seed), problem(seed, 6, 9, 40, 3)];
      expect(few.recorded.top.logits.length).toBe(3 * 40);
      const [all, some] = [whole, few].map((given) => restOf(given.head, given.recorded, rows));
      expect(some.best).toEqual(all.best);
      some.logit.forEach((logit, i) => expect(logit).toBeCloseTo(all.logit[i], 5));
    }
  });

  it.each([[[2]], [[0, 3, 5]], [null]])("folds latents as x' = x - t U(V'x - c) does, rows %j", (rows) => {
    let [changed, broken] = [0, 0];
    for (let seed = 1; seed < 12; seed++) {
      const { head, recorded } = problem(seed, 6, 9, 60);
      const next = random(seed + 100);
      const folded = Array.from({ length: 2 }, () => ({
        write: Float32Array.from({ length: 9 }, next), read: Float64Array.from({ length: 9 }, next), offset: next(),
      }));
      const rest = restOf(head, recorded, rows);
      const fall = new Fall(head, recorded, folded);
      const predicted = (amount: number) => predictions(head, rest, fall.logits(recorded, amount));
      const moved = (i: number, amount: number) => {
        const x = Array.from(recorded.x.subarray(9 * i, 9 * i + 9));
        const readings = folded.map(({ read, offset }) => x.reduce((sum, each, j) => sum + each * read[j], -offset));
        return x.map((each, j) => each - amount * folded.reduce((sum, { write }, m) => sum + write[j] * readings[m], 0));
      };
      for (const amount of [0, 0.4, 1, 1.7]) {
        const expected = Array.from(recorded.labels, (_, i) => {
          const [before, after] = [moved(i, 0), moved(i, amount)];
          const logits = Array.from({ length: 6 }, (_, k) =>
            (rows?.includes(k) ?? true ? after : before).reduce((sum, each, j) => sum + each * head.weight[9 * k + j], head.bias[k]));
          return logits.indexOf(Math.max(...logits));
        });
        expect(Array.from(predicted(amount))).toEqual(expected);
        changed += expected.filter((each, i) => each !== recorded.top.classes[6 * i]).length;
      }
      const label = recorded.top.classes[0];
      const images = [...recorded.labels.keys()];
      criticalAmounts(head, recorded, rest, fall, label, images).forEach((crit, image) => {
        if (recorded.top.classes[6 * image] !== label) return expect(crit).toBe(0);
        for (const share of [0.3, 0.999]) expect(predicted(share * Math.min(crit, 900))[image]).toBe(label);
        if (crit < 900) broken += Number(predicted(crit * 1.0001 + 1e-6)[image] !== label);
        if (crit < 900) expect(predicted(crit * 1.0001 + 1e-6)[image]).not.toBe(label);
      });
    }
    expect(Math.min(changed, broken)).toBeGreaterThan(5);
  });

  it("never predicts a masked class", () => {
    const given = problem(3);
    const masked = predictions(given.head, restOf(given.head, given.recorded, [1, 2]), null);
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
          const predicted = (alpha: number) => predictions(head, rest, gated(head, recorded, factors(reach, alpha, operator)))[image];
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
