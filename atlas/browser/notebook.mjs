/** Opens a notebook in JupyterLab as people do, and works with the atlas that its cells show. */
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [, , address, folder, downloads, picture] = process.argv;
const browser = await chromium.launch({
  executablePath: process.env.SALVE_CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-background-networking"],
});
const context = await browser.newContext({ viewport: { width: 1500, height: 1000 }, acceptDownloads: true });
const seen = { faults: [], elsewhere: [] };
const listened = async () => {
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && seen.faults.push(message.text()));
  page.on("pageerror", (error) => seen.faults.push(String(error)));
  page.on("dialog", (dialog) => {
    seen.faults.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => {
    if (!/^(https?:\/\/localhost|wss?:\/\/localhost|data:|blob:|file:)/.test(request.url())) seen.elsewhere.push(request.url());
  });
  return page;
};
const page = await listened();
await page.goto(address);
await page.waitForSelector(".jp-Notebook .jp-Cell");
await page.evaluate(async () => {
  const { sessionContext } = globalThis.jupyterapp.shell.currentWidget;
  await sessionContext.ready;
  await sessionContext.session.kernel.info;
});
const command = (name) => page.evaluate((id) => globalThis.jupyterapp.commands.execute(id), name);
const cell = (at) => page.locator(".jp-Notebook .jp-CodeCell").nth(at);
const run = async (at) => {
  await cell(at).locator(".jp-InputPrompt").click();
  await command("notebook:run-cell");
  await page.waitForFunction((place) => /\[\d+\]/.test(document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt")[place].textContent), at, { timeout: 120000 });
};
const said = (at) => cell(at).locator(".jp-OutputArea-output").allInnerTexts();
const kept = () => page.evaluate(() => ["fontFamily", "color", "backgroundColor", "lineHeight"].map((name) => getComputedStyle(document.querySelector(".jp-Notebook"))[name]));

seen.before = await kept();
for (const at of [0, 1, 2, 3]) await run(at);
// The study's atlas in two outputs, and an artifact's.
await cell(1).locator("h1").waitFor();
await cell(2).locator("h1").waitFor();
await cell(3).locator("h1").waitFor();
seen.titles = await page.locator(".jp-Notebook h1").allInnerTexts();
seen.after = await kept();

// To a class and from there to the bench, where the strength is dragged.
const output = cell(1);
await output.locator('nav a:text-is("Classes")').click();
await output.locator(".list .body .row a").first().waitFor();
seen.names = await output.locator(".list .body .row > :first-child").allInnerTexts();
await output.locator('[data-place="6"]').click();
await output.locator("a.button").click();
await output.locator("#alpha:not([disabled])").waitFor();
await output.locator("#outcome[aria-busy=false]").waitFor(); // before that the slider has another end
await output.locator("#alpha").scrollIntoViewIfNeeded();
const box = await output.locator("#alpha").boundingBox();
await page.mouse.move(box.x + 8, box.y + box.height / 2);
await page.mouse.down();
for (const share of [0.2, 0.35, 0.5]) await page.mouse.move(box.x + share * box.width, box.y + box.height / 2, { steps: 4 });
await page.mouse.up();
if (picture) await page.screenshot({ path: picture });

// What is typed on the bench is no command to the notebook: "d d" would delete the cell.
seen.cells = await page.locator(".jp-Notebook .jp-Cell").count();
await output.locator('input[aria-label="Add a latent by its number"]').click();
await page.keyboard.type("ddx5");
await page.keyboard.press("Enter");
await output.locator('.chips li:has-text("latent 5")').waitFor();
seen.left = await page.locator(".jp-Notebook .jp-Cell").count();
seen.alpha = Number(await output.locator("#alpha-number").inputValue());
seen.latents = await output.locator(".chips").first().locator("li").allInnerTexts();
seen.other = [await cell(2).locator("h1").innerText(), await cell(3).locator("h1").innerText()];
const file = async (place, click) => {
  const waiting = place.waitForEvent("download");
  await click();
  const name = `${downloads}/${place === page ? "notebook" : "folder"}.safetensors`;
  await (await waiting).saveAs(name);
  return name;
};
seen.files = [await file(page, () => output.locator("#download").click())];
// What the bench holds comes to Python a moment later.
for (let attempt = 0; attempt < 40; attempt++) {
  await run(4);
  if (readFileSync(`${downloads}/recipe`).equals(readFileSync(seen.files[0]))) break;
  await page.waitForTimeout(250);
}
seen.said = await said(4);

// The same edit on the page that opens from disk.
const alone = await listened();
await alone.goto(`${folder}#/bench?latents=${seen.latents.map((text) => /\d+/.exec(text)[0]).join(",")}&rows=6&class=6`);
await alone.waitForSelector("#alpha:not([disabled])");
await alone.fill("#alpha-number", String(seen.alpha));
await alone.press("#alpha-number", "Enter");
seen.files.push(await file(alone, () => alone.click("#download")));

// An output that was cleared lets go of everything; the widget can be shown again.
const shadow = await output.locator("[data-lm-suppress-shortcuts]").elementHandle();
await output.locator(".jp-InputPrompt").click();
await command("notebook:clear-cell-output");
const left = () => shadow.evaluate((each) => [each.isConnected, each.shadowRoot.lastChild.childNodes.length]);
for (let attempt = 0; attempt < 40; attempt++) {
  seen.cleared = await left();
  if (!seen.cleared.some(Boolean)) break;
  await page.waitForTimeout(100);
}
await run(1);
await output.locator("h1").waitFor();
seen.again = await output.locator("h1").innerText();
console.log(JSON.stringify(seen));
await browser.close();
