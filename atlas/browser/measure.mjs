/** Prints, as JSON, how long an atlas takes to be usable and how long interactions take. */
import { opened } from "./page.mjs";

const [, , folder, latent, label] = process.argv;
const { browser, page, faults, address } = await opened(folder);
const times = {};

// Watched from within: what the driver needs to look is not the page's time.
const watch = (selector) => `new Promise((resolve) => {
  const look = () => {
    if (!document.querySelector(${JSON.stringify(selector)})) return false;
    watcher.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
    return true;
  };
  const watcher = new MutationObserver(look);
  watcher.observe(document, { childList: true, subtree: true });
  look();
})`;
await page.addInitScript(`globalThis.firstList = ${watch(".list .body .row a")}`);

const firsts = [];
for (let turn = 0; turn < 5; turn++) {
  await page.goto("about:blank");
  await page.goto(address);
  firsts.push(await page.evaluate("firstList"));
}
times["first page, until its list is painted"] = firsts.sort((a, b) => a - b)[2];

/** Milliseconds from an event until what follows from it is painted. */
async function interaction(name, act, argument) {
  const repeated = [];
  for (let turn = 0; turn < 5; turn++) {
    // As one expression: the page's policy lets nothing be evaluated from within.
    repeated.push(await page.evaluate(`(async () => {
      const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
      await painted();
      const start = performance.now();
      (${act})(${JSON.stringify(argument ?? null)}, ${turn});
      await painted();
      return performance.now() - start;
    })()`));
  }
  times[name] = repeated.sort((a, b) => a - b)[2];
}

const typed = (selector, turn) => {
  const field = document.querySelector(selector);
  field.value = String(turn + 1);
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
const dragged = (selector, turn) => {
  const slider = document.querySelector(selector);
  slider.value = String(200 + 60 * turn);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
};
await interaction("search among classes", typed, ".search input");
await page.goto(`${address}#/latents`);
await page.waitForSelector(".list .body .row a");
await interaction("search among latents", typed, ".search input");
await page.fill(".search input", "");
await interaction("sort latents", (value, turn) => document.querySelectorAll(".list .head button")[turn % 5].click());
await interaction("scroll the list of latents", (value, turn) => { document.querySelector(".list .body").scrollTop = 90000 * (turn + 1); });

/**
 * Milliseconds from following a link, in a page that was opened anew, until what it leads to is painted; or until what
 * follows from an act there is.
 */
async function cold(name, route, selector, rest, act, following) {
  const repeated = [];
  for (let turn = 0; turn < 3; turn++) {
    await page.goto("about:blank");
    await page.goto(address);
    await page.evaluate("firstList");
    await page.waitForTimeout(rest);
    repeated.push(await page.evaluate(`(async () => {
      const start = performance.now();
      location.hash = ${JSON.stringify(`#/${route}`)};
      const there = await ${watch(selector)};
      if (!${Boolean(act)}) return there - start;
      (${act})("#alpha", 0);
      return (await ${watch(following)}) - start;
    })()`));
  }
  times[name] = repeated.sort((a, b) => a - b)[1];
}
const bench = `bench?latents=${latent}&rows=${label}&class=${label}`;
for (const [when, rest] of [["at once", 0], ["after two seconds", 2000]]) {
  await cold(`a latent's page, ${when}`, `latent/${latent}`, ".gallery figure img", rest);
  await cold(`a class's page, ${when}`, `class/${label}`, "#ranked", rest);
  await cold(`edit bench, ${when}`, bench, "#outcome", rest);
  await cold(`edit bench's strength, ${when}`, bench, "#alpha:not([disabled])", rest);
  await cold(`the same moved and followed, ${when}`, bench, "#alpha:not([disabled])", rest, dragged, "#outcome[aria-busy=false]");
}
await page.waitForSelector(".chart canvas");
await interaction("drag the strength, one row", dragged, "#alpha");
await page.goto(`${address}#/bench?latents=${latent}&rows=${label},1,2&class=${label}`);
await page.waitForSelector("#outcome");
await interaction("drag the strength, three rows", dragged, "#alpha");
await page.goto(`${address}#/bench?latents=${latent}&rows=all&class=${label}`);
await page.waitForSelector("#outcome, .results .error");
times["all rows"] = (await page.$("#outcome")) ? "followed" : "not followed";
if (times["all rows"] === "followed") await interaction("drag the strength, all rows", dragged, "#alpha");
times.faults = faults;
console.log(JSON.stringify(times));
await browser.close();
