import { signal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { ofLatent, the } from "./data";
import { type Column, List } from "./list";
import { toClass, toLatent } from "./routes";
import { count, percent, short } from "./text";

const classSearch = signal("");
const latentSearch = signal("");

function Search({ value, label, found }: { value: typeof classSearch; label: string; found: string }) {
  return (
    <div class="search">
      <input type="search" value={value.value} placeholder={label} aria-label={label}
        onInput={(event) => (value.value = event.currentTarget.value)} />
      <span role="status">{found}</span>
    </div>
  );
}

/** The class that a latent is most specific to. */
export function ClassOf({ latent }: { latent: number }) {
  const { label, name } = ofLatent(latent);
  return label < 0 ? <>{name}</> : <a href={toClass(label)}>{name}</a>;
}

export function ClassList() {
  const { classes } = the();
  const wanted = classSearch.value.trim().toLowerCase();
  const rows = useMemo(
    () => classes.names.map((_, label) => label).filter((label) =>
      classes.counts[label] > 0 && (!wanted || classes.names[label].toLowerCase().includes(wanted) || String(label) === wanted)),
    [wanted],
  );
  const columns: Column[] = [
    { name: "name", title: "Class", wide: true, key: (row) => classes.names[row].toLowerCase(), cell: (row) => classes.names[row] },
    { name: "label", title: "Row", numeric: true, key: (row) => row, cell: (row) => row },
    { name: "images", title: "Images", numeric: true, key: (row) => classes.counts[row], cell: (row) => classes.counts[row] },
    { name: "accuracy", title: "Accuracy", numeric: true, key: (row) => classes.accuracy[row], cell: (row) => percent(classes.accuracy[row]) },
    { name: "dominant", title: "Dominant latent", numeric: true, key: (row) => classes.dominant[row], cell: (row) => <a href={toLatent(classes.dominant[row])}>{classes.dominant[row]}</a> },
    { name: "mean", title: "Its mean", numeric: true, key: (row) => classes.means[row], cell: (row) => short(classes.means[row]) },
  ];
  return (
    <>
      <Search value={classSearch} label="Find a class by name or row" found={count(rows.length, "class", "classes")} />
      <List label="Classes" rows={rows} columns={columns} href={toClass} sorted={{ column: "label", down: false }} />
    </>
  );
}

export function LatentList() {
  const { latents, about, evidence } = the();
  const wanted = latentSearch.value.trim().toLowerCase();
  const rows = useMemo(
    () => Array.from({ length: about.n_latents }, (_, latent) => latent).filter((latent) =>
      !wanted || String(latent) === wanted || ofLatent(latent).name.toLowerCase().includes(wanted)),
    [wanted],
  );
  const columns: Column[] = [
    { name: "latent", title: "Latent", numeric: true, key: (row) => row, cell: (row) => row },
    { name: "class", title: "Most specific to", wide: true, key: (row) => ofLatent(row).name.toLowerCase(), cell: (row) => <ClassOf latent={row} /> },
    { name: "score", title: "Score", numeric: true, key: (row) => latents.score[row], cell: (row) => short(latents.score[row]) },
    { name: "density", title: "Density", numeric: true, key: (row) => latents.density[row], cell: (row) => short(latents.density[row]) },
    { name: "largest", title: "Largest code", numeric: true, key: (row) => Math.abs(latents.largest[row]), cell: (row) => short(latents.largest[row]) },
    ...(evidence ? [
      { name: "auc", title: "AUC", numeric: true, key: (row: number) => evidence.auc[row] || 0, cell: (row: number) => short(evidence.auc[row]) },
      { name: "p", title: "p of all", numeric: true, key: (row: number) => -evidence.auc_p_all[row], cell: (row: number) => short(evidence.auc_p_all[row], 2) },
    ] : []),
  ];
  return (
    <>
      <Search value={latentSearch} label="Find a latent by number or class" found={count(rows.length, "latent")} />
      <List label="Latents" rows={rows} columns={columns} href={toLatent} sorted={{ column: "score", down: true }} />
    </>
  );
}
