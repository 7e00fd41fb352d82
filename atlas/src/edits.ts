/** What edits do to recorded images: the same arithmetic as in Python, on one thread. */

export type Operator = "suppress" | "enhance" | "fold" | "mask";
/** Rows of the head that change; null: all of them. */
export type Rows = number[] | null;
export type Head = { weight: Float32Array; bias: Float32Array; width: number; classes: number };
/** The highest logits of each image, highest first: (images, kept) each. */
export type Top = { classes: Int32Array; logits: Float32Array; kept: number };
/** Recorded images: head inputs (images, width), labels (images). */
export type Recorded = { x: Float32Array; labels: Int32Array; top: Top };
/** A row's logits of some images (null: of all) under an edit, written to `out`. */
export type RowLogits = (row: number, images: ArrayLike<number> | null, out: Float64Array) => Float64Array;

/** How much latents reach each feature: |c| of one atom, the root of the sum of squares of more. */
export function reachOf(atoms: Float32Array[]): Float64Array {
  const reach = new Float64Array(atoms[0].length);
  if (atoms.length === 1) return reach.map((_, j) => Math.abs(atoms[0][j]));
  for (const atom of atoms) for (let j = 0; j < reach.length; j++) reach[j] += atom[j] * atom[j];
  return reach.map(Math.sqrt);
}

/** m = max(0, 1 ∓ α reach), in float32 as it multiplies float32 weights. */
export function factors(reach: Float64Array, alpha: number, operator: Operator): Float32Array {
  const sign = operator === "enhance" ? 1 : -1;
  return Float32Array.from(reach, (each) => Math.max(0, 1 + sign * alpha * each));
}

/** The strength that closes nine tenths of the columns: what a slider ends at. */
export function limitOf(reach: Float64Array): number {
  const moving = reach.filter((each) => each > 0).sort().reverse();
  if (!moving.length) return 1;
  const at = Math.max(0, Math.round(0.9 * moving.length) - 1);
  return Math.min(1 / moving[at], 1000 / moving[0]);
}

/** Logits when the rows' columns are scaled; null leaves them as they are. */
export function gated(head: Head, recorded: Recorded, scale: Float32Array | null): RowLogits {
  const { width } = head;
  const { x } = recorded;
  return (row, images, out) => {
    const scaled = head.weight.slice(row * width, (row + 1) * width);
    if (scale) for (let j = 0; j < width; j++) scaled[j] *= scale[j];
    const count = images ? images.length : x.length / width;
    for (let i = 0; i < count; i++) {
      const start = (images ? images[i] : i) * width;
      // Four sums at once: one alone would wait for each addition.
      let a = 0, b = 0, c = 0, d = 0, j = 0;
      for (; j + 3 < width; j += 4) {
        a += x[start + j] * scaled[j];
        b += x[start + j + 1] * scaled[j + 1];
        c += x[start + j + 2] * scaled[j + 2];
        d += x[start + j + 3] * scaled[j + 3];
      }
      for (; j < width; j++) a += x[start + j] * scaled[j];
      out[i] = a + b + c + d + head.bias[row];
    }
    return out;
  };
}

/** What is folded: of each latent its atom U, its read-out V and the offset c. */
export type Folded = { write: Float32Array; read: Float64Array; offset: number };

/** How fast the logits of rows fall with the amount t of x' = x − t U(Vᵀx − c). */
export class Fall {
  /** Vᵀx − c, one array a latent. */
  private readings: Float64Array[];
  constructor(private head: Head, recorded: Recorded, private folded: Folded[]) {
    const { width } = head;
    this.readings = folded.map(({ read, offset }) => Float64Array.from(recorded.labels, (_, i) => {
      let sum = -offset;
      for (let j = 0; j < width; j++) sum += read[j] * recorded.x[i * width + j];
      return sum;
    }));
  }

  /** W U of a row, one number a latent. */
  gains(row: number): number[] {
    const { weight, width } = this.head;
    return this.folded.map(({ write }) => {
      let sum = 0;
      for (let j = 0; j < width; j++) sum += weight[row * width + j] * write[j];
      return sum;
    });
  }

  at(image: number, gains: number[]): number {
    let sum = 0;
    gains.forEach((gain, at) => (sum += gain * this.readings[at][image]));
    return sum;
  }

  logits(recorded: Recorded, amount: number): RowLogits {
    const plain = gated(this.head, recorded, null);
    return (row, images, out) => {
      plain(row, images, out);
      const gains = this.gains(row);
      for (let i = 0; i < out.length; i++) out[i] -= amount * this.at(images ? images[i] : i, gains);
      return out;
    };
  }
}

/** The best class of each image among the rows that an edit leaves alone. */
export type Rest = { rows: Rows; best: Int32Array; logit: Float64Array };

export function restOf(head: Head, recorded: Recorded, rows: Rows): Rest {
  const { labels, top } = recorded;
  const best = new Int32Array(labels.length).fill(-1);
  const logit = new Float64Array(labels.length).fill(-Infinity);
  if (!rows) return { rows, best, logit };
  const edited = new Uint8Array(head.classes);
  for (const row of rows) edited[row] = 1;
  if (rows.length < top.kept || top.kept === head.classes) {
    for (let i = 0; i < labels.length; i++) {
      for (let at = i * top.kept; at < (i + 1) * top.kept; at++) {
        if (edited[top.classes[at]]) continue;
        [best[i], logit[i]] = [top.classes[at], top.logits[at]];
        break;
      }
    }
    return { rows, best, logit };
  }
  // More rows than logits were kept of each image: all others are computed, once for these rows.
  const plain = gated(head, recorded, null);
  const out = new Float64Array(labels.length);
  for (let row = 0; row < head.classes; row++) {
    if (edited[row]) continue;
    plain(row, null, out);
    for (let i = 0; i < out.length; i++) if (out[i] > logit[i]) [best[i], logit[i]] = [row, out[i]];
  }
  return { rows, best, logit };
}

/** What is predicted after an edit. Of equal logits the lower class wins, as in torch on the CPU. */
export function predictions(head: Head, rest: Rest, moved: RowLogits | null): Int32Array {
  const predicted = rest.best.slice();
  if (!moved) return predicted; // masked rows are below all others
  const highest = rest.logit.slice();
  const logits = new Float64Array(predicted.length);
  const rows = rest.rows ?? Array.from({ length: head.classes }, (_, row) => row);
  for (const row of rows) {
    moved(row, null, logits);
    for (let i = 0; i < logits.length; i++) {
      if (logits[i] > highest[i] || (logits[i] === highest[i] && row < predicted[i])) {
        highest[i] = logits[i];
        predicted[i] = row;
      }
    }
  }
  return predicted;
}

/** Predictions at a strength, from the steps that were computed ahead. */
export class StepFunction {
  private first: Int32Array;
  constructor(
    private start: Int32Array,
    private steps: { images: Int32Array; strengths: Float64Array; classes: Int32Array },
  ) {
    this.first = new Int32Array(start.length + 1);
    for (const image of steps.images) this.first[image + 1]++;
    for (let i = 0; i < start.length; i++) this.first[i + 1] += this.first[i];
  }

  at(alpha: number): Int32Array {
    const predicted = this.start.slice();
    for (let i = 0; i < predicted.length; i++) {
      for (let at = this.first[i]; at < this.first[i + 1] && this.steps.strengths[at] <= alpha; at++) {
        predicted[i] = this.steps.classes[at];
      }
    }
    return predicted;
  }

  /** Where an image's prediction changes first. */
  firstStep(image: number): number {
    const at = this.first[image];
    return at < this.first[image + 1] ? this.steps.strengths[at] : Infinity;
  }
}

export type Counts = { right: Int32Array; total: Int32Array; overall: number };

export function counted(labels: Int32Array, predicted: Int32Array, classes: number): Counts {
  const right = new Int32Array(classes);
  const total = new Int32Array(classes);
  let all = 0;
  for (let i = 0; i < labels.length; i++) {
    total[labels[i]]++;
    if (labels[i] === predicted[i]) {
      right[labels[i]]++;
      all++;
    }
  }
  return { right, total, overall: all / labels.length };
}

/** Numbers of images by (label, prediction), for some classes; the last column is all others. */
export function confusion(labels: Int32Array, predicted: Int32Array, shown: number[]): number[][] {
  const place = new Map(shown.map((label, at) => [label, at]));
  const table = shown.map(() => new Array<number>(shown.length + 1).fill(0));
  for (let i = 0; i < labels.length; i++) {
    const row = place.get(labels[i]);
    if (row !== undefined) table[row][place.get(predicted[i]) ?? shown.length]++;
  }
  return table;
}

/** First α where h + Σ u max(0, 1 − α r) ≤ 0, exactly; `order`: columns by ascending r. */
export function firstRoot(
  u: Float64Array, reach: Float64Array, order: Int32Array, height: number, enhance: boolean,
): number {
  const count = order.length;
  const offset = new Float64Array(count + 1);
  const slope = new Float64Array(count + 1);
  offset[0] = height;
  // Sums from the smallest reach up: what is used up is never subtracted again.
  for (let q = 0; q < count; q++) {
    const j = order[q];
    offset[q + 1] = offset[q] + u[j];
    slope[q + 1] = slope[q] + u[j] * reach[j];
  }
  const start = offset[count];
  if (start <= 0) return 0;
  const limit = 1000 / reach[order[count - 1]];
  if (enhance) {
    const root = start / -slope[count];
    return slope[count] < 0 && root <= limit ? root : Infinity;
  }
  for (let q = count; q > 0; q--) {
    const at = q > 0 && reach[order[q - 1]] > 0 ? Math.min(1 / reach[order[q - 1]], limit) : limit;
    if (offset[q] - at * slope[q] <= start * 1e-12) {
      return slope[q] > 0 ? Math.min(offset[q] / slope[q], at) : at;
    }
    if (at >= limit) break;
  }
  return Infinity;
}

/** Where the decisions for a class's images break: α_crit with target "flip", against the label. */
export function criticalStrengths(
  head: Head, recorded: Recorded, rest: Rest, reach: Float64Array, operator: Operator,
  label: number, images: number[],
): Float64Array {
  const { width } = head;
  const order = Int32Array.from(reach.keys()).sort((a, b) => reach[a] - reach[b] || a - b);
  const rows = rest.rows ?? Array.from({ length: head.classes }, (_, row) => row);
  const own = rows.includes(label);
  const rivals = rows.filter((row) => row !== label);
  const u = new Float64Array(width);
  return Float64Array.from(images, (image) => {
    const logit = (row: number) => {
      let sum = head.bias[row];
      for (let j = 0; j < width; j++) sum += head.weight[row * width + j] * recorded.x[image * width + j];
      return sum;
    };
    let first = Infinity;
    if (own && rest.best[image] >= 0) {
      for (let j = 0; j < width; j++) u[j] = head.weight[label * width + j] * recorded.x[image * width + j];
      first = firstRoot(u, reach, order, head.bias[label] - rest.logit[image], operator === "enhance");
    } else if (!own && logit(label) <= rest.logit[image] && rest.best[image] !== label) {
      return 0;
    }
    const fixed = own ? 0 : logit(label);
    for (const rival of rivals) {
      if (first === 0) break;
      for (let j = 0; j < width; j++) {
        const weight = (own ? head.weight[label * width + j] : 0) - head.weight[rival * width + j];
        u[j] = weight * recorded.x[image * width + j];
      }
      const height = (own ? head.bias[label] : fixed) - head.bias[rival];
      first = Math.min(first, firstRoot(u, reach, order, height, operator === "enhance"));
    }
    return first;
  });
}

/** The same for a fold, under which the logits are straight lines in its amount. */
export function criticalAmounts(
  head: Head, recorded: Recorded, rest: Rest, fall: Fall, label: number, images: number[],
): Float64Array {
  const rows = rest.rows ?? Array.from({ length: head.classes }, (_, row) => row);
  const own = rows.includes(label);
  const plain = gated(head, recorded, null);
  const slopes = (row: number) => {
    const gains = fall.gains(row);
    return Float64Array.from(images, (image) => fall.at(image, gains));
  };
  const logit = plain(label, images, new Float64Array(images.length));
  const slope = own ? slopes(label) : new Float64Array(images.length);
  const first = Float64Array.from(images, (image, at) => {
    if (!own) return rest.best[image] !== label && rest.best[image] >= 0 ? 0 : Infinity;
    return crossing(logit[at] - rest.logit[image], slope[at]);
  });
  const rival = new Float64Array(images.length);
  for (const row of rows) {
    if (row === label) continue;
    plain(row, images, rival);
    const falls = slopes(row);
    for (let at = 0; at < images.length; at++) {
      first[at] = Math.min(first[at], crossing(logit[at] - rival[at], slope[at] - falls[at]));
    }
  }
  return first;
}

/** Where a lead that falls along a line is lost. */
function crossing(lead: number, fall: number): number {
  if (lead <= 0) return 0;
  return fall > 0 && lead / fall <= 1000 ? lead / fall : Infinity;
}

export function quantile(sorted: ArrayLike<number>, share: number): number {
  if (!sorted.length) return NaN;
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return low === high ? sorted[low] : sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}
