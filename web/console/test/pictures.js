// Makes the pictures of docs/console.md anew: node web/console/test/pictures.js (with bin/blockd built).

import { mkdirSync } from "node:fs";
import path from "node:path";
import { Daemon, connected, launch, open, remove, temporary, until } from "./browser/world.js";

const folder = path.resolve(import.meta.dirname, "../../../docs/console");
mkdirSync(folder, { recursive: true });
const dir = temporary();
const browser = await launch();
const daemon = await Daemon.start(dir);
try {
  const page = await open(browser, daemon.url, { viewport: { width: 1120, height: 680 } });
  await connected(page);
  const take = (name) => page.screenshot({ path: path.join(folder, name + ".png"), animations: "disabled" });
  const tidy = async () => {
    await page.click("#tidy");
    await page.waitForTimeout(700); // boxes go to their places
    await page.mouse.move(0, 0);
  };
  const base = daemon.image("debian-12.qcow2", undefined, "write -P 1 0 6M");
  const monday = daemon.image("monday.qcow2", base, "write -P 2 2M 3M");
  const vm = daemon.image("vm.qcow2", monday, "write -P 3 4M 1M");
  const backup = daemon.image("backup.qcow2");
  await daemon.qcow2("debian-12", base);
  await daemon.qcow2("monday", monday, "debian-12");
  await daemon.qcow2("vm", vm, "monday");
  await daemon.qcow2("backup", backup);
  await daemon.cmd("block-dirty-bitmap-add", { node: "vm", name: "daily", persistent: true });
  await daemon.cmd("nbd-server-start", { addr: { type: "unix", data: { path: path.join(dir, "nbd") } } });
  await daemon.cmd("block-export-add", { type: "nbd", id: "guest", "node-name": "vm", writable: true });
  await daemon.cmd("block-stream", { "job-id": "stream", device: "monday", "auto-finalize": false, speed: 1 << 18, "filter-node-name": "cor" });
  await daemon.cmd("blockdev-backup", { "job-id": "backup", device: "vm", target: "backup", sync: "full", speed: 1 << 19, "filter-node-name": "cbw" });
  await until("traffic", () => page.locator("g.arrow.busy").count());
  await page.waitForTimeout(2500); // so that there are rates to show
  await tidy();
  await take("graph");
  await page.click("role=tab[name=/Jobs/]");
  await page.waitForTimeout(1200);
  await take("jobs");
  await page.click("role=tab[name=Graph]");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator("#slider").fill("7");
  await tidy();
  await take("step");
  await page.emulateMedia({ colorScheme: "light" });
  await page.click("#live");
  await page.click("role=tab[name=Console]");
  await page.waitForFunction(() => globalThis.blockd.tabs[5].schema && globalThis.blockd.tabs[5].manual.size);
  await page.keyboard.type("query-block-exports");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".output pre >> text=shutting-down");
  await page.keyboard.type("block-dirty-bitmap-add node=vm name=hourly ");
  await page.waitForSelector("#offers li");
  await take("qmp");
} finally {
  await browser.close();
  await daemon.stop("SIGKILL");
  remove(dir);
}
