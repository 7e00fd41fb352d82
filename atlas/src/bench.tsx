/** The edit bench: an edit is put together and its effect on recorded images follows at once. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { Copied, Picked } from "./controls";
import { atom, classEntry, fold, load, type StepData, the } from "./data";
import { downloaded, recipeOf } from "./download";
import {
  type Counts, counted, criticalAmounts, criticalStrengths, factors, Fall, gated, limitOf, type Operator, predictions,
  quantile, reachOf, restOf, type Rows, StepFunction,
} from "./edits";
import { host } from "./host";
import { useLater, usePainted } from "./later";
import { Matrix } from "./matrix";
import { type Known, known, loaded } from "./recorded";
import { route, toClass, toLatent } from "./routes";
import { shareOf, Spread, strengthAt } from "./spread";
import { count, percent, points, short } from "./text";
import { command, type Described, script } from "./words";

const SHOWN = 10;

const numbers = (text: string) => [...new Set(text.split(/[^\d]+/).filter(Boolean).map(Number))];

/** Where the slider ends: well beyond the strengths at which the class's decisions break. */
function sliderEnd(crits: Float64Array | null, limit: number): number {
  const breaking = (crits ?? new Float64Array(0)).filter((each) => each > 0 && each < Infinity).sort();
  return breaking.length ? Math.min(limit, Number((2 * quantile(breaking, 0.98)).toPrecision(3))) : limit;
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
  const [rows, setRows] = useState<Rows>(() => {
    if (bench?.binary || givenRows === "all") return null;
    const given = numbers(givenRows ?? "").filter((row) => row < classes.names.length);
    return given.length ? given : [start];
  });
  // The strength itself, not the slider's place: where the slider ends follows from what arrives later.
  const [alpha, setAlpha] = useState(0);
  // What is being typed, until it is entered: a page drawn again meanwhile must not wipe it out.
  const [draft, setDraft] = useState<string | null>(null);
  const [kept, setKept] = useState<Kept | null>(null);
  const missing = () => Promise.reject(new Error(bench_missing));
  const { value: basics, error } = useLater<Known>(() => (bench ? known() : missing()), []);
  const { value: arrived } = useLater(() => (bench ? loaded() : missing()), []);
  // How the unedited model does is painted before anything is computed from recorded inputs.
  const whole = usePainted(basics !== null);
  const data = whole ? arrived : null;
  const settled = usePainted(data !== null);
  const { value: atoms } = useLater(() => Promise.all(latents.map(atom)), [latents.join()]);
  const { value: entry } = useLater(() => classEntry(label), [label]);
  const ahead = !!bench && rows === null && !bench.live && operator === "suppress" && latents.length === 1 && bench.steps.includes(latents[0]);
  const { value: stepData } = useLater(() => (ahead ? load<StepData>(`steps/${latents[0]}`) : Promise.resolve(null)), [ahead, latents[0]]);
  const masked = operator === "mask";
  // Not all rows can be below all others.
  const own = masked && (!rows || rows.length === classes.names.length) ? [label] : rows;
  const folding = operator === "fold";
  const { value: folds } = useLater(() => (folding ? Promise.all(latents.map(fold)) : Promise.resolve(null)), [folding, latents.join()]);
  const rest = useMemo(() => (data ? restOf(data.head, data.recorded, own) : null), [data, own?.join(), own === null]);
  const reach = useMemo(() => (atoms ? reachOf(atoms) : null), [atoms]);
  const unfolded = folding && folds !== null && folds.some((each) => each === null);
  const fall = useMemo(() => {
    if (!data || !atoms || !folds || unfolded || folds.length !== atoms.length) return null;
    return new Fall(data.head, data.recorded, folds.map((each, at) => ({ ...each!, write: atoms[at] })));
  }, [data, atoms, folds]);
  const limit = folding ? 1 : stepData ? stepData.limit : reach ? limitOf(reach) : 1;
  const steps = useMemo(() => (stepData && basics ? new StepFunction(basics.base, stepData) : null), [stepData, basics]);
  const images = useMemo(() => (bench ? Array.from(bench.labels.keys()).filter((image) => bench.labels[image] === label) : []), [label]);
  const ready = folding ? fall : reach;
  const moved = useMemo(() => {
    if (!data || !ready) return null;
    if (fall && folding) return (strength: number) => fall.logits(data.recorded, strength);
    return (strength: number) => gated(data.head, data.recorded, factors(reach!, strength, operator));
  }, [data, ready, operator]);
  const crits = useMemo(() => {
    if (!data || !rest || !ready || masked) return null;
    if (rows === null && !bench!.live) {
      return steps ? Float64Array.from(images, (image) => (basics!.base[image] === label ? steps.firstStep(image) : 0)) : null;
    }
    if (folding) return criticalAmounts(data.head, data.recorded, rest, fall!, label, images);
    return criticalStrengths(data.head, data.recorded, rest, reach!, operator, label, images);
  }, [data, rest, ready, operator, label, images, steps]);
  const end = useMemo(() => (folding ? limit : sliderEnd(crits, limit)), [crits, limit, folding]);
  const possible = !!bench && !unfolded && (masked || rows !== null || bench.live || (ahead && alpha <= limit));
  const predicted = useMemo(() => {
    if (!basics || !possible) return null;
    if (alpha === 0 && !masked) return basics.base;
    if (!data || !rest) return null;
    if (masked) return predictions(data.head, rest, null);
    if (rows === null && !bench!.live) return steps?.at(alpha) ?? null;
    return moved ? predictions(data.head, rest, moved(alpha)) : null;
  }, [basics, data, rest, moved, alpha, possible, steps, masked]);
  const before = useMemo(() => (basics ? counted(bench!.labels, basics.base, classes.names.length) : null), [basics]);
  const after = useMemo(() => (basics && predicted ? counted(bench!.labels, predicted, classes.names.length) : null), [basics, predicted]);
  const chosenClass = (next: number) => {
    setLabel(next);
    if (rows?.length === 1 && rows[0] === label) setRows([next]);
    if (latents.length === 1 && latents[0] === classes.dominant[label]) setLatents([Math.max(0, classes.dominant[next])]);
  };
  const described: Described = { operator, latents, rows: own, alpha };
  const amount = folding ? `t = ${short(alpha, 4)}` : `α = ${short(alpha, 4)}`;
  const words = masked
    ? `mask ${own!.map((row) => classes.names[row]).join(", ")}`
    : `${operator} latent${latents.length > 1 ? "s" : ""} ${latents.join(", ")} on ${rows ? `row${rows.length > 1 ? "s" : ""} ${rows.map((row) => classes.names[row]).join(", ")}` : "all rows"}, ${amount}`;
  const shown = useMemo(() => {
    if (!before || !after) return [];
    const change = classes.names.map((_, row) => (before.total[row] ? Math.abs(after.right[row] - before.right[row]) / before.total[row] : -1));
    const hits = new Int32Array(classes.names.length);
    for (const image of images) hits[predicted![image]]++;
    const order = classes.names.map((_, row) => row).filter((row) => row !== label && (before.total[row] || hits[row]))
      .sort((a, b) => hits[b] - hits[a] || change[b] - change[a] || a - b);
    return [label, ...order.slice(0, SHOWN - 1)].sort((a, b) => a - b);
  }, [before, after, label]);
  const download = () => downloaded(described, { atoms, folds });
  const makeable = !!(masked ? bench?.masks && own!.length === 1 : atoms && (!folding || fall));
  const line = command(described, about.study, classes.named || about.study ? classes.names[label] : null, makeable);
  const state = JSON.stringify([described, makeable]);
  useEffect(() => {
    const { edited } = host;
    if (!edited || !bench) return undefined;
    if (!makeable) {
      edited(null);
      return undefined;
    }
    // While the strength is dragged, not each that it goes through.
    let current = true;
    const timer = setTimeout(() => recipeOf(described, { atoms, folds }).then((file) => current && edited(file)), 100);
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [state, atoms, folds]);
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
              {classes.names.map((name, each) => (classes.counts[each] && (settled || each === label) ? <option value={each} key={each}>{name}</option> : null))}
            </select>
          </label>
          <label class="field"><span>Operator</span>
            <select value={operator} onChange={(event) => {
              const chosen = event.currentTarget.value as Operator;
              // An amount is no strength.
              if ((chosen === "fold") !== folding) setAlpha(0);
              setOperator(chosen);
            }}>
              <option value="suppress">suppress a latent</option>
              <option value="enhance">enhance a latent</option>
              {bench.folded.length ? <option value="fold">fold a latent out</option> : null}
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
                    {settled ? classes.names.map((name, row) => (own.includes(row) ? null : <option value={row} key={row}>{name}</option>)) : null}
                  </select>
                </>
              ) : null}
            </div>
          )}
          {masked ? null : (
            <div class="field strength">
              <label for="alpha">{folding ? "Amount t: 1 takes all of it out" : "Strength α"}</label>
              <input id="alpha-number" type="number" min="0" step="any" aria-label="Strength as a number" value={draft ?? alpha} disabled={!basics}
                onInput={(event) => setDraft(event.currentTarget.value)}
                onBlur={() => setDraft(null)}
                onChange={(event) => {
                  const value = Number(event.currentTarget.value);
                  setDraft(null);
                  if (!(value >= 0) || !Number.isFinite(value)) return;
                  setAlpha(value);
                }} />
              <input id="alpha" type="range" min="0" max="1000" value={Math.round(1000 * shareOf(alpha, end))} aria-valuetext={amount} disabled={!basics || !(folding || reach)}
                onInput={(event) => setAlpha(strengthAt(Number(event.currentTarget.value) / 1000, end))} />
              {sorted?.length ? (
                <p class="hints" aria-label="Strengths at which decisions for the class's images break">
                  {[0.5, 0.95].map((part) => {
                    const at = sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)];
                    // Just beyond: at the root itself two logits are equal.
                    const value = Number((at * 1.0001).toPrecision(6));
                    return (
                      <button type="button" key={part} disabled={!Number.isFinite(at)} onClick={() => setAlpha(value)}>{Math.round(100 * part)} % of images: {short(at)}</button>
                    );
                  })}
                </p>
              ) : null}
            </div>
          )}
        </form>
        <div class="results">
          {!possible ? (
            unfolded ? <p class="error">What reads {folds!.flatMap((each, at) => (each ? [] : `latent ${latents[at]}`)).join(", ")} off the activations was not computed ahead. The Python below computes it.</p> :
            <p class="error">The page cannot follow all rows for {words}: choose rows, or suppress one of the latents {bench.steps.slice(0, 12).join(", ")}{bench.steps.length > 12 ? "…" : ""} up to α = {short(limit)}. The Python below computes any of them.</p>
          ) : !before || !after ? <p role="status">Loading what was recorded…</p> : (
            <>
              <dl class="facts big" id="outcome" aria-busy={!data}>
                <div><dt>{classes.names[label]}</dt><dd><span data-value={accuracy(after, label)} id="class-accuracy">{percent(accuracy(after, label))}</span><small>before {percent(accuracy(before, label))}</small></dd></div>
                <div><dt>all images</dt><dd><span data-value={after.overall} id="overall-accuracy">{percent(after.overall)}</span><small>before {percent(before.overall)}</small></dd></div>
                <div><dt>other classes, mean</dt><dd>{points(othersChange(before, after, [label]))}<small>points</small></dd></div>
                <div><dt>decisions changed</dt><dd>{predicted!.reduce((sum, each, image) => sum + Number(each !== basics!.base[image]), 0)}<small>of {predicted!.length}</small></dd></div>
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
              {data && rest && moved && !masked && images.length ? (
                <section aria-labelledby="spread">
                  <h2 id="spread">Logits of {classes.names[label]} and its rivals</h2>
                  <Spread data={data} rest={rest} moved={moved} strength={folding ? "amount t" : "strength α"} label={label} images={images} limit={end} alpha={alpha} crits={crits} />
                  <p class="note">{folding ? `A fold takes out ${folds!.map((each, at) => `latent ${latents[at]} to R² ${short(each!.foldability)}`).join(", ")} of its code, and puts its mean there. ` : ""}Ticks at the bottom: where the decision for each of the class's images breaks{sorted ? `; ${count(Array.from(sorted).filter((each) => each <= alpha).length, "image")} of ${sorted.length} at or below this strength` : ""}. The upright line is the chosen strength.</p>
                </section>
              ) : null}
              <section aria-labelledby="confusion">
                <h2 id="confusion">Where images go</h2>
                <Matrix labels={bench.labels} predicted={predicted!} base={basics!.base} shown={shown} />
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
            {!makeable ? null : (
              <p><button type="button" onClick={download} id="download">Download the recipe</button> <span class="note">a safetensors file, for <code>salve.Edit.from_recipe</code> and <code>salve edit --recipe</code>.</span></p>
            )}
          </section>
        </div>
      </div>
    </>
  );
}
