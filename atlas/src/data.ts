/** The pieces of the data, each fetched once and when it is needed. */
import { signal } from "@preact/signals";
import { host } from "./host";

export type Packed = { type: "i8" | "i32" | "f32" | "f64"; data: string };
export type Numbers = Int8Array | Int32Array | Float32Array | Float64Array;

export type Artifact = {
  amount: string; rows: string[] | null; site: string; strength: number | null; base: Record<string, string>;
  assessment: {
    verdict: string; target: string | null; images: number; changed: number; norm: number;
    effects: { name: string; accuracy: number; target: number | null; others: number | null; worst: number | null; kl: number | null }[];
    classes: { name: string; count: number; accuracy: [number, number]; probability: [number, number]; destination: string | null; share: number }[];
  } | null;
  crit: { name: string; target: string; values: Float64Array }[];
  pictures: { name: string; source: string }[];
};
/** What `data/index.js` holds where the atlas is of an artifact alone. */
export type OfArtifact = {
  title: string; artifact: Artifact; about: { digest: string; producer: { name: string; version: string } };
};
export type Index = {
  title: string;
  about: {
    dictionary: string; network: string | null; site: string; width: number; learner: string;
    n_latents: number; n_images: number; n_rows: number; classes_a_file: number;
    latents_a_file: number; images_a_file: number; images: Int32Array; files: string[] | null;
    palette: number[][]; maps_missing: string; study: string | null; producer: { name: string; version: string };
  };
  classes: {
    names: string[]; named: boolean; overall?: number; counts: Int32Array;
    accuracy: Float32Array; dominant: Int32Array; means: Float32Array;
  };
  latents: {
    density: Float32Array; largest: Float32Array; x: Float32Array; y: Float32Array;
    share: number; class: Int32Array; score: Float32Array;
  };
  evidence: {
    k: number; images: number; permutations: number; scales: number[];
    auc: Float32Array; auc_p_all: Float32Array;
  } | null;
  front: {
    points: { name: string; kind: "own" | "control" | "front" | "trial"; r2: number; l0: number }[];
    rows: number; l0: Float32Array; r2: Float32Array;
  } | null;
  quality: {
    columns: string[]; rows: { name: string; values: (number | boolean | null)[] }[]; notes: string[];
  } | null;
  bench: {
    images: Int32Array; labels: Int32Array; live: boolean; steps: number[]; binary: boolean;
    kept: number; images_a_file: number; folded: number[]; folds_a_file: number; masks: boolean;
  } | null;
  bench_missing: string;
};
export type ClassEntry = {
  ranked: number[]; scores: Float32Array; means: Float32Array; shifts: Float32Array;
  predicted?: { classes: Int32Array; images: Int32Array };
  /** The same of the bench's images, after an edit of the class's own row and its dominant latent. */
  after?: { strength: number; classes: Int32Array; images: Int32Array };
  crit?: { own: Float64Array; all: Float64Array };
} | null;
export type LatentEntry = {
  images: Int32Array; codes: Float32Array; counts: Int32Array; least: number; most: number;
  spread: number;
  profile: { classes: Int32Array; means: Float32Array; shifts: Float32Array };
  /** Crops: left, top, width, height in shares of the image, and width over height in pixels, five an image. */
  maps?: { height: number; width: number; unit: number; values: Int8Array; crops: Float32Array };
  /** An image that was made to drive the latent. */
  made?: { source: string; value: number; sign: number; steps: number; noise: number; spread: number };
};
type Measured =
  "auc" | "auc_null" | "auc_p_all" | "precision" | "precision_null" | "chance" | "phi" | "phi_null" | "phi_p" |
  "kl" | "effect" | "effect_p" | "explained" | "explained_null";
/** What speaks for a latent; NaN what was not measured, label and partner -1 where there is none. */
export type Evidence = Record<Measured, number> & { label: number; partner: number; curve: Float32Array };
export type StepData = {
  images: Int32Array; strengths: Float64Array; classes: Int32Array; limit: number;
};

const VIEWS = { i8: Int8Array, i32: Int32Array, f32: Float32Array, f64: Float64Array };

type Decoder = { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> };

/** Numbers from base64; every machine that a browser runs on is little-endian, as the data is. */
export function unpacked({ type, data }: Packed): Numbers {
  const native = (Uint8Array as Decoder).fromBase64;
  if (native) return new VIEWS[type](native(data).buffer);
  const text = atob(data);
  const octets = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) octets[at] = text.charCodeAt(at);
  return new VIEWS[type](octets.buffer);
}

/**
 * The value with every packed array in it unpacked when it is first asked for: a file holds what 64
 * pages show, of which one is looked at.
 */
export function revived(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(revived);
  if (typeof value !== "object" || value === null) return value;
  const fields = value as Record<string, unknown>;
  const names = Object.keys(fields);
  if (names.length === 2 && typeof fields.data === "string" && String(fields.type) in VIEWS) {
    return unpacked(fields as Packed);
  }
  const whole = {};
  for (const name of names) {
    const field = fields[name];
    const stored = { configurable: true, enumerable: true, writable: true };
    if (typeof field !== "object" || field === null) {
      Object.defineProperty(whole, name, { ...stored, value: field });
      continue;
    }
    const get = () => {
      const made = revived(field);
      Object.defineProperty(whole, name, { ...stored, value: made });
      return made;
    };
    Object.defineProperty(whole, name, { configurable: true, enumerable: true, get });
  }
  return whole;
}

const pieces = new Map<string, Promise<unknown>>();

/** One piece of the data, loaded once. */
export function load<T>(key: string): Promise<T> {
  let piece = pieces.get(key);
  if (!piece) {
    piece = host.load(key).then(revived);
    piece.catch(() => pieces.delete(key));
    pieces.set(key, piece);
  }
  return piece as Promise<T>;
}

export const index = signal<Index | null>(null);

export function the(): Index {
  if (!index.value) throw new Error("the index is not loaded");
  return index.value;
}

export async function classEntry(label: number): Promise<ClassEntry> {
  const size = the().about.classes_a_file;
  const file = await load<{ classes: ClassEntry[] }>(`classes/${Math.floor(label / size)}`);
  return file.classes[label % size];
}

type LatentFile = { latents: LatentEntry[]; evidence?: Record<Measured | "label" | "partner" | "curve", Numbers> };

export async function latentEntry(latent: number): Promise<LatentEntry & { evidence?: Evidence }> {
  const size = the().about.latents_a_file;
  const file = await load<LatentFile>(`latents/${Math.floor(latent / size)}`);
  const { evidence } = file;
  const at = latent % size;
  if (!evidence) return file.latents[at];
  const scales = the().evidence!.scales.length;
  const own = Object.fromEntries(Object.entries(evidence).map(([name, values]) => [name, values[at]]));
  const curve = evidence.curve.subarray(at * scales, (at + 1) * scales);
  return Object.assign(file.latents[at], { evidence: { ...own, curve } as Evidence });
}

export async function atom(latent: number): Promise<Float32Array> {
  const { latents_a_file: size, width } = the().about;
  const file = await load<{ atoms: Float32Array }>(`atoms/${Math.floor(latent / size)}`);
  const start = (latent % size) * width;
  return file.atoms.subarray(start, start + width);
}

export type Fold = { read: Float64Array; offset: number; foldability: number };

/** What reads a latent off the head's input; null of latents that were not computed ahead. */
export async function fold(latent: number): Promise<Fold | null> {
  const { folded, folds_a_file: size } = the().bench!;
  const { width } = the().about;
  const place = folded.indexOf(latent);
  if (place < 0) return null;
  const file = await load<{ reads: Float64Array; offsets: Float64Array; foldability: Float32Array }>(`folds/${Math.floor(place / size)}`);
  const at = place % size;
  return { read: file.reads.subarray(at * width, (at + 1) * width), offset: file.offsets[at], foldability: file.foldability[at] };
}

let places: Map<number, number> | null = null;

/** The class that a latent is most specific to; -1 where nothing sets it apart, as with dead ones. */
export function ofLatent(latent: number): { label: number; name: string } {
  const label = the().latents.class[latent];
  return { label, name: the().classes.names[label] ?? "no class" };
}

/** Where an image's thumbnail is among all; undefined if there is none. */
export function place(image: number): number | undefined {
  places ??= new Map(Array.from(the().about.images, (each, at) => [each, at]));
  return places.get(image);
}

export function fileName(image: number): string {
  const at = place(image);
  return (at === undefined ? undefined : the().about.files?.[at]) ?? `image ${image}`;
}

/** Addresses of thumbnails; null of images that have none. */
export async function thumbnails(images: number[]): Promise<(string | null)[]> {
  const size = the().about.images_a_file;
  return Promise.all(images.map(async (image) => {
    const at = place(image);
    if (at === undefined) return null;
    const file = await load<{ images: string[] }>(`images/${Math.floor(at / size)}`);
    return file.images[at % size];
  }));
}
