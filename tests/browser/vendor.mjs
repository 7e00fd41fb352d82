// Copies what the documentation's pages load from the pinned packages, with their licences, so that
// no page asks another host for anything. `make docs-assets` runs it; the argument is the folder.
import { cpSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const packages = join(dirname(fileURLToPath(import.meta.url)), "node_modules");
const target = process.argv[2];

/** Files by where they go; the greek letters are those of α, λ and R²'s neighbours in the text. */
const files = {
  "katex/LICENSE": "katex/LICENSE",
  "katex/katex.min.css": "katex/dist/katex.min.css",
  "katex/katex.min.js": "katex/dist/katex.min.js",
  "inter/LICENSE": "@fontsource-variable/inter/LICENSE",
  "inter/inter-latin.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
  "inter/inter-greek.woff2": "@fontsource-variable/inter/files/inter-greek-wght-normal.woff2",
  "inconsolata/LICENSE": "@fontsource-variable/inconsolata/LICENSE",
  "inconsolata/inconsolata-latin.woff2":
    "@fontsource-variable/inconsolata/files/inconsolata-latin-wght-normal.woff2",
  "iframe-worker/LICENSE": "iframe-worker/LICENSE",
  "iframe-worker/shim.js": "iframe-worker/shim/index.js",
};
for (const font of readdirSync(join(packages, "katex/dist/fonts")))
  if (font.endsWith(".woff2")) files[`katex/fonts/${font}`] = `katex/dist/fonts/${font}`;

rmSync(target, { recursive: true, force: true });
for (const [to, from] of Object.entries(files)) {
  mkdirSync(dirname(join(target, to)), { recursive: true });
  cpSync(join(packages, from), join(target, to));
}
