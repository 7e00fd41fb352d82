/** Opens an atlas of one page; prints what is on it, what axe finds, and what went wrong. */
import { findings, opened, settled } from "./page.mjs";

const { browser, page, faults, show } = await opened(process.argv[2]);
await show("");
await settled(page);
const text = await page.evaluate(() => document.body.innerText);
console.log(JSON.stringify({ text, axe: await findings(page), faults }));
await browser.close();
