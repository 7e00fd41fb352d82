/** How much of the activations dictionaries explain with how many latents. */
import uPlot from "uplot";
import { axis, Chart, colours } from "./chart";
import { the } from "./data";
import { short } from "./text";

type Kind = "own" | "control" | "front" | "trial";
const KINDS: [Kind, string][] = [
  ["own", "■ this dictionary"], ["control", "× a control of it"], ["front", "● of the sweep, on its front"], ["trial", "○ of the sweep"],
];

/** The kind of a point as a shape, for eyes that do not tell the colours apart. */
function marks(shape: Kind, colour: string): uPlot.Series.Points {
  return {
    show: (plot, series) => {
      const { ctx } = plot;
      const size = 5 * devicePixelRatio;
      ctx.save();
      ctx.fillStyle = ctx.strokeStyle = colour;
      ctx.lineWidth = 1.5 * devicePixelRatio;
      plot.data[series].forEach((value, at) => {
        if (value == null) return;
        const [x, y] = [plot.valToPos(plot.data[0][at], "x", true), plot.valToPos(value, "y", true)];
        ctx.beginPath();
        if (shape === "own") ctx.rect(x - size, y - size, 2 * size, 2 * size);
        else if (shape === "control") { ctx.moveTo(x - size, y - size); ctx.lineTo(x + size, y + size); ctx.moveTo(x + size, y - size); ctx.lineTo(x - size, y + size); }
        else ctx.arc(x, y, size * 0.8, 0, 2 * Math.PI);
        if (shape === "own" || shape === "front") ctx.fill();
        else ctx.stroke();
      });
      ctx.restore();
      return false;
    },
  };
}

export function FrontSection() {
  const { front, about } = the();
  if (!front) return null;
  const { points } = front;
  const curve = Array.from(front.l0, (l0, at) => ({ l0, r2: front.r2[at] }));
  const x = [...new Set([...curve, ...points].map((each) => each.l0).filter((l0) => l0 > 0))].sort((a, b) => a - b);
  const place = new Map(x.map((l0, at) => [l0, at]));
  const column = (some: { l0: number; r2: number }[]) => {
    const values = new Array<number | null>(x.length).fill(null);
    for (const { l0, r2 } of some) if (l0 > 0) values[place.get(l0)!] = r2;
    return values;
  };
  // A control that knows nothing can explain less than the mean does; it is drawn at the bottom, and listed as it is.
  const data = [x, column(curve), ...KINDS.map(([kind]) => column(points.filter((each) => each.kind === kind).map((each) => ({ ...each, r2: Math.max(0, each.r2) }))))];
  const made = () => {
    const { accent, second, soft, ink } = colours();
    const colour = { own: accent, control: second, front: ink, trial: soft };
    return {
      legend: { show: false }, cursor: { show: false },
      scales: { x: { time: false, distr: 3 as const }, y: { range: [0, 1] as [number, number] } },
      axes: [axis("L0: active latents of a row", { grid: { show: false } }), axis("R²", { size: 50 })],
      series: [
        {}, { stroke: accent, width: 2, spanGaps: true, points: { show: false } },
        ...KINDS.map(([kind]) => ({ paths: () => null, stroke: colour[kind], points: marks(kind, colour[kind]) })),
      ],
    };
  };
  const shown = KINDS.filter(([kind]) => points.some((each) => each.kind === kind));
  return (
    <section aria-labelledby="front-title">
      <h2 id="front-title">R² against L0</h2>
      <Chart made={made} data={data as uPlot.AlignedData} height={280} keys={[front]}
        summary={`R² of the dictionary as only the largest codes of a row are left: ${curve.map(({ l0, r2 }) => `${short(r2)} with ${short(l0)}`).join(", ")} active latents. Single dictionaries are listed below.`} />
      <p class="note">
        {shown.length ? `${shown.map(([, words]) => words).join("; ")}. ` : ""}The line: this dictionary with only the n largest codes of each row left, n growing, on {front.rows.toLocaleString("en")} rows that it was not trained on. {points.some((each) => each.kind === "trial" || each.kind === "front") ? "" : "The study holds one dictionary: salve.sweep makes others to compare it with."}
      </p>
      {points.length ? (
        <div class="scroll tall" tabIndex={0} role="region" aria-label="Dictionaries by R² and L0">
          <table>
            <thead><tr><th scope="col">dictionary</th><th scope="col">what it is</th><th scope="col" class="number">L0</th><th scope="col" class="number">R²</th></tr></thead>
            <tbody>
              {points.map((each, at) => (
                <tr key={at}><th scope="row">{each.kind === "own" ? about.learner : each.name}</th><td>{shown.find(([kind]) => kind === each.kind)![1]}</td><td class="number">{short(each.l0)}</td><td class={`number ${each.kind === "own" ? "own" : ""}`}>{short(each.r2)}</td></tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : null}
    </section>
  );
}
