/** What speaks for a latent, each number beside what chance reaches. */
import type { ComponentChildren } from "preact";
import { axis, Chart, colours } from "./chart";
import { type Evidence, the } from "./data";
import { toClass, toLatent } from "./routes";
import { count, percent, points, short } from "./text";

/** A little above 1 in 20: as a float32, that is not below itself. */
const LEVEL = 0.05 + 1e-6;

type Row = { name: string; value: string; chance: string; p: number | null; says: ComponentChildren; known: boolean; weak: boolean };

function Curve({ curve, scales, label }: { curve: Float32Array; scales: number[]; label: string }) {
  const made = () => ({
    legend: { show: false }, cursor: { show: false },
    scales: { x: { time: false }, y: { range: [0, 1] as [number, number] } },
    axes: [axis("the latent's contribution, times", { splits: () => scales }), axis(`mean probability`, { size: 56 })],
    series: [{}, { stroke: colours().accent, width: 2, points: { show: true, size: 7, fill: colours().accent } }],
  });
  const ends = scales.map((scale, at) => `${short(curve[at])} at ${scale}`).join(", ");
  return <Chart made={made} data={[scales, Array.from(curve)]} height={220} keys={[curve]} summary={`Mean probability of ${label} on its images as the latent's contribution is scaled: ${ends}`} />;
}

export function EvidenceSection({ latent, evidence }: { latent: number; evidence: Evidence }) {
  const { classes, evidence: all } = the();
  const { label, partner, curve } = evidence;
  const name = classes.names[label];
  const told = label >= 0;
  const link = told ? <a href={toClass(label)}>{name}</a> : null;
  const rows: Row[] = [
    { name: "AUC", value: short(evidence.auc), chance: short(evidence.auc_null), p: evidence.auc_p_all, known: told, weak: !(evidence.auc_p_all <= LEVEL),
      says: <>how well it tells {link}, the class that it tells best; chance chooses its best class, too, and p the best of all latents</> },
    { name: `precision of ${all!.k}`, value: percent(evidence.precision), chance: percent(evidence.precision_null), p: null, known: told, weak: !(evidence.precision > evidence.precision_null),
      says: <>share of its top images that are of {link}; {percent(evidence.chance)} of all images are</> },
    { name: "ablated", value: `${points(evidence.effect)} points`, chance: "", p: evidence.effect_p, known: Number.isFinite(evidence.effect), weak: !(evidence.effect_p <= LEVEL),
      says: <>change of the mean probability of {link} on its images when the latent is taken away; p: other latents that lower it as much at the same KL, {short(evidence.kl)} nats</> },
    { name: "effect predicted", value: percent(evidence.explained), chance: percent(evidence.explained_null), p: null, known: Number.isFinite(evidence.explained), weak: !(evidence.explained > evidence.explained_null),
      says: "share of what suppressing it does to the logits that its codes predict; chance: other latents in its place" },
    { name: "co-occurrence φ", value: short(evidence.phi), chance: short(evidence.phi_null), p: evidence.phi_p, known: partner >= 0, weak: !(evidence.phi_p <= LEVEL),
      says: <>with <a href={toLatent(partner)}>latent {partner}</a>, which is most often active in the same images</> },
  ];
  const shown = rows.filter((row) => row.known);
  return (
    <section aria-labelledby="evidence">
      <h2 id="evidence">What speaks for it</h2>
      {shown.length ? (
        <div class="scroll" tabIndex={0} role="region" aria-label={`Evidence for latent ${latent}`}>
          <table class="evidence">
            <thead><tr><th scope="col">number</th><th scope="col" class="number">measured</th><th scope="col" class="number">by chance</th><th scope="col" class="number">p</th><th scope="col">what it says</th></tr></thead>
            <tbody>
              {shown.map((row) => (
                <tr key={row.name} class={row.weak ? "weak" : ""}>
                  <th scope="row">{row.name}</th><td class="number own">{row.value}</td><td class="number">{row.chance || "–"}</td>
                  <td class="number">{row.p === null ? "–" : short(row.p, 2)}</td><td>{row.says}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : <p>It tells no class: its codes are alike in all images.</p>}
      <p class="note">By chance: what chance reaches in 1 of 20 cases. p: the share of such cases that reach as much, over {count(all!.permutations, "permutation")} of the labels, {count(all!.images, "image")}. Where chance does as well, the number is grey.</p>
      {told && curve.every(Number.isFinite) ? (
        <>
          <h3>Scaled in place, on images of {name}</h3>
          <Curve curve={curve} scales={all!.scales} label={name} />
        </>
      ) : null}
    </section>
  );
}
