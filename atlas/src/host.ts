/** What the page stands in: a document that was opened from a folder, or an output of a notebook. */
export type Host = {
  /** What the page is drawn into. */
  place: HTMLElement;
  /** What scrolls when it is too long. */
  scroller: { scrollTo(x: number, y: number): void };
  /** Fetches one piece of the data, as it is in JSON. */
  load: (key: string) => Promise<unknown>;
  /** Goes to a page of the atlas by its address, the part behind `#`. */
  go: (hash: string) => void;
  /** Takes the name of what is shown. */
  titled?: (title: string) => void;
  /** Takes the recipe of the edit on the bench, null where it has none. */
  edited?: (recipe: Uint8Array | null) => void;
};

export let host: Host;

export function standIn(given: Host): Host {
  return (host = given);
}
