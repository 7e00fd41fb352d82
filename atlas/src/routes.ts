/** Which page is shown: the part of the address behind `#`. */
import { signal } from "@preact/signals";
import { host } from "./host";

export type Route = { page: string; id: number; query: URLSearchParams };

export function parsed(hash: string): Route {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [page = "", id = ""] = path.split("/");
  return { page: page || "overview", id: /^\d+$/.test(id) ? Number(id) : -1, query: new URLSearchParams(query) };
}

export const route = signal<Route>(parsed(""));

export function follow(hash: string): void {
  route.value = parsed(hash);
  host.scroller.scrollTo(0, 0);
  // Who reads by ear or moves by keys goes on at the top of the new page.
  requestAnimationFrame(() => host.place.querySelector<HTMLElement>("main h1")?.focus({ preventScroll: true }));
}

export const toClass = (label: number) => `#/class/${label}`;
export const toLatent = (latent: number) => `#/latent/${latent}`;
export function toBench(latents: number[], rows: number[] | null, label: number): string {
  return `#/bench?latents=${latents.join(",")}&rows=${rows ? rows.join(",") : "all"}&class=${label}`;
}
