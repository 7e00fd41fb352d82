// Opens the pages of the built documentation from disk, in Chromium, with the network off, and prints
// what it saw as JSON. Arguments: chromium, folder of the site, "light" or "dark", and, to look at
// them oneself, a folder for screenshots.
import { mkdirSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [executablePath, site, colorScheme, pictures] = process.argv.slice(2);

/** Runs in the page. */
function measured() {
  const article = document.querySelector("article");
  const wide = (element) => element.scrollWidth > element.clientWidth + 1;
  const blocks = [document.documentElement, ...article.querySelectorAll("pre, pre > code")];
  const images = [...article.querySelectorAll("img, svg[role=img]")];
  const area = (image) => {
    const { width, height } = image.naturalWidth === undefined ? image.getBBox() : image;
    return width * height;
  };
  const prose = article.cloneNode(true);
  for (const part of prose.querySelectorAll("pre, code, .katex, script, style")) part.remove();
  const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\d+/g);
  return {
    formulas: article.querySelectorAll(".arithmatex").length,
    rendered: article.querySelectorAll(".arithmatex .katex-html").length,
    raw: prose.textContent.match(/\\[(\[].*|\$\$.*/g) ?? [],
    too_wide: blocks.filter(wide).map((block) => block.textContent.slice(0, 200)),
    not_shown: images.filter((image) => !area(image)).map((image) => image.outerHTML.slice(0, 200)),
    without_text: images
      .filter((image) => !image.alt && !image.getAttribute("aria-labelledby"))
      .map((image) => image.outerHTML.slice(0, 200)),
    fonts: [...document.fonts].filter((font) => font.status === "loaded").map((font) => font.family),
    brightness: (Number(red) + Number(green) + Number(blue)) / 765,
  };
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const context = await browser.newContext({
  colorScheme,
  offline: true,
  viewport: { width: 1280, height: 900 },
});
const pages = readdirSync(site, { recursive: true })
  .filter((name) => name.endsWith(".html") && !name.startsWith("assets") && name !== "404.html")
  .sort();
const seen = [];
for (const name of pages) {
  const page = await context.newPage();
  const faults = [];
  page.on("request", (request) => {
    if (!/^(file|data|blob):/.test(request.url())) faults.push(`asks for ${request.url()}`);
  });
  page.on("requestfailed", (request) => faults.push(`cannot load ${request.url()}`));
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(pathToFileURL(resolve(site, name)).href);
  await page.evaluate(() => document.fonts.ready);
  const state = await page.evaluate(measured);
  if (pictures) {
    mkdirSync(pictures, { recursive: true });
    const path = join(pictures, `${name.replaceAll("/", "-")}-${colorScheme}.png`);
    await page.screenshot({ path });
  }
  if (name === "index.html") {
    await page.fill(".md-search__input", "dictionary");
    await page.waitForSelector(".md-search-result__item", { timeout: 20000 });
    state.results = await page.locator(".md-search-result__item").count();
  }
  seen.push({ page: name, faults, ...state });
  await page.close();
}
await browser.close();
console.log(JSON.stringify(seen));
