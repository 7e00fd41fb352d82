import { expect, test } from "vitest";
import { points, short } from "../src/text";

test("a minus sign is one wherever it stands", () => {
  expect([-0.00052, 0.00052, -12, 0, -1234567].map((value) => short(value)))
    .toEqual(["−5.2 e−4", "5.2 e−4", "−12.0", "0", "−1.2 e+6"]);
  expect([short(Infinity), short(NaN), points(-0.012), points(-0.0001)]).toEqual(["never", "–", "−1.2", "±0"]);
});
