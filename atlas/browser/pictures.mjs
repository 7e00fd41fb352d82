/** Takes pictures of an atlas: `node pictures.mjs FOLDER OUT LATENT ROW,ROW CLASS ALPHA`. */
import { opened } from "./page.mjs";

const [, , folder, out, latent, rows, label, alpha] = process.argv;
const { browser, page, faults, show } = await opened(folder, { viewport: { width: 1180, height: 900 } });
const painted = () => page.waitForTimeout(600);

await show("");
await page.waitForSelector(".chart canvas");
await painted();
await page.screenshot({ path: `${out}/overview.png` });
await page.locator("#front-title").evaluate((title) => title.scrollIntoView());
await painted();
await page.screenshot({ path: `${out}/front.png` });
await page.setViewportSize({ width: 1180, height: 640 });
await show(`latent/${latent}`);
await page.waitForSelector(".gallery figure img");
await painted();
await page.screenshot({ path: `${out}/latent.png` });
await page.setViewportSize({ width: 1180, height: 900 });
await page.locator("#made, #evidence").first().evaluate((title) => title.scrollIntoView());
await painted();
await page.screenshot({ path: `${out}/evidence.png` });
await show(`bench?latents=${latent}&rows=${rows}&class=${label}`);
await page.waitForSelector("#alpha:not([disabled])");
await page.fill("#alpha-number", alpha);
await page.press("#alpha-number", "Enter");
await page.evaluate(() => document.activeElement.blur());
await painted();
await page.screenshot({ path: `${out}/bench.png`, fullPage: false });
if (faults.length) throw new Error(faults.join("\n"));
await browser.close();
