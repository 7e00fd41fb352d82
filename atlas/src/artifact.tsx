/** An artifact alone: what its edit changed, from the evidence that travels with it. */
import { useState } from "preact/hooks";
import uPlot from "uplot";
import { axis, Chart, colours } from "./chart";
import type { Artifact } from "./data";
import { quantile } from "./edits";
import { count, held, percent, points, short } from "./text";

type Crit = Artifact["crit"][number];

function Strengths({ crit, strength }: { crit: Crit; strength: number | null }) {
  const finite = Array.from(crit.values).filter(Number.isFinite);
  const end = Math.max(1.1 * (quantile(finite, 0.98) || 0), 1.1 * (strength ?? 0)) || 1;
  const x = [...new Set([0, ...finite.filter((value) => value <= end), end])].sort((a, b) => a - b);
  const y = x.map((alpha) => (100 * finite.filter((value) => value <= alpha).length) / crit.values.length);
  const made = () => ({
    legend: { show: false }, cursor: { drag: { x: false, y: false } },
    scales: { x: { time: false }, y: { range: [0, 100] as [number, number] } },
    axes: [axis("strength α"), axis("% reached", { size: 56 })],
    series: [{}, { stroke: colours().accent, width: 2, paths: uPlot.paths.stepped!({ align: 1 }), points: { show: false } }],
    hooks: {
      draw: [(plot: uPlot) => {
        if (strength === null) return;
        const { ctx, bbox } = plot;
        const at = plot.valToPos(strength, "x", true);
        ctx.save();
        ctx.setLineDash([]);
        ctx.strokeStyle = colours().ink;
        ctx.lineWidth = 1.5 * devicePixelRatio;
        ctx.beginPath();
        ctx.moveTo(at, bbox.top);
        ctx.lineTo(at, bbox.top + bbox.height);
        ctx.stroke();
        ctx.restore();
      }],
    },
  });
  const reached = strength === null ? 0 : finite.filter((value) => value <= strength).length;
  return (
    <>
      <Chart made={made} data={[x, y] as uPlot.AlignedData} height={240} keys={[crit, strength]}
        summary={`Share of the images of ${crit.name} that reach the target at each strength`} />
      <p class="note">
        The smallest strength at which each image reaches the target “{crit.target}”, exactly.
        {strength === null ? "" : ` The upright line is the edit's own strength, ${short(strength, 4)}: ${count(reached, "image")} of ${crit.values.length} reach it.`}
      </p>
    </>
  );
}

const some = (value: number | null, words: (value: number) => string) => (value === null ? "–" : words(value));

export function ArtifactPage({ title, artifact, digest }: { title: string; artifact: Artifact; digest: string }) {
  const { assessment, crit, pictures } = artifact;
  const [chosen, setChosen] = useState(0);
  return (
    <>
      <h1 tabIndex={-1}>{title}</h1>
      {assessment ? <p class="lead">{assessment.verdict}</p> : null}
      <dl class="facts">
        <div><dt>how much</dt><dd>{artifact.amount}</dd></div>
        <div><dt>rows</dt><dd>{artifact.rows === null ? "all" : artifact.rows.join(", ")}</dd></div>
        <div><dt>site</dt><dd class="code">{artifact.site}</dd></div>
        {assessment ? <div><dt>weights changed</dt><dd>{assessment.changed.toLocaleString("en")}</dd></div> : null}
        {assessment ? <div><dt>images assessed</dt><dd>{assessment.images.toLocaleString("en")}</dd></div> : null}
        <div><dt>digest</dt><dd class="code">{digest.slice(0, 12)}</dd></div>
      </dl>
      {assessment ? (
        <>
          <section aria-labelledby="effect">
            <h2 id="effect">What it did, beside its controls</h2>
            <table>
              <thead><tr><th scope="col">in its place</th><th scope="col" class="number">{assessment.target ?? "target"}</th><th scope="col" class="number">all images</th><th scope="col" class="number">others, mean</th><th scope="col" class="number">others, worst</th><th scope="col" class="number">KL of others, nats</th></tr></thead>
              <tbody>
                {assessment.effects.map((effect) => (
                  <tr key={effect.name}><th scope="row">{effect.name}</th><td class="number">{some(effect.target, percent)}</td><td class="number">{percent(effect.accuracy)}</td><td class="number">{some(effect.others, points)}</td><td class="number">{some(effect.worst, points)}</td><td class="number">{some(effect.kl, short)}</td></tr>
                ))}
              </tbody>
            </table>
            <p class="note">Where a control does as well, the edit's feature is not what did it. Changes are in points of accuracy.</p>
          </section>
          <section aria-labelledby="classes">
            <h2 id="classes">Classes</h2>
            <div class="scroll tall" tabIndex={0} role="region" aria-label="Classes by how much their accuracy changed">
              <table>
                <thead><tr><th scope="col">class</th><th scope="col" class="number">images</th><th scope="col" class="number">before</th><th scope="col" class="number">after</th><th scope="col" class="number">change</th><th scope="col">most others go to</th></tr></thead>
                <tbody>
                  {assessment.classes.map((each, at) => (
                    <tr key={at}><th scope="row">{each.name}</th><td class="number">{each.count}</td><td class="number">{percent(each.accuracy[0])}</td><td class="number">{percent(each.accuracy[1])}</td><td class="number">{points(each.accuracy[1] - each.accuracy[0])}</td><td>{each.destination === null ? "–" : `${each.destination} (${percent(each.share)})`}</td></tr>
                  ))}
                </tbody>
              </table>
            </div>
          </section>
        </>
      ) : <p>The artifact carries no assessment.</p>}
      {crit.length ? (
        <section aria-labelledby="crit">
          <h2 id="crit">Critical strengths</h2>
          {crit.length > 1 ? (
            <p><select aria-label="Class" value={chosen} onChange={(event) => setChosen(Number(event.currentTarget.value))}>{crit.map((each, at) => <option value={at} key={at}>{each.name}</option>)}</select></p>
          ) : null}
          <Strengths crit={crit[chosen]} strength={artifact.strength} />
        </section>
      ) : null}
      {pictures.length ? (
        <section aria-labelledby="pictures">
          <h2 id="pictures">Pictures</h2>
          <div class="pictures">{pictures.map((each) => <figure key={each.name}><img src={held(each.source)} alt={each.name} /><figcaption>{each.name}</figcaption></figure>)}</div>
          <p class="note">Each image, and beside it where the edit's latent comes from: red raises it, blue lowers it.</p>
        </section>
      ) : null}
      <section aria-labelledby="base">
        <h2 id="base">Made for</h2>
        <table><tbody>{Object.entries(artifact.base).map(([name, value]) => <tr key={name}><th scope="row">{name}</th><td>{value}</td></tr>)}</tbody></table>
      </section>
    </>
  );
}
