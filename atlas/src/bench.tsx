/** The edit bench: an edit is put together and its effect on recorded images follows at once. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { axis, Chart, colours } from "./chart";
import { atom, classEntry, load, type StepData, the } from "./data";
import {
  confusion, type Counts, counted, criticalStrengths, factors, type Head, limitOf, type Operator,
  predictions, quantile, reachOf, type Recorded, type Rest, restOf, rowLogits, type Rows, StepFunction,
} from "./edits";
import { Key } from "./key";
import { useLater } from "./later";
import { route, toClass, toLatent } from "./routes";
import { count, percent, points, short } from "./text";
import { command, type Described, recipe, script } from "./words";

type Loaded = { head: Head; recorded: Recorded; base: Int32Array };
const GRID = 33;
const SHOWN = 10;
const DASHES = [[9, 4], [2, 3], [9, 3, 2, 3], [4, 4]];

async function loaded(): Promise<Loaded> {
  const { about, classes, bench } = the();
  const [head, features, logits] = await Promise.all([
    load<{ weight: Float32Array; bias: Float32Array }>("bench/head"),
    load<{ x: Float32Array }>("bench/features"),
    load<{ logits: Float32Array }>("bench/logits"),
  ]);
  const whole: Head = { ...head, width: about.width, classes: classes.names.length };
  const recorded = { x: features.x, logits: logits.logits, labels: bench!.labels };
  return { head: whole, recorded, base: restOf(whole, recorded, []).best };
}

const numbers = (text: string) => [...new Set(text.split(/[^\d]+/).filter(Boolean).map(Number))];

/** Where the slider ends: well beyond the strengths at which the class's decisions break. */
function sliderEnd(crits: Float64Array | null, limit: number): number {
  const breaking = (crits ?? new Float64Array(0)).filter((each) => each > 0 && each < Infinity).sort();
  return breaking.length ? Math.min(limit, Number((2 * quantile(breaking, 0.98)).toPrecision(3))) : limit;
}

/** Strengths of the slider and the charts: fine near zero, where edits begin to act. */
const strengthAt = (share: number, limit: number) => Number((limit * share * share).toPrecision(4));

function Picked({ values, named, remove }: { values: number[]; named: (value: number) => string; remove: (value: number) => void }) {
  return (
    <ul class="chips">
      {values.map((value) => (
        <li key={value}>{named(value)}<button type="button" aria-label={`remove ${named(value)}`} onClick={() => remove(value)}>×</button></li>
      ))}
    </ul>
  );
}

function Copied({ label, text }: { label: string; text: string }) {
  const [done, setDone] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Where pages from disk get no clipboard.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    setDone("copied");
    setTimeout(() => setDone(""), 1500);
  };
  return (
    <div class="copied">
      <pre tabIndex={0} aria-label={label}>{text}</pre>
      <button type="button" onClick={copy}>Copy {label}</button> <span role="status">{done}</span>
    </div>
  );
}

/** Logits of a class's images over the strength: their own class's and its rivals'. */
function Spread({ data, rest, reach, operator, label, images, limit, alpha, crits }: {
  data: Loaded; rest: Rest; reach: Float64Array; operator: Operator; label: number;
  images: number[]; limit: number; alpha: number; crits: Float64Array | null;
}) {
  const { classes } = the();
  const { head, recorded } = data;
  const drawn = useMemo(() => {
    const some = images.length > 120 ? images.filter((_, at) => at % Math.ceil(images.length / 120) === 0) : images;
    const logit = (image: number, row: number) => recorded.logits[image * head.classes + row];
    const means = classes.names.map((_, row) => some.reduce((sum, image) => sum + logit(image, row), 0) / some.length);
    const rivals = means.map((_, row) => row).filter((row) => row !== label).sort((a, b) => means[b] - means[a]).slice(0, 4);
    const x = Array.from({ length: GRID }, (_, at) => strengthAt(at / (GRID - 1), limit));
    const out = new Float64Array(some.length);
    const sortedAt = (row: number, strength: number) =>
      rest.rows === null || rest.rows.includes(row)
        ? rowLogits(head, row, factors(reach, strength, operator), recorded.x, some, out).slice().sort()
        : Float64Array.from(some, (image) => logit(image, row)).sort();
    const own = x.map((strength) => sortedAt(label, strength));
    const lines = rivals.map((row) => x.map((strength) => quantile(sortedAt(row, strength), 0.5)));
    return { rivals, data: [x, ...[0.9, 0.1, 0.5].map((share) => own.map((values) => quantile(values, share))), ...lines] };
  }, [data, rest, reach, operator, label, limit]);
  const now = useRef({ alpha, crits });
  now.current = { alpha, crits };
  const made = () => {
    const { accent, ink, soft, second } = colours();
    return {
      scales: { x: { time: false, distr: 100 as const, fwd: Math.sqrt, inv: (v: number) => v * v, range: [0, limit] as [number, number] } },
      axes: [axis("strength α", { values: (_: uPlot, ticks: number[]) => ticks.map((tick) => short(tick, 2)), splits: () => [0, 0.05, 0.2, 0.4, 0.7, 1].map((share) => share * limit), filter: (_: uPlot, splits: number[]) => splits }), axis("logit", { size: 54 })],
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

function Matrix({ labels, predicted, base, shown }: { labels: Int32Array; predicted: Int32Array; base: Int32Array; shown: number[] }) {
  const { classes } = the();
  const after = confusion(labels, predicted, shown);
  const before = confusion(labels, base, shown);
  const name = (label: number) => classes.names[label];
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Confusion matrix">
      <table class="matrix">
        <thead><tr><th scope="col">label \ predicted</th>{shown.map((label) => <th scope="col" key={label} title={name(label)}><span>{name(label)}</span></th>)}{classes.names.length > shown.length ? <th scope="col"><span>others</span></th> : null}</tr></thead>
        <tbody>
          {shown.map((label, row) => {
            const sum = after[row].reduce((a, b) => a + b, 0) || 1;
            const cells = classes.names.length > shown.length ? after[row] : after[row].slice(0, -1);
            return (
              <tr key={label}>
                <th scope="row">{name(label)}</th>
                {cells.map((n, at) => {
                  const change = n - before[row][at];
                  return <td key={at} class={row === at ? "own" : ""} style={{ "--share": `${Math.round((85 * n) / sum)}%` }}>{n || ""}{change ? <small>{change > 0 ? `+${change}` : `−${-change}`}</small> : null}</td>;
                })}
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

const accuracy = (counts: Counts, label: number) => (counts.total[label] ? counts.right[label] / counts.total[label] : NaN);

/** Mean over the other classes that have images, each counting once. */
function othersChange(before: Counts, after: Counts, labels: number[]): number {
  let sum = 0;
  let n = 0;
  before.total.forEach((total, label) => {
    if (!total || labels.includes(label)) return;
    sum += (after.right[label] - before.right[label]) / total;
    n++;
  });
  return n ? sum / n : NaN;
}

type Kept = { words: string; counts: Counts };

export function Bench() {
  const { bench, bench_missing, classes, about } = the();
  const { query } = route.value;
  const first = Math.max(0, classes.counts.findIndex((images) => images > 0));
  const asked = Number(query.get("class") ?? first);
  const start = classes.counts[asked] > 0 ? asked : first;
  const [label, setLabel] = useState(start);
  const [operator, setOperator] = useState<Operator>("suppress");
  const [latents, setLatents] = useState(() => {
    const given = numbers(query.get("latents") ?? "").filter((latent) => latent < about.n_latents);
    return given.length ? given : [Math.max(0, classes.dominant[start])];
  });
  const givenRows = query.get("rows");
  const [rows, setRows] = useState<Rows>(() =>
    bench?.binary || givenRows === "all" ? null : numbers(givenRows ?? String(start)).filter((row) => row < classes.names.length));
  const [share, setShare] = useState(0);
  const [typed, setTyped] = useState<number | null>(null);
  const [kept, setKept] = useState<Kept | null>(null);
  const { value: data, error } = useLater(() => (bench ? loaded() : Promise.reject(new Error(bench_missing))), []);
  const { value: atoms } = useLater(() => Promise.all(latents.map(atom)), [latents.join()]);
  const { value: entry } = useLater(() => classEntry(label), [label]);
  const ahead = !!bench && rows === null && !bench.live && operator === "suppress" && latents.length === 1 && bench.steps.includes(latents[0]);
  const { value: stepData } = useLater(() => (ahead ? load<StepData>(`steps/${latents[0]}`) : Promise.resolve(null)), [ahead, latents[0]]);
  const masked = operator === "mask";
  const own = masked && !rows ? [label] : rows;
  const rest = useMemo(() => (data ? restOf(data.head, data.recorded, own) : null), [data, own?.join(), own === null]);
  const reach = useMemo(() => (atoms ? reachOf(atoms) : null), [atoms]);
  const limit = stepData ? stepData.limit : reach ? limitOf(reach) : 1;
  const steps = useMemo(() => (stepData && data ? new StepFunction(data.base, stepData) : null), [stepData, data]);
  const images = useMemo(() => (data ? Array.from(data.recorded.labels.keys()).filter((image) => data.recorded.labels[image] === label) : []), [data, label]);
  const crits = useMemo(() => {
    if (!data || !rest || !reach || masked) return null;
    if (rows === null && !bench!.live) {
      return steps ? Float64Array.from(images, (image) => (data.base[image] === label ? steps.firstStep(image) : 0)) : null;
    }
    return criticalStrengths(data.head, data.recorded, rest, reach, operator, label, images);
  }, [data, rest, reach, operator, label, images, steps]);
  const end = useMemo(() => sliderEnd(crits, limit), [crits, limit]);
  const alpha = typed ?? strengthAt(share, end);
  const possible = !!bench && (masked || rows !== null || bench.live || (ahead && alpha <= limit));
  const scale = useMemo(() => (reach ? factors(reach, alpha, operator) : null), [reach, alpha, operator]);
  const predicted = useMemo(() => {
    if (!data || !rest || !scale || !possible) return null;
    if (masked) return predictions(data.head, data.recorded, rest, null);
    if (alpha === 0) return data.base;
    if (rows === null && !bench!.live) return steps?.at(alpha) ?? null;
    return predictions(data.head, data.recorded, rest, scale);
  }, [data, rest, scale, possible, steps, masked]);
  const before = useMemo(() => (data ? counted(data.recorded.labels, data.base, classes.names.length) : null), [data]);
  const after = useMemo(() => (data && predicted ? counted(data.recorded.labels, predicted, classes.names.length) : null), [data, predicted]);
  // What was typed belongs to the edit it was typed for.
  useEffect(() => setTyped(null), [latents.join(), operator]);

  const chosenClass = (next: number) => {
    setLabel(next);
    if (rows?.length === 1 && rows[0] === label) setRows([next]);
    if (latents.length === 1 && latents[0] === classes.dominant[label]) setLatents([Math.max(0, classes.dominant[next])]);
  };
  const described: Described = { operator, latents, rows: own, alpha };
  const words = masked
    ? `mask ${own!.map((row) => classes.names[row]).join(", ")}`
    : `${operator} latent${latents.length > 1 ? "s" : ""} ${latents.join(", ")} on ${rows ? `row${rows.length > 1 ? "s" : ""} ${rows.map((row) => classes.names[row]).join(", ")}` : "all rows"}, α = ${short(alpha, 4)}`;
  const line = command(described, about.study, classes.named || about.study ? classes.names[label] : null);
  const shown = useMemo(() => {
    if (!before || !after || !data) return [];
    const change = classes.names.map((_, row) => (before.total[row] ? Math.abs(after.right[row] - before.right[row]) / before.total[row] : -1));
    const hits = new Int32Array(classes.names.length);
    for (const image of images) hits[predicted![image]]++;
    const order = classes.names.map((_, row) => row).filter((row) => row !== label && (before.total[row] || hits[row]))
      .sort((a, b) => hits[b] - hits[a] || change[b] - change[a] || a - b);
    return [label, ...order.slice(0, SHOWN - 1)].sort((a, b) => a - b);
  }, [before, after, label]);
  const download = async () => {
    const shared = await load<Record<string, string>>("bench/recipe");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([recipe(described, shared, about.dictionary, atoms!) as BlobPart]));
    link.download = `${operator}-latent-${latents.join("-")}.safetensors`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  if (!bench) return <><h1 tabIndex={-1}>Edit bench</h1><p>{bench_missing}</p></>;
  const sorted = crits ? crits.slice().sort() : null;
  return (
    <>
      <h1 tabIndex={-1}>Edit bench</h1>
      <p class="lead">Put an edit together and drag its strength. Everything below is recounted on {count(bench.labels.length, "recorded image")}{bench.labels.length < about.n_images ? ` of ${about.n_images.toLocaleString("en")}, evenly chosen` : ""}.</p>
      {error ? <p class="error">{error}</p> : null}
      <div class="bench">
        <form class="panel" onSubmit={(event) => event.preventDefault()} aria-label="The edit">
          <label class="field"><span>Class</span>
            <select value={label} onChange={(event) => chosenClass(Number(event.currentTarget.value))}>
              {classes.names.map((name, each) => (classes.counts[each] ? <option value={each} key={each}>{name}</option> : null))}
            </select>
          </label>
          <label class="field"><span>Operator</span>
            <select value={operator} onChange={(event) => setOperator(event.currentTarget.value as Operator)}>
              <option value="suppress">suppress a latent</option>
              <option value="enhance">enhance a latent</option>
              {bench.binary ? null : <option value="mask">mask the class</option>}
            </select>
          </label>
          {masked ? <p class="note">The rows' biases are lowered until they are below every other class: no strength to choose.</p> : (
            <div class="field" role="group" aria-labelledby="latents-label"><span id="latents-label">Latents</span>
              <Picked values={latents} named={(latent) => `latent ${latent}`} remove={(latent) => latents.length > 1 && setLatents(latents.filter((each) => each !== latent))} />
              <input type="text" inputMode="numeric" aria-label="Add a latent by its number" placeholder="add by number"
                onChange={(event) => {
                  const added = numbers(event.currentTarget.value).filter((latent) => latent < about.n_latents && !latents.includes(latent));
                  if (added.length) setLatents([...latents, ...added]);
                  event.currentTarget.value = "";
                }} />
              {entry ? <p class="hints">{[...new Set([classes.dominant[label], ...entry.ranked.slice(0, 4)])].filter((latent) => latent >= 0 && !(latents.length === 1 && latents[0] === latent)).map((latent) => (
                <button type="button" key={latent} onClick={() => setLatents([latent])}>{latent}{latent === classes.dominant[label] ? " (dominant)" : ""}</button>
              ))}</p> : null}
            </div>
          )}
          {bench.binary ? null : (
            <div class="field" role="group" aria-labelledby="rows-label"><span id="rows-label">Rows of the classifier</span>
              <div class="switch">
                <button type="button" aria-pressed={own !== null} onClick={() => setRows([label])}>chosen</button>
                <button type="button" aria-pressed={own === null} disabled={masked} onClick={() => setRows(null)}>all</button>
              </div>
              {own ? (
                <>
                  <Picked values={own} named={(row) => classes.names[row]} remove={(row) => own.length > 1 && setRows(own.filter((each) => each !== row))} />
                  <select aria-label="Add a row" value="" onChange={(event) => {
                    const row = Number(event.currentTarget.value);
                    if (event.currentTarget.value !== "" && !own.includes(row)) setRows([...own, row]);
                    event.currentTarget.value = "";
                  }}>
                    <option value="">add a row…</option>
                    {classes.names.map((name, row) => (own.includes(row) ? null : <option value={row} key={row}>{name}</option>))}
                  </select>
                </>
              ) : null}
            </div>
          )}
          {masked ? null : (
            <div class="field strength">
              <label for="alpha">Strength α</label>
              <input id="alpha-number" type="number" min="0" step="any" aria-label="Strength as a number" value={alpha}
                onChange={(event) => {
                  const value = Number(event.currentTarget.value);
                  if (!(value >= 0) || !Number.isFinite(value)) return;
                  setTyped(value);
                  setShare(Math.min(1, Math.sqrt(value / end)));
                }} />
              <input id="alpha" type="range" min="0" max="1000" value={Math.round(1000 * share)} aria-valuetext={`α = ${short(alpha, 4)}`}
                onInput={(event) => {
                  setTyped(null);
                  setShare(Number(event.currentTarget.value) / 1000);
                }} />
              {sorted?.length ? (
                <p class="hints" aria-label="Strengths at which decisions for the class's images break">
                  {[0.5, 0.95].map((part) => {
                    const at = sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)];
                    // Just beyond: at the root itself two logits are equal.
                    const value = Number((at * 1.0001).toPrecision(6));
                    return (
                      <button type="button" key={part} disabled={!Number.isFinite(at)} onClick={() => {
                        setTyped(value);
                        setShare(Math.min(1, Math.sqrt(value / end)));
                      }}>{Math.round(100 * part)} % of images: {short(at)}</button>
                    );
                  })}
                </p>
              ) : null}
            </div>
          )}
        </form>
        <div class="results">
          {!possible ? (
            <p class="error">The page cannot follow all rows for {words}: choose rows, or suppress one of the latents {bench.steps.slice(0, 12).join(", ")}{bench.steps.length > 12 ? "…" : ""} up to α = {short(limit)}. The Python below computes any of them.</p>
          ) : !before || !after ? <p role="status">Loading what was recorded…</p> : (
            <>
              <dl class="facts big" id="outcome">
                <div><dt>{classes.names[label]}</dt><dd><span data-value={accuracy(after, label)} id="class-accuracy">{percent(accuracy(after, label))}</span><small>before {percent(accuracy(before, label))}</small></dd></div>
                <div><dt>all images</dt><dd><span data-value={after.overall} id="overall-accuracy">{percent(after.overall)}</span><small>before {percent(before.overall)}</small></dd></div>
                <div><dt>other classes, mean</dt><dd>{points(othersChange(before, after, [label]))}<small>points</small></dd></div>
                <div><dt>decisions changed</dt><dd>{predicted!.reduce((sum, each, image) => sum + Number(each !== data!.base[image]), 0)}<small>of {predicted!.length}</small></dd></div>
              </dl>
              {kept ? (
                <div class="kept">
                  <p><b>Kept:</b> {kept.words}</p>
                  <dl class="facts">
                    <div><dt>{classes.names[label]}</dt><dd>{percent(accuracy(kept.counts, label))}</dd></div>
                    <div><dt>all images</dt><dd>{percent(kept.counts.overall)}</dd></div>
                    <div><dt>other classes, mean</dt><dd>{points(othersChange(before, kept.counts, [label]))}</dd></div>
                  </dl>
                </div>
              ) : null}
              <p><button type="button" onClick={() => setKept({ words, counts: after })}>Keep to compare</button> {kept ? <button type="button" onClick={() => setKept(null)}>Forget</button> : null}</p>
              {data && rest && reach && !masked && images.length ? (
                <section aria-labelledby="spread">
                  <h2 id="spread">Logits of {classes.names[label]} and its rivals</h2>
                  <Spread data={data} rest={rest} reach={reach} operator={operator} label={label} images={images} limit={end} alpha={alpha} crits={crits} />
                  <p class="note">Ticks at the bottom: α_crit of each of the class's images, where its decision breaks{sorted ? `; ${count(Array.from(sorted).filter((each) => each <= alpha).length, "image")} of ${sorted.length} at or below this strength` : ""}. The upright line is the chosen strength.</p>
                </section>
              ) : null}
              <section aria-labelledby="confusion">
                <h2 id="confusion">Where images go</h2>
                <Matrix labels={data!.recorded.labels} predicted={predicted!} base={data!.base} shown={shown} />
                <p class="note">Images by label and prediction; small: the change by the edit. {shown.length < classes.names.length ? "The classes that the edit concerns most." : ""}</p>
              </section>
              <section aria-labelledby="accuracies">
                <h2 id="accuracies">Accuracy a class</h2>
                <table>
                  <thead><tr><th scope="col">class</th><th scope="col" class="number">images</th><th scope="col" class="number">before</th><th scope="col" class="number">after</th><th scope="col" class="number">change</th>{kept ? <th scope="col" class="number">kept</th> : null}</tr></thead>
                  <tbody>
                    {shown.map((row) => (
                      <tr key={row}>
                        <th scope="row"><a href={toClass(row)}>{classes.names[row]}</a></th>
                        <td class="number">{before.total[row]}</td><td class="number">{percent(accuracy(before, row))}</td><td class="number" data-class={row} data-value={accuracy(after, row)}>{percent(accuracy(after, row))}</td>
                        <td class="number">{points(accuracy(after, row) - accuracy(before, row))}</td>{kept ? <td class="number">{percent(accuracy(kept.counts, row))}</td> : null}
                      </tr>
                    ))}
                  </tbody>
                </table>
              </section>
            </>
          )}
          <section aria-labelledby="make">
            <h2 id="make">Make this edit</h2>
            <p>{words}{masked ? null : <> · {latents.map((latent) => <a key={latent} href={toLatent(latent)}>latent {latent} </a>)}</>}</p>
            <Copied label="Python" text={script(described, about.study)} />
            {"line" in line ? <Copied label="command" text={line.line} /> : <p class="note">{line.missing}</p>}
            {masked || !atoms ? null : (
              <p><button type="button" onClick={download} id="download">Download the recipe</button> <span class="note">a safetensors file with the atoms; its metadata is what <code>salve.Edit.from_json</code> reads.</span></p>
            )}
          </section>
        </div>
      </div>
    </>
  );
}
