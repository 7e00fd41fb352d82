/** How an edit moves the logits of a class's images, and where their decisions break. */
import { useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import { axis, Chart, colours } from "./chart";
import { the } from "./data";
import { gated, quantile, type Rest, type RowLogits } from "./edits";
import { Key } from "./key";
import type { Loaded } from "./recorded";
import { short } from "./text";

const GRID = 33;
const DASHES = [[9, 4], [2, 3], [9, 3, 2, 3], [4, 4]];

/** Strengths of the slider and the charts: fine near zero, where edits begin to act. */
export const strengthAt = (share: number, limit: number) => Number((limit * share * share).toPrecision(4));
/** The slider's share for a strength. */
export const shareOf = (strength: number, limit: number) => Math.min(1, Math.sqrt(strength / limit));

/** Logits of a class's images over the strength: their own class's and its rivals'. */
export function Spread({ data, rest, moved, strength, label, images, limit, alpha, crits }: {
  data: Loaded; rest: Rest; moved: (strength: number) => RowLogits; strength: string; label: number;
  images: number[]; limit: number; alpha: number; crits: Float64Array | null;
}) {
  const { classes } = the();
  const { head, recorded } = data;
  const drawn = useMemo(() => {
    const some = images.length > 120 ? images.filter((_, at) => at % Math.ceil(images.length / 120) === 0) : images;
    const plain = gated(head, recorded, null);
    // The mean logit is that of the mean input: no need for those of all classes and images.
    const mean = new Float64Array(head.width);
    for (const image of some) for (let j = 0; j < mean.length; j++) mean[j] += recorded.x[image * mean.length + j] / some.length;
    const means = classes.names.map((_, row) => {
      let sum = head.bias[row];
      for (let j = 0; j < mean.length; j++) sum += head.weight[row * mean.length + j] * mean[j];
      return sum;
    });
    const rivals = means.map((_, row) => row).filter((row) => row !== label).sort((a, b) => means[b] - means[a]).slice(0, 4);
    const x = Array.from({ length: GRID }, (_, at) => strengthAt(at / (GRID - 1), limit));
    const out = new Float64Array(some.length);
    const still = new Map<number, Float64Array>();
    const sortedAt = (row: number, strength: number) => {
      if (rest.rows === null || rest.rows.includes(row)) return moved(strength)(row, some, out).slice().sort();
      if (!still.has(row)) still.set(row, plain(row, some, out).slice().sort());
      return still.get(row)!;
    };
    const own = x.map((strength) => sortedAt(label, strength));
    const lines = rivals.map((row) => x.map((strength) => quantile(sortedAt(row, strength), 0.5)));
    return { rivals, data: [x, ...[0.9, 0.1, 0.5].map((share) => own.map((values) => quantile(values, share))), ...lines] };
  }, [data, rest, moved, label, limit]);
  const now = useRef({ alpha, crits });
  now.current = { alpha, crits };
  const made = () => {
    const { accent, ink, soft, second } = colours();
    return {
      scales: { x: { time: false, distr: 100 as const, fwd: Math.sqrt, inv: (v: number) => v * v, range: [0, limit] as [number, number] } },
      axes: [axis(strength, { values: (_: uPlot, ticks: number[]) => ticks.map((tick) => short(tick, 2)), splits: () => [0, 0.05, 0.2, 0.4, 0.7, 1].map((share) => share * limit), filter: (_: uPlot, splits: number[]) => splits }), axis("logit", { size: 54 })],
      cursor: { drag: { x: false, y: false } },
      legend: { show: false },
      bands: [{ series: [1, 2] as [number, number], fill: `color-mix(in srgb, ${accent} 18%, transparent)` }],
      series: [
        { label: "α" },
        { label: "90 %", stroke: "transparent", points: { show: false } },
        { label: "10 %", stroke: "transparent", points: { show: false } },
        { label: "median", stroke: accent, width: 2.5, points: { show: false } },
        ...drawn.rivals.map((row, at) => ({ label: classes.names[row], stroke: second, width: 1.5, dash: DASHES[at], points: { show: false } })),
      ],
      hooks: {
        draw: [(plot: uPlot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.setLineDash([]);
          ctx.lineWidth = devicePixelRatio;
          ctx.strokeStyle = soft;
          ctx.globalAlpha = 0.55;
          ctx.beginPath();
          for (const each of now.current.crits ?? []) {
            if (!(each <= limit)) continue;
            const x = plot.valToPos(each, "x", true);
            ctx.moveTo(x, bbox.top + bbox.height);
            ctx.lineTo(x, bbox.top + bbox.height - 12 * devicePixelRatio);
          }
          ctx.stroke();
          ctx.globalAlpha = 1;
          ctx.strokeStyle = ink;
          ctx.lineWidth = 1.5 * devicePixelRatio;
          const x = plot.valToPos(Math.min(now.current.alpha, limit), "x", true);
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
          ctx.restore();
        }],
      },
    };
  };
  return (
    <>
    <Chart made={made} data={drawn.data as uPlot.AlignedData} height={300} keys={[drawn]} mark={`${alpha} ${crits?.length}`}
      summary={`Logits of the images of ${classes.names[label]} over the strength, beside those of its nearest rivals ${drawn.rivals.map((row) => classes.names[row]).join(", ")}`} />
    <Key lines={[
      { name: `${classes.names[label]}: median, 10 to 90 %`, colour: "accent", wide: true, band: true },
      ...drawn.rivals.map((row, at) => ({ name: `${classes.names[row]}: median`, colour: "second" as const, dash: DASHES[at] })),
    ]} />
    </>
  );
}

