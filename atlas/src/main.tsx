import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./style.css";
import { ArtifactPage } from "./artifact";
import { Bench } from "./bench";
import { type Index, index, load, type OfArtifact } from "./data";
import { ClassPage, LatentPage } from "./details";
import { ClassList, LatentList } from "./lists";
import { inFolder } from "./folder";
import { host, standIn } from "./host";
import { whenIdle } from "./later";
import { inNotebook, type Widget } from "./notebook";
import { Overview } from "./overview";
import { loaded, needed } from "./recorded";
import { route } from "./routes";

/** Given where the script is run by a notebook. */
declare const atlasWidget: Widget | undefined;

const PLACES = [
  ["overview", "Overview", "#/"], ["classes", "Classes", "#/classes"],
  ["latents", "Latents", "#/latents"], ["bench", "Edit bench", "#/bench"],
] as const;

function Page() {
  const { page, id, query } = route.value;
  switch (page) {
    case "overview": return <Overview />;
    case "classes": return <><h1 tabIndex={-1}>Classes</h1><ClassList /></>;
    case "latents": return <><h1 tabIndex={-1}>Latents</h1><LatentList /></>;
    case "class": return <ClassPage label={id} key={id} />;
    case "latent": return <LatentPage latent={id} key={id} />;
    case "bench": return <Bench key={query.toString()} />;
    default: return <><h1 tabIndex={-1}>No such page</h1><p><a href="#/">Back to the overview</a></p></>;
  }
}

function App() {
  const { page } = route.value;
  const section = page === "class" ? "classes" : page === "latent" ? "latents" : page;
  const whole = index.value;
  if (!whole) return <p class="starting">Opening the atlas…</p>;
  const { producer, dictionary } = whole.about;
  return (
    <>
      <a class="skip" href="#content" onClick={(event) => {
        event.preventDefault();
        host.place.querySelector<HTMLElement>("main h1")?.focus();
      }}>Skip to the content</a>
      <header class="top">
        <a class="mark" href="#/">{whole.title}</a>
        <nav aria-label="Pages">
          {PLACES.map(([name, title, href]) => <a key={name} href={href} aria-current={name === section ? "page" : undefined}>{title}</a>)}
        </nav>
      </header>
      <main id="content"><Page /></main>
      <footer>Dictionary {dictionary.slice(0, 12)} · {producer.name} {producer.version}</footer>
    </>
  );
}

function Alone({ title, artifact, about }: OfArtifact) {
  return (
    <>
      <header class="top"><span class="mark">Edit artifact</span></header>
      <main id="content"><ArtifactPage title={title} artifact={artifact} digest={about.digest} /></main>
      <footer>Artifact {about.digest.slice(0, 12)} · {about.producer.name} {about.producer.version}</footer>
    </>
  );
}

/**
 * Loads what the bench needs, a piece whenever there is nothing else to do: in pieces, so that no click waits. When all
 * are there they are put together, so that neither does whoever opens the bench.
 */
function ahead([key, ...others]: string[]) {
  const next = () => (others.length ? ahead(others) : whenIdle(() => void loaded()));
  whenIdle(() => load(key).then(next, () => undefined));
}

const { place } = standIn(typeof atlasWidget === "undefined" ? inFolder() : inNotebook(atlasWidget, () => render(null, place)));
place.replaceChildren();
render(<App />, place);
load<Index | OfArtifact>("index").then(
  (whole) => {
    host.titled?.(`${whole.title} · Atlas`);
    if ("artifact" in whole) {
      render(<Alone {...whole} />, place);
      return;
    }
    index.value = whole;
    // Whoever goes on at once is not kept waiting by what may never be needed.
    if (whole.bench) setTimeout(() => ahead(needed()), 500);
  },
  (error: Error) => render(<p class="starting error">{error.message}</p>, place),
);
