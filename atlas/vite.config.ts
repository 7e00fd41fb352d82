import { readFileSync, existsSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "vite";
import { defineConfig } from "vite";

/** Writes the licences of the packages that ended up in the bundle, sorted by name. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle(_, bundle) {
      const packages = new Set<string>();
      for (const chunk of Object.values(bundle)) {
        for (const id of chunk.type === "chunk" ? Object.keys(chunk.modules) : []) {
          const path = id.split("node_modules/").pop() ?? "";
          const found = id.includes("node_modules/") && /^(@[^/]+\/[^/]+|[^/]+)/.exec(path);
          if (found) packages.add(found[0]);
        }
      }
      packages.add("uplot"); // its style sheet, too
      const parts = [...packages].sort().map((name) => {
        const folder = join("node_modules", name);
        const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
        const file = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map((each) => join(folder, each)).find(existsSync);
        if (!file) throw new Error(`${name} has no licence file`);
        return `${name} ${about.version} (${about.license})\n\n${readFileSync(file, "utf8").trim()}\n`;
      });
      const line = "=".repeat(80);
      this.emitFile({
        type: "asset",
        fileName: "LICENSES.txt",
        source: `atlas.js and atlas.css contain these packages.\n\n${parts.join(`\n${line}\n\n`)}`,
      });
    },
  };
}

export default defineConfig({
  plugins: [licences()],
  // Module scripts do not load from file://: one classic script, one style sheet.
  build: {
    target: "es2022",
    outDir: process.env.ATLAS_OUT ?? "../salve_plugin/report/page",
    emptyOutDir: true,
    reportCompressedSize: false,
    lib: {
      entry: "src/main.tsx",
      formats: ["iife"],
      name: "atlasPage",
      fileName: () => "atlas.js",
      cssFileName: "atlas",
    },
  },
  define: { "process.env.NODE_ENV": '"production"' },
});
