/** The recipe of an edit as a file. */
import { type Fold, load, the } from "./data";
import { columns, type Described, fieldsOf, nameOf, recipe, type Stored } from "./words";

type Texts = Record<string, string>;
/** Of the picked latents: their atoms and, for a fold, what reads them. */
type Parts = { atoms: Float32Array[] | null; folds: (Fold | null)[] | null };

async function masking(edit: Described): Promise<[Texts, Record<string, Stored>]> {
  const { about } = the();
  const { lowering, notes, ...shared } = await load<{ lowering: Float64Array; notes: string[] } & Record<string, unknown>>("bench/mask");
  const [row] = edit.rows!;
  const none = new Float64Array(0);
  return [fieldsOf(edit, shared as Texts, about.dictionary, notes[row]), {
    left: { shape: [1, 0], values: none }, right: { shape: [about.width, 0], values: none },
    shift: { shape: [1], values: Float64Array.of(-lowering[row]) },
  }];
}

async function made(edit: Described, { atoms, folds }: Parts): Promise<[Texts, Record<string, Stored>]> {
  const { about } = the();
  if (edit.operator === "mask") return masking(edit);
  if (edit.operator === "fold") {
    return [fieldsOf(edit, await load<Texts>("bench/fold"), about.dictionary), {
      write: columns(atoms!), read: columns(folds!.map((each) => each!.read)),
      offset: { shape: [folds!.length], values: Float64Array.from(folds!, (each) => each!.offset) },
    }];
  }
  const values = new Float32Array(atoms!.length * about.width);
  atoms!.forEach((each, at) => values.set(each, at * about.width));
  return [fieldsOf(edit, await load<Texts>("bench/recipe"), about.dictionary), {
    directions: { shape: [atoms!.length, about.width], values },
  }];
}

/** The edit as the bytes of a file. */
export async function recipeOf(edit: Described, parts: Parts): Promise<Uint8Array> {
  return recipe(...(await made(edit, parts)));
}

export async function downloaded(edit: Described, parts: Parts): Promise<void> {
  const file = await recipeOf(edit, parts);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file as BlobPart]));
  link.download = `${nameOf(edit)}.safetensors`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
