/** A real browser with the network off, on an atlas that lies on disk. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

export async function opened(folder, options = {}) {
  const browser = await chromium.launch({
    executablePath: process.env.SALVE_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-background-networking"],
  });
  const context = await browser.newContext({
    offline: true, viewport: { width: 1280, height: 860 }, acceptDownloads: true, ...options,
  });
  const page = await context.newPage();
  const faults = [];
  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("dialog", (dialog) => {
    faults.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  const address = pathToFileURL(`${folder}/index.html`).href;
  const show = async (route) => {
    await page.goto(`${address}#/${route}`);
    await page.waitForSelector("main h1");
  };
  return { browser, page, faults, requests, address, show };
}

/** Waits until the page has changed nothing for a while and says nowhere that it is at work. */
export const settled = (page) => page.evaluate(() => new Promise((resolve) => {
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (document.querySelector('[aria-busy="true"], p[role="status"]')) return wait();
      changes.disconnect();
      return resolve();
    }, 60);
  };
  const changes = new MutationObserver(wait);
  changes.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  wait();
}));

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What axe finds on the page as it is. */
export async function findings(page) {
  await page.evaluate(axe); // from outside: the page's own policy would not let it in
  const result = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"], preload: false }));
  return result.violations.map(({ id, impact, nodes }) => ({ id, impact, where: nodes.slice(0, 3).map((node) => node.html.slice(0, 200)) }));
}
