import { useMemo, useState } from "preact/hooks";
import uPlot from "uplot";
import { axis, Chart, colours } from "./chart";
import { ofLatent, the } from "./data";
import { FrontSection } from "./front";
import { host } from "./host";
import { ClassList } from "./lists";
import { toLatent } from "./routes";
import { count, percent, short } from "./text";

/** All latents as points; the nearest one to the pointer is named, a click opens it. */
function LatentMap() {
  const { latents } = the();
  const [kind, setKind] = useState<"density" | "atoms">("density");
  const [near, setNear] = useState(-1);
  const density = kind === "density";
  const floor = 0.5 / the().about.n_rows;
  const { order, x, y } = useMemo(() => {
    const raw = density ? latents.density : latents.x;
    const order = Array.from(raw.keys()).sort((a, b) => raw[a] - raw[b] || a - b);
    return {
      order, x: order.map((latent) => (density ? Math.max(raw[latent], floor) : raw[latent])),
      y: order.map((latent) => (density ? Math.abs(latents.largest[latent]) : latents.y[latent])),
    };
  }, [kind]);
  const nearest = (plot: uPlot) => {
    const { left = -1, top = -1 } = plot.cursor;
    let best = -1;
    let least = 24 ** 2;
    if (left >= 0) {
      for (let at = 0; at < x.length; at++) {
        const distance = (plot.valToPos(x[at], "x") - left) ** 2 + (plot.valToPos(y[at], "y") - top) ** 2;
        if (distance < least) [best, least] = [at, distance];
      }
    }
    setNear(best < 0 ? -1 : order[best]);
  };
  const made = () => {
    const faint = `color-mix(in srgb, ${colours().accent} 55%, transparent)`;
    // One path of all their circles takes tens of milliseconds to fill; squares of three pixels do not.
    const squares = (plot: uPlot) => {
      const { ctx } = plot;
      const side = 3 * devicePixelRatio;
      ctx.save();
      ctx.fillStyle = faint;
      for (let at = 0; at < x.length; at++) {
        ctx.fillRect(plot.valToPos(x[at], "x", true) - side / 2, plot.valToPos(y[at], "y", true) - side / 2, side, side);
      }
      ctx.restore();
      return false;
    };
    return {
      legend: { show: false },
      cursor: { x: false, y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: density ? { x: { time: false, distr: 3 as const }, y: {} } : { x: { time: false }, y: {} },
      axes: [
        axis(density ? "density: share of rows in which the latent is active" : "first principal component", density ? { grid: { show: false } } : {}),
        axis(density ? "largest |code|" : "second", { size: 56 }),
      ],
      series: [{}, {
        paths: () => null, stroke: "transparent",
        points: { show: x.length > 4000 ? squares : true, size: 6, width: 0, fill: faint },
      }],
      hooks: {
        setCursor: [nearest],
        ready: [(plot: uPlot) => plot.over.addEventListener("click", () => {
          const chosen = plot.root.parentElement?.dataset.near;
          if (chosen && Number(chosen) >= 0) host.go(toLatent(Number(chosen)));
        })],
      },
    };
  };
  return (
    <section aria-labelledby="map-title">
      <h2 id="map-title">All latents</h2>
      <div class="switch" role="group" aria-label="What the map shows">
        <button type="button" aria-pressed={density} onClick={() => setKind("density")}>Density and strength</button>
        <button type="button" aria-pressed={!density} onClick={() => setKind("atoms")}>Atoms</button>
      </div>
      <div class={near >= 0 ? "pointing" : ""} ref={(own) => {
        const chart = own?.querySelector<HTMLElement>(".chart");
        if (chart) chart.dataset.near = String(near);
      }}>
        <Chart made={made} data={[x, y]} height={320} keys={[kind]}
          summary={`${count(x.length, "latent")} as points: ${density ? "density against largest activation" : "two principal components of the atoms"}. The list of latents holds the same numbers.`} />
      </div>
      <p class="note" aria-live="off">
        {near >= 0
          ? `Latent ${near}: density ${short(latents.density[near])}, largest code ${short(latents.largest[near])}, most specific to ${ofLatent(near).name}.`
          : density
            ? "Each point is a latent: how often it is active, and how strongly at most. Point at one; click to open it."
            : `The atoms' first two principal components, ${percent(latents.share)} of their variance.`}
      </p>
    </section>
  );
}

function Quality() {
  const { quality } = the();
  if (!quality) return null;
  const cell = (value: number | boolean | null) =>
    value === null ? "–" : typeof value === "boolean" ? (value ? "signed" : "unsigned") : short(value);
  return (
    <section aria-labelledby="quality-title">
      <h2 id="quality-title">How good is the dictionary?</h2>
      <p class="lead">Beside controls that know nothing. A measure in which a control is as good says nothing for the dictionary.</p>
      <div class="scroll" tabIndex={0} role="region" aria-label="Measures of the dictionary and its controls">
        <table>
          <thead><tr><th scope="col">held-out images</th>{quality.columns.map((name) => <th scope="col" key={name} class="number">{name}</th>)}</tr></thead>
          <tbody>
            {quality.rows.map((row) => (
              <tr key={row.name}>
                <th scope="row">{row.name}</th>
                {row.values.map((value, at) => <td key={quality.columns[at]} class={`number ${at ? "" : "own"}`}>{cell(value)}</td>)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <details><summary>How to read it</summary><ul>{quality.notes.map((note) => <li key={note}>{note}</li>)}</ul></details>
    </section>
  );
}

export function Overview() {
  const { title, about, classes } = the();
  const seen = classes.counts.filter((images) => images > 0).length;
  return (
    <>
      <h1 tabIndex={-1}>{title}</h1>
      <dl class="facts">
        {classes.overall === undefined ? null : <div><dt>accuracy</dt><dd>{percent(classes.overall)}</dd></div>}
        <div><dt>images</dt><dd>{about.n_images.toLocaleString("en")}</dd></div>
        <div><dt>classes</dt><dd>{seen.toLocaleString("en")}{seen < classes.names.length ? <small> of {classes.names.length}</small> : null}</dd></div>
        <div><dt>latents</dt><dd>{about.n_latents.toLocaleString("en")}</dd></div>
        <div><dt>learner</dt><dd>{about.learner}</dd></div>
        <div><dt>site</dt><dd class="code">{about.site}<small> × {about.width}</small></dd></div>
      </dl>
      <LatentMap />
      <section aria-labelledby="classes-title"><h2 id="classes-title">Classes</h2><ClassList /></section>
      <FrontSection />
      <Quality />
    </>
  );
}
