/** Walks through an atlas as people do; reads what to try from standard input, prints what it saw. */
import { readFileSync } from "node:fs";
import { findings, opened, settled } from "./page.mjs";

const [, , folder, downloads] = process.argv;
const asked = JSON.parse(readFileSync(0, "utf8"));
const seen = { edits: [], axe: {}, focus: [] };
const { browser, page, faults, requests, show } = await opened(folder, { colorScheme: asked.scheme ?? "light" });

const checked = async (name) => {
  seen.axe[name] = await findings(page);
};

/** What the bench says now. */
const outcome = () => page.evaluate(() => ({
  overall: Number(document.querySelector("#overall-accuracy")?.dataset.value),
  classes: Object.fromEntries(Array.from(document.querySelectorAll("td[data-class]"), (cell) => [cell.dataset.class, Number(cell.dataset.value)])),
  alpha: Number(document.querySelector("#alpha-number")?.value),
  texts: Array.from(document.querySelectorAll("pre"), (each) => each.textContent),
}));

for (const edit of asked.edits) {
  await show(`bench?latents=${edit.latents.join(",")}&rows=${edit.rows ? edit.rows.join(",") : "all"}&class=${edit.label}`);
  await page.waitForSelector("#alpha:not([disabled])");
  if (edit.operator !== "suppress") await page.selectOption("form select >> nth=1", edit.operator);
  if (edit.operator !== "mask") {
    await page.fill("#alpha-number", String(edit.strength));
    await page.press("#alpha-number", "Enter");
    await page.waitForFunction((strength) => Number(document.querySelector("#alpha-number").value) === strength, edit.strength);
  }
  await settled(page);
  const found = await outcome();
  if (edit.download) {
    const waiting = page.waitForEvent("download");
    await page.click("#download");
    const download = await waiting;
    found.file = `${downloads}/${download.suggestedFilename()}`;
    await download.saveAs(found.file);
  }
  seen.edits.push(found);
}

// Rows that are not there, and a mask of all: an edit that Python takes is shown.
await show("bench?rows=99999&latents=3&class=4");
await page.waitForSelector("#alpha:not([disabled])");
seen.unknown = (await outcome()).texts[0];
await show(`bench?rows=${Object.keys(seen.edits[0].classes).join(",")}&latents=3&class=4`);
await page.waitForSelector("#alpha:not([disabled])");
await page.selectOption("form select >> nth=1", "mask");
await settled(page);
seen.masked = (await outcome()).texts[0];

// The strength is dragged with the mouse, then moved with the keys.
const first = asked.edits[0];
await show(`bench?latents=${first.latents.join(",")}&rows=${first.rows.join(",")}&class=${first.label}`);
await page.waitForSelector("#alpha:not([disabled])");
await settled(page); // before that the slider has another end
await page.locator("#alpha").scrollIntoViewIfNeeded();
const box = await page.locator("#alpha").boundingBox();
await page.mouse.move(box.x + 8, box.y + box.height / 2);
await page.mouse.down();
seen.dragged = [];
for (const share of [0.2, 0.35, 0.5]) {
  await page.mouse.move(box.x + share * box.width, box.y + box.height / 2, { steps: 3 });
  await settled(page);
  seen.dragged.push(await outcome());
}
await page.mouse.up();
await page.focus("#alpha");
for (let press = 0; press < 20; press++) await page.keyboard.press("ArrowRight");
await settled(page);
seen.keyed = await outcome();

// Another latent has another slider, and what was set is still set: at once and when all has arrived.
await page.fill('input[aria-label="Add a latent by its number"]', String(first.latents[0] ? 0 : 1));
await page.keyboard.press("Enter");
seen.kept = [await outcome()];
await settled(page);
seen.kept.push(await outcome());

for (const route of ["", "classes", "latents", `class/${first.label}`, `latent/${first.latents[0]}`, `bench?latents=${first.latents[0]}&rows=${first.rows[0]}&class=${first.label}`]) {
  await show(route);
  await settled(page);
  await checked(route || "overview");
}

// What a crop shows: the part of the picture that its frame leaves to be seen.
await show(`latent/${first.latents[0]}`);
await page.getByLabel("Crop").check();
await page.waitForSelector(".part img");
seen.crops = await page.evaluate(() => Array.from(document.querySelectorAll(".gallery .frame"), (frame) => {
  const [seen, whole] = [frame, frame.querySelector("img")].map((each) => each.getBoundingClientRect());
  return [(seen.x - whole.x) / whole.width, (seen.y - whole.y) / whole.height, seen.width / whole.width, seen.height / whole.height];
}));

// By keys alone from the top of the overview to the list, down in it, and into a class.
await show("");
await page.reload();
await page.waitForSelector(".list .body .row");
for (let press = 0; press < 40; press++) {
  await page.keyboard.press("Tab");
  const focus = await page.evaluate(() => {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    return {
      words: (element.getAttribute("aria-label") ?? element.textContent ?? "").slice(0, 40), tag: element.tagName,
      visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0, place: element.dataset.place ?? null,
    };
  });
  seen.focus.push(focus);
  if (focus.place !== null) break;
}
for (let press = 0; press < 5; press++) {
  await page.keyboard.press("ArrowDown");
  await settled(page);
}
await page.keyboard.press("Enter");
await settled(page);
seen.arrived = await page.evaluate(() => ({ hash: location.hash, title: document.querySelector("main h1")?.textContent, focused: document.activeElement?.tagName }));
await page.keyboard.press("Tab");
seen.next = await page.evaluate(() => document.activeElement?.tagName);
await show("classes");
await page.waitForSelector(".list .body .row");
seen.names = await page.evaluate(() => Array.from(document.querySelectorAll('.list .body [role="row"] > :first-child'), (cell) => cell.textContent));
// A piece of the data is a script until it is read.
await page.waitForFunction(() => !document.querySelector('script[src^="data/"]'));
seen.scripts = await page.evaluate(() => Array.from(document.querySelectorAll("script, img[src='x']"), (each) => each.outerHTML.slice(0, 100)));
await page.fill(".search input", "script");
await settled(page);
seen.searched = await page.evaluate(() => document.querySelectorAll('.list .body [role="row"]').length);
await page.emulateMedia({ media: "print" });
seen.printed = await page.evaluate(() => getComputedStyle(document.querySelector(".top nav")).display);
await page.emulateMedia({ media: "screen" });
await show("latents");
const listed = async (event) => {
  await page.evaluate((name) => dispatchEvent(new Event(name)), event);
  return page.evaluate(() => document.querySelectorAll('.list .body [role="row"]').length);
};
seen.onPaper = await listed("beforeprint");
seen.onScreen = await listed("afterprint");
seen.requests = [...new Set(requests)].filter((address) => !address.startsWith("data:") && !address.startsWith("blob:"));
seen.faults = faults;
console.log(JSON.stringify(seen));
await browser.close();
