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
  return /^\d+$/.test(text) ? `${text}.0` : text;
}

export function python(edit: Described): string {
  const rows = edit.rows ? `[${edit.rows.join(", ")}]` : "None";
  if (edit.operator === "mask") {
    const which = edit.rows?.length === 1 ? String(edit.rows[0]) : rows;
    return `edit = salve.mask(hooked, ${which}, acts)`;
  }
  const latent = edit.latents.length === 1 ? String(edit.latents[0]) : `[${edit.latents.join(", ")}]`;
  const options = `latent=${latent}, strength=${literal(edit.alpha)}, rows=${rows}`;
  return `edit = salve.${edit.operator}(hooked, dictionary, ${options})`;
}

export function script(edit: Described, study: string | null): string {
  const place = study === null ? '"STUDY' : JSON.stringify(study).slice(0, -1);
  const source =
    edit.operator === "mask"
      ? `acts = salve.Activations.load(${place}/activations")`
      : `dictionary = salve.Dictionary.from_pretrained(${place}/dictionary")`;
  return [
    "import salve_plugin as salve",
    "",
    "hooked = salve.attach(model)  # the model of the study",
    source,
    python(edit),
    "edit.apply_(hooked)  # edit.revert_(hooked) undoes it, bit for bit",
  ].join("\n");
}

/** The `salve edit` line, or why there is none. */
export function command(
  edit: Described, study: string | null, label: string | null,
): { line: string } | { missing: string } {
  if (study === null) return { missing: "The atlas was made without a study: use the Python." };
  if (edit.operator === "mask") return { missing: "The command makes edits of latents: use the Python." };
  if (edit.latents.length !== 1) return { missing: "The command takes one latent: use the Python." };
  const words = ["salve", "edit", quoted(study)];
  // With "=": a name may begin with a dash.
  if (label !== null) words.push(`--class=${quoted(label)}`);
  words.push("--latent", String(edit.latents[0]), "--rows", edit.rows ? edit.rows.join(",") : "all");
  words.push("--strength", literal(edit.alpha));
  if (edit.operator === "enhance") words.push("--enhance");
  words.push("--out", `latent-${edit.latents[0]}-edit`);
  return { line: words.join(" ") };
}

/**
 * An edit as a safetensors file: its atoms, and in the metadata what `Edit.from_json` takes.
 *
 * The fields that all edits share come as JSON text and stay text: to JavaScript 1.0 is 1, to an
 * edit's digest it is not.
 */
export function recipe(
  edit: Described, shared: Record<string, string>, dictionary: string, atoms: Float32Array[],
): Uint8Array {
  const texts: Record<string, string> = {
    ...shared,
    operator: `{"form":"gate","mode":"${edit.operator}","strength":${literal(edit.alpha)}}`,
    provenance: JSON.stringify({ dictionary, kind: "latents", latents: edit.latents, note: "" }),
    rows: JSON.stringify(edit.rows && [...edit.rows].sort((a, b) => a - b)),
  };
  const fields = Object.keys(texts).sort().map((name) => `${JSON.stringify(name)}:${texts[name]}`);
  const width = atoms[0].length;
  const size = 4 * width * atoms.length;
  let header = JSON.stringify({
    __metadata__: { recipe: `{${fields.join(",")}}` },
    directions: { dtype: "F32", shape: [atoms.length, width], data_offsets: [0, size] },
  });
  let octets = new TextEncoder().encode(header);
  header += " ".repeat((8 - (octets.length % 8)) % 8); // tensors are aligned
  octets = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + octets.length + size);
  new DataView(file.buffer).setBigUint64(0, BigInt(octets.length), true);
  file.set(octets, 8);
  atoms.forEach((atom, at) => {
    file.set(new Uint8Array(atom.buffer, atom.byteOffset, 4 * width), 8 + octets.length + 4 * width * at);
  });
  return file;
}
