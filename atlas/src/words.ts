/** An edit in words that make it again: Python, a command, a recipe. */
import type { Operator, Rows } from "./edits";

export type Described = { operator: Operator; latents: number[]; rows: Rows; alpha: number };

/** A word that a POSIX shell takes as it is. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A number that Python reads as the same double. */
export function literal(value: number): string {
  const text = String(value);
  return /^-?\d+$/.test(text) ? `${text}.0` : text;
}

export function python(edit: Described): string {
  const rows = edit.rows ? `[${edit.rows.join(", ")}]` : "None";
  if (edit.operator === "mask") {
    const which = edit.rows?.length === 1 ? String(edit.rows[0]) : rows;
    return `edit = salve.mask(hooked, ${which}, acts)`;
  }
  if (edit.operator === "fold") {
    return [
      `latents = (${edit.latents.join(", ")},)`,
      'concepts = [salve.latent_concept(dictionary, acts, latent) for latent in latents]',
      'maps = [salve.erase(hooked, concept, "fold").operator for concept in concepts]',
      "parts = [torch.cat(each, -1) for each in zip(*(fold.tensors.values() for fold in maps))]",
      `fold = salve.LowRankMap(*parts, scale=${literal(1 - edit.alpha)})`,
      `origin = salve.Provenance("latents", latents, dictionary.digest)`,
      `edit = salve.edit_at(hooked, dictionary.site, fold, rows=${rows}, provenance=origin)`,
    ].join("\n");
  }
  const latent = edit.latents.length === 1 ? String(edit.latents[0]) : `[${edit.latents.join(", ")}]`;
  const options = `latent=${latent}, strength=${literal(edit.alpha)}, rows=${rows}`;
  return `edit = salve.${edit.operator}(hooked, dictionary, ${options})`;
}

export function script(edit: Described, study: string | null): string {
  const place = study === null ? '"STUDY' : JSON.stringify(study).slice(0, -1);
  const dictionary = `dictionary = salve.Dictionary.from_pretrained(${place}/dictionary")`;
  const acts = `acts = salve.Activations.load(${place}/activations")`;
  return [
    ...(edit.operator === "fold" ? ["import torch", ""] : []),
    "import salve_plugin as salve",
    "",
    "hooked = salve.attach(model)  # the model of the study",
    ...(edit.operator === "mask" ? [acts] : edit.operator === "fold" ? [dictionary, acts] : [dictionary]),
    python(edit),
    "edit.apply_(hooked)  # edit.revert_(hooked) undoes it, bit for bit",
  ].join("\n");
}

/** What an edit's files are called. */
export function nameOf({ operator, latents, rows }: Described): string {
  return `${operator}-${operator === "mask" ? `class-${rows!.join("-")}` : `latent-${latents.join("-")}`}`;
}

/** The `salve edit` line, or why there is none; without options of its own an edit needs a recipe. */
export function command(
  edit: Described, study: string | null, label: string | null, makeable: boolean,
): { line: string } | { missing: string } {
  if (study === null) return { missing: "The atlas was made without a study: use the Python." };
  const plain = edit.latents.length === 1 && edit.operator !== "mask" && edit.operator !== "fold";
  if (!plain && !makeable) return { missing: "The page has no recipe for the command: use the Python." };
  const words = ["salve", "edit", quoted(study)];
  // With "=": a name may begin with a dash.
  if (label !== null) words.push(`--class=${quoted(label)}`);
  if (plain) {
    words.push("--latent", String(edit.latents[0]), "--rows", edit.rows ? edit.rows.join(",") : "all");
    words.push("--strength", literal(edit.alpha));
    if (edit.operator === "enhance") words.push("--enhance");
  } else words.push("--recipe", `${nameOf(edit)}.safetensors`);
  words.push("--out", plain ? `latent-${edit.latents[0]}-edit` : nameOf(edit));
  return { line: words.join(" ") };
}

/** A tensor of a file; shapes as in Python. */
export type Stored = { shape: number[]; values: Float32Array | Float64Array };

/** A tensor whose columns are given, as Python lays it out: row by row. */
export function columns(given: ArrayLike<number>[]): Stored {
  const rows = given[0].length;
  const values = new Float64Array(rows * given.length);
  given.forEach((column, at) => {
    for (let row = 0; row < rows; row++) values[row * given.length + at] = column[row];
  });
  return { shape: [rows, given.length], values };
}

/** The fields of an edit as JSON texts: what it shares with others, and what is its own. */
export function fieldsOf(
  edit: Described, shared: Record<string, string>, dictionary: string, note?: string,
): Record<string, string> {
  const { operator, latents, alpha } = edit;
  const form = {
    mask: () => '{"form":"low_rank_update"}',
    fold: () => `{"form":"low_rank_map","scale":${literal(1 - alpha)}}`,
  }[operator as string] ?? (() => `{"form":"gate","mode":"${operator}","strength":${literal(alpha)}}`);
  const origin = operator === "mask"
    ? { dictionary: null, kind: "written", latents: [], note }
    : { dictionary, kind: "latents", latents, note: "" };
  return {
    ...shared, operator: form(), provenance: JSON.stringify(origin),
    rows: JSON.stringify(edit.rows && [...edit.rows].sort((a, b) => a - b)),
  };
}

/**
 * An edit as a safetensors file: its tensors, and in the metadata what `Edit.from_json` takes.
 *
 * The fields that all edits share come as JSON text and stay text: to JavaScript 1.0 is 1, to an
 * edit's digest it is not.
 */
export function recipe(texts: Record<string, string>, tensors: Record<string, Stored>): Uint8Array {
  const fields = Object.keys(texts).sort().map((name) => `${JSON.stringify(name)}:${texts[name]}`);
  const about: Record<string, unknown> = { __metadata__: { recipe: `{${fields.join(",")}}` } };
  let size = 0;
  for (const [name, { shape, values }] of Object.entries(tensors)) {
    const dtype = values instanceof Float64Array ? "F64" : "F32";
    about[name] = { dtype, shape, data_offsets: [size, size + values.byteLength] };
    size += values.byteLength;
  }
  let header = JSON.stringify(about);
  let octets = new TextEncoder().encode(header);
  header += " ".repeat((8 - (octets.length % 8)) % 8); // tensors are aligned
  octets = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + octets.length + size);
  new DataView(file.buffer).setBigUint64(0, BigInt(octets.length), true);
  file.set(octets, 8);
  let at = 8 + octets.length;
  for (const { values } of Object.values(tensors)) {
    file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at);
    at += values.byteLength;
  }
  return file;
}
