/** What was recorded for the bench, in the order in which it is needed. */
import { load, the } from "./data";
import type { Head, Recorded, Top } from "./edits";

export type Known = { top: Top; base: Int32Array };

/** What is enough to say how the unedited model does: each image's highest logits. */
export async function known(): Promise<Known> {
  const { kept } = the().bench!;
  const { classes, logits } = await load<{ classes: Int32Array; logits: Float32Array }>("bench/top");
  return { top: { classes, logits, kept }, base: classes.filter((_, at) => at % kept === 0) };
}

/** Keys of the scripts that hold the head and its recorded inputs. */
export function needed(): string[] {
  const { images, images_a_file } = the().bench!;
  const count = Math.ceil(images.length / images_a_file);
  return ["bench/top", "bench/head", ...Array.from({ length: count }, (_, at) => `bench/features/${at}`)];
}

export type Loaded = { head: Head; recorded: Recorded };
let whole: Promise<Loaded> | null = null;

/** What edits are computed with, put together once. */
export function loaded(): Promise<Loaded> {
  whole ??= collected();
  whole.catch(() => (whole = null));
  return whole;
}

async function collected(): Promise<Loaded> {
  const { about, classes, bench } = the();
  const { top } = await known();
  const { weight, bias } = await load<{ weight: Float32Array; bias: Float32Array }>("bench/head");
  const x = new Float32Array(bench!.images.length * about.width);
  let start = 0;
  for (const key of needed().slice(2)) {
    const part = (await load<{ x: Float32Array }>(key)).x;
    x.set(part, start);
    start += part.length;
  }
  return {
    head: { weight, bias, width: about.width, classes: classes.names.length },
    recorded: { x, labels: bench!.labels, top },
  };
}
