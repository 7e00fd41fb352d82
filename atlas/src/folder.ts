/** A page from `file://` may load scripts and nothing else: each piece of the data is one that provides it. */
import type { Host } from "./host";
import { follow, parsed, route } from "./routes";

const waiting = new Map<string, (value: unknown) => void>();

function provide(key: string, value: unknown): void {
  waiting.get(key)?.(value);
  waiting.delete(key);
}

function load(key: string): Promise<unknown> {
  return new Promise((resolve, reject) => {
    waiting.set(key, resolve);
    const script = document.createElement("script");
    script.src = `data/${key}.js`;
    script.onerror = () => reject(new Error(`data/${key}.js is missing: is the folder complete?`));
    script.onload = () => script.remove();
    document.head.append(script);
  });
}

export function inFolder(): Host {
  // Data files call it: they are classic scripts, and know no imports.
  Object.assign(globalThis, { atlas: { provide } });
  addEventListener("hashchange", () => follow(location.hash));
  route.value = parsed(location.hash);
  return {
    place: document.getElementById("app")!, scroller: window, load,
    go: (hash) => (location.hash = hash), titled: (title) => (document.title = title),
  };
}
