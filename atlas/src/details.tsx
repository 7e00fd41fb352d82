import uPlot from "uplot";
import { axis, Chart, colours } from "./chart";
import { type ClassEntry, classEntry, latentEntry, ofLatent, the } from "./data";
import { EvidenceSection } from "./evidence";
import { quantile } from "./edits";
import { Gallery } from "./gallery";
import { Key } from "./key";
import { useLater } from "./later";
import { ClassOf } from "./lists";
import { toBench, toClass, toLatent } from "./routes";
import { count, held, percent, short } from "./text";

/** The share of images that have flipped at each strength, as a stepped line. */
function CritChart({ crit }: { crit: NonNullable<NonNullable<ClassEntry>["crit"]> }) {
  const both = [crit.own, crit.all];
  const finite = both.flatMap((values) => Array.from(values).filter(Number.isFinite)).sort((a, b) => a - b);
  if (!finite.length) return <p>No strength of this latent changes a decision for this class.</p>;
  const end = quantile(finite, 0.98) * 1.1 || 1;
  const x = [...new Set([0, ...finite.filter((value) => value <= end), end])].sort((a, b) => a - b);
  const shares = both.map((values) => {
    let at = 0;
    return x.map((alpha) => {
      while (at < values.length && values[at] <= alpha) at++;
      return (100 * at) / values.length;
    });
  });
  const made = () => {
    const { accent, second } = colours();
    const paths = uPlot.paths.stepped!({ align: 1 });
    return {
      scales: { x: { time: false }, y: { range: [0, 100] as [number, number] } },
      axes: [axis("strength α"), axis("% flipped", { size: 50 })],
      cursor: { drag: { x: false, y: false } }, legend: { show: false },
      series: [
        {},
        { stroke: accent, width: 2, paths, points: { show: false } },
        { stroke: second, width: 2, dash: [6, 4], paths, points: { show: false } },
      ],
    };
  };
  const never = Array.from(crit.own).filter((value) => value === Infinity).length;
  return (
    <>
      <Chart made={made} data={[x, ...shares] as uPlot.AlignedData} height={260} keys={[crit]}
        summary={`Share of images whose decision has changed at each strength: half of them by ${short(quantile(crit.own, 0.5))} on the class's own row, by ${short(quantile(crit.all, 0.5))} on all rows.`} />
      <Key lines={[{ name: "own row", colour: "accent", wide: true }, { name: "all rows", colour: "second", wide: true, dash: [6, 4] }]} />
      <p class="note">
        α_crit is exact: the smallest strength at which another class's logit reaches this one's. On the own row {never ? `${count(never, "image")} of ${crit.own.length} never change.` : `all ${crit.own.length} images change in the end.`}
      </p>
    </>
  );
}

type Counted = { classes: Int32Array; images: Int32Array };

/** What a class's images are labelled as, before and after the edit that changes all that ever change. */
function Flows({ label, before, after, tested }: {
  label: number; before: Counted; after?: Counted & { strength: number }; tested: number;
}) {
  const { classes } = the();
  const images = ({ classes: labels, images }: Counted, each: number) => {
    const at = labels.indexOf(each);
    return at < 0 ? 0 : images[at];
  };
  const shown = [...new Set([...before.classes, ...(after?.classes ?? [])])];
  return (
    <section aria-labelledby="flows">
      <h2 id="flows">Where its images go</h2>
      <table>
        <thead><tr><th scope="col">predicted</th><th scope="col" class="number">images</th><th scope="col" class="number">share</th>{after ? <th scope="col" class="number">after α = {short(after.strength)}</th> : null}</tr></thead>
        <tbody>
          {shown.map((each) => (
            <tr key={each}>
              <th scope="row"><a href={toClass(each)}>{classes.names[each]}</a></th>
              <td class="number">{images(before, each)}</td><td class="number">{percent(images(before, each) / classes.counts[label])}</td>
              {after ? <td class="number" data-after={each}>{percent(images(after, each) / tested)}</td> : null}
            </tr>
          ))}
        </tbody>
      </table>
      {after ? <p class="note">After: the dominant latent is suppressed in the class's own row, just beyond the strength at which the last of {count(tested, "image")} on the bench changes that ever does.</p> : null}
    </section>
  );
}

export function ClassPage({ label }: { label: number }) {
  const { classes } = the();
  const name = classes.names[label];
  const { value: entry, error } = useLater(() => classEntry(label), [label]);
  const dominant = classes.dominant[label];
  const { value: latent } = useLater(() => latentEntry(Math.max(0, dominant)), [dominant]);
  if (name === undefined) return <><h1 tabIndex={-1}>No such class</h1><p><a href="#/">Back to the overview</a></p></>;
  return (
    <>
      <p class="above"><a href="#/classes">Classes</a></p>
      <h1 tabIndex={-1}>{name}</h1>
      <dl class="facts">
        <div><dt>row</dt><dd>{label}</dd></div>
        <div><dt>images</dt><dd>{classes.counts[label]}</dd></div>
        <div><dt>accuracy</dt><dd>{percent(classes.accuracy[label])}</dd></div>
        {dominant >= 0 ? <div><dt>dominant latent</dt><dd><a href={toLatent(dominant)}>{dominant}</a></dd></div> : null}
      </dl>
      {error ? <p class="error">{error}</p> : null}
      {entry ? (
        <>
          {the().bench && dominant >= 0 ? (
            <p><a class="button" href={toBench([dominant], the().bench!.binary ? null : [label], label)}>Try an edit of this class</a></p>
          ) : null}
          {entry.crit ? <section aria-labelledby="crit"><h2 id="crit">How strong must an edit of latent {dominant} be?</h2><CritChart crit={entry.crit} /></section> : null}
          <div class="columns">
            <section aria-labelledby="ranked">
              <h2 id="ranked">Latents</h2>
              <table>
                <thead><tr><th scope="col">latent</th><th scope="col" class="number">score</th><th scope="col" class="number">mean</th><th scope="col" class="number">shift / spread</th></tr></thead>
                <tbody>
                  {entry.ranked.map((each, at) => (
                    <tr key={each}>
                      <th scope="row"><a href={toLatent(each)}>{each}</a>{each === dominant ? <span class="tag">dominant</span> : null}</th>
                      <td class="number">{short(entry.scores[at])}</td><td class="number">{short(entry.means[at])}</td><td class="number">{short(entry.shifts[at])}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
              <p class="note">Most specific first. Shift / spread: how far the mean is from that of the other classes, in standard deviations within classes.</p>
            </section>
            {entry.predicted ? <Flows label={label} before={entry.predicted} after={entry.after} tested={entry.crit?.own.length ?? 0} /> : null}
          </div>
          {latent && dominant >= 0 ? <section aria-labelledby="images"><h2 id="images">What latent {dominant} is strongest on</h2><Gallery latent={dominant} entry={latent} limit={6} /></section> : null}
        </>
      ) : null}
    </>
  );
}

function Histogram({ counts, least, most, latent }: { counts: Int32Array; least: number; most: number; latent: number }) {
  const step = (most - least) / counts.length || 1;
  const x = Array.from(counts, (_, at) => least + (at + 0.5) * step);
  const made = () => {
    const { accent } = colours();
    return {
      legend: { show: false }, cursor: { show: false },
      scales: { x: { time: false, range: [least, most > least ? most : least + 1] as [number, number] }, y: { distr: 3 as const, range: (_: uPlot, __: number, top: number) => [0.5, Math.max(2, top * 1.5)] as [number, number] } },
      axes: [axis("code"), axis("images", { size: 60, grid: { show: false }, ticks: { show: false }, values: (_: uPlot, ticks: number[]) => ticks.map((tick) => (tick >= 1 && Number.isInteger(Math.log10(tick)) ? String(tick) : "")) })],
      series: [{}, { paths: uPlot.paths.bars!({ size: [0.9, 100] }), fill: accent, stroke: accent, width: 0, points: { show: false } }],
    };
  };
  return <Chart made={made} data={[x, Array.from(counts, (n) => n || null)]} height={220} keys={[latent]}
    summary={`Histogram of the codes of latent ${latent}, from ${short(least)} to ${short(most)}`} />;
}

export function LatentPage({ latent }: { latent: number }) {
  const { latents, classes, about } = the();
  const { value: entry, error } = useLater(() => latentEntry(latent), [latent]);
  if (latent < 0 || latent >= about.n_latents) return <><h1 tabIndex={-1}>No such latent</h1><p><a href="#/latents">Back to the list</a></p></>;
  const { label } = ofLatent(latent);
  return (
    <>
      <p class="above"><a href="#/latents">Latents</a></p>
      <h1 tabIndex={-1}>Latent {latent}</h1>
      <dl class="facts">
        <div><dt>most specific to</dt><dd><ClassOf latent={latent} /></dd></div>
        <div><dt>density</dt><dd>{short(latents.density[latent])}</dd></div>
        <div><dt>largest code</dt><dd>{short(latents.largest[latent])}</dd></div>
        {entry ? <div><dt>spread within classes</dt><dd>{short(entry.spread)}</dd></div> : null}
      </dl>
      {error ? <p class="error">{error}</p> : null}
      {entry ? (
        <>
          {the().bench ? (
            <p><a class="button" href={toBench([latent], the().bench!.binary ? null : label < 0 ? [] : [label], label)}>Try an edit of this latent</a></p>
          ) : null}
          <section aria-labelledby="top"><h2 id="top">Images it is strongest on</h2><Gallery latent={latent} entry={entry} /></section>
          {entry.made ? (
            <section aria-labelledby="made">
              <h2 id="made">An image made to {entry.made.sign < 0 ? "lower" : "drive"} it</h2>
              <div class="made">
                <img src={held(entry.made.source)} alt={`Made in ${entry.made.steps} steps to ${entry.made.sign < 0 ? "lower" : "raise"} latent ${latent}`} />
                <p class="note">
                  Activation maximization: {entry.made.steps} steps of gradient ascent on the latent before its activation function, from noise. The image reaches {short(entry.made.value)}; random images like the one it began with reach {short(entry.made.noise)} ± {short(entry.made.spread)}. It shows what drives the latent furthest, which no recorded image need resemble.
                </p>
              </div>
            </section>
          ) : null}
          {entry.evidence ? <EvidenceSection latent={latent} evidence={entry.evidence} /> : null}
          <div class="columns">
            <section aria-labelledby="codes">
              <h2 id="codes">Its codes</h2>
              <Histogram counts={entry.counts} least={entry.least} most={entry.most} latent={latent} />
              <p class="note">Images by code, of each image the strongest; the number of images on a logarithmic scale.</p>
            </section>
            <section aria-labelledby="profile">
              <h2 id="profile">Its classes</h2>
              <div class="scroll tall" tabIndex={0} role="region" aria-label="Classes by how far the latent sets them apart">
                <table>
                  <thead><tr><th scope="col">class</th><th scope="col" class="number">mean</th><th scope="col" class="number">shift / spread</th></tr></thead>
                  <tbody>
                    {Array.from(entry.profile.classes).map((each, at) => (
                      <tr key={each}><th scope="row"><a href={toClass(each)}>{classes.names[each]}</a></th><td class="number">{short(entry.profile.means[at])}</td><td class="number">{short(entry.profile.shifts[at])}</td></tr>
                    ))}
                  </tbody>
                </table>
              </div>
              <p class="note">Shift: the class's mean less that of the others, each class once. Spread: the standard deviation within classes.</p>
            </section>
          </div>
        </>
      ) : null}
    </>
  );
}
