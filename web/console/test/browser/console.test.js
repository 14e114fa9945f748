// The page in a real browser, over a real daemon.

import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import path from "node:path";
import { Daemon, connected, launch, open, patience, read, remove, shown, temporary, until, write } from "./world.js";

let browser, dir;
before(async () => {
  dir = temporary();
  browser = await launch();
}, { timeout: 3 * patience });
after(async () => {
  await browser?.close();
  remove(dir);
});

/** A test with a daemon and a page of its own, in which nothing may go wrong. */
function onPage(name, options, body) {
  test(name, { timeout: 3 * patience, skip: options.skip }, async (t) => {
    const daemon = await Daemon.start(dir, options);
    try {
      const page = await open(browser, daemon.url + (options.at ?? ""), options.context);
      if (!options.alone) await connected(page);
      await body(page, daemon, t);
      assert.deepEqual(page.wrong, []);
      await page.context().close();
    } finally {
      await daemon.stop("SIGKILL");
    }
  });
}

/** Waits until the page shows the daemon's graph as it is. */
async function follows(page, daemon) {
  const { last, ...want } = await daemon.picture();
  await page.waitForFunction((n) => document.querySelector(".canvas").dataset.step === String(n), last);
  assert.deepEqual(await shown(page), want);
  return { last, ...want };
}

/** Six images, and the jobs of seed 001: a stream over a commit. Each picture is of a step. */
async function streamOverCommit(page, daemon) {
  const pictures = [];
  const look = async () => pictures.push(await follows(page, daemon));
  await look();
  const files = [];
  for (let i = 0; i < 6; i++) files.push(daemon.image(`${daemon.port}-${i}.qcow2`, files.at(-1), `write -P ${i + 1} ${i}M 1M`));
  for (let i = 0; i < 6; i++) {
    await daemon.qcow2("node" + i, files[i], i ? "node" + (i - 1) : undefined);
    await look();
  }
  await daemon.cmd("block-commit", { "job-id": "commit", device: "node5", "top-node": "node2", "base-node": "node0", "filter-node-name": "commit-filter", "auto-finalize": false, "auto-dismiss": false });
  await look();
  await daemon.cmd("block-stream", { "job-id": "stream", device: "node4", "base-node": "commit-filter", "auto-finalize": false, "auto-dismiss": false });
  await look();
  for (const job of ["commit", "stream"]) {
    await page.click("role=tab[name=/Jobs/]");
    await page.click(`[data-job=${job}] [data-verb=job-finalize]:not(:disabled)`);
    await page.waitForSelector(`[data-job=${job}] h3 ~ .state.concluded`);
    await page.click("role=tab[name=Graph]");
    await look();
  }
  return pictures;
}

onPage("a stream over a commit is seen step by step, and again on the time line", {}, async (page, daemon) => {
  const pictures = await streamOverCommit(page, daemon);
  const end = pictures.at(-1);
  assert.ok(end.edges.includes("node4 backing node0"), end.edges.join());
  assert.equal(await page.locator(".steps li").count(), end.last, "every step is in the list");

  // Scrubbed, in any order, by slider, list and keys.
  for (const p of [...pictures].reverse()) {
    await page.locator("#slider").fill(String(p.last));
    const { last, ...want } = p;
    assert.deepEqual(await shown(page), want, `step ${last}`);
  }
  const middle = pictures[6];
  await page.click(`.steps li:has(.head-line .dim:text-is("${middle.last}"))`);
  assert.deepEqual((await shown(page)).nodes, middle.nodes);
  await page.focus("svg.graph");
  await page.keyboard.press(",");
  assert.equal(await page.getAttribute(".canvas", "data-step"), String(middle.last - 1));
  await page.keyboard.press(".");
  assert.equal(await page.getAttribute(".canvas", "data-step"), String(middle.last));

  // Played from the beginning to the end.
  await page.click("[aria-label='First step']");
  assert.deepEqual((await shown(page)).nodes, []);
  await page.selectOption("[aria-label='Speed of playing']", "25");
  await page.click("#play");
  await page.waitForFunction((n) => document.querySelector(".canvas").dataset.step === String(n), end.last);
  await page.waitForSelector("#play:text-is('Play')");

  // What happens meanwhile does not move what is looked at.
  await page.locator("#slider").fill(String(middle.last));
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "later" });
  await page.waitForFunction((n) => document.querySelector("#slider").max === String(n), end.last + 1);
  assert.deepEqual((await shown(page)).nodes, middle.nodes);
  await page.click("#live");
  await follows(page, daemon);
});

/** Presses a button that saves something. */
async function save(page, id, press = () => page.click(id)) {
  const [download] = await Promise.all([page.waitForEvent("download"), press()]);
  return { name: download.suggestedFilename(), text: read(await download.path()) };
}

onPage("two steps are compared, linked to, and saved", {}, async (page, daemon) => {
  const file = daemon.image(`${daemon.port}.qcow2`);
  await daemon.qcow2("old", file);
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "stays" });
  await follows(page, daemon);
  await page.click("#mark");
  await daemon.cmd("blockdev-del", { "node-name": "old" });
  await daemon.cmd("blockdev-add", { driver: "raw", "node-name": "new", file: "stays" });
  await follows(page, daemon);
  const marks = () => page.evaluate(() => Object.fromEntries([...document.querySelectorAll("g.box")].map((e) => [e.dataset.title, ["added", "removed"].find((c) => e.classList.contains(c)) ?? ""])));
  const want = { old: "removed", "old-file": "removed", new: "added", stays: "" };
  assert.deepEqual(await marks(), want);
  assert.equal(await page.locator("g.arrow.removed").count(), 1);
  assert.equal(await page.locator("g.arrow.added").count(), 1);

  await page.focus("svg.graph");
  await page.keyboard.press(",");
  assert.deepEqual(await marks(), { old: "removed", "old-file": "removed", stays: "" });
  await page.keyboard.press(".");
  const hash = new URL(page.url()).hash;
  const other = await open(browser, daemon.url + hash);
  await connected(other);
  await other.waitForFunction(() => document.querySelectorAll("g.box.removed").length === 2);
  assert.equal(await other.getAttribute(".canvas", "data-step"), await page.getAttribute(".canvas", "data-step"));
  await other.goto(daemon.url + hash.replace(/instance=.*/, "instance=00000000-0000-0000-0000-000000000000"));
  await other.reload();
  await other.waitForSelector("#toasts >> text=another run");
  await other.context().close();

  const picture = await save(page, "#save-svg");
  assert.equal(picture.name, "blockd-step-4.svg");
  assert.equal(picture.text.match(/class="box [^"]*removed"/g).length, 2);
  const dot = await save(page, "#save-dot");
  assert.match(dot.text, /"n:new" -> "n:stays" \[label="file"/);
  assert.match(dot.text, /"n:old" .*style=dashed/);
});

/** Two images with an export. */
async function guest(page, daemon) {
  const base = daemon.image(`${daemon.port}-base.qcow2`);
  await daemon.qcow2("base", base);
  await daemon.qcow2("top", daemon.image(`${daemon.port}-top.qcow2`, base), "base");
  await daemon.cmd("nbd-server-start", { addr: { type: "unix", data: { path: path.join(dir, `nbd-${daemon.port}`) } } });
  await daemon.cmd("block-export-add", { type: "nbd", id: "guest", "node-name": "top" });
  await follows(page, daemon);
}

/**
 * Presses a button that saves something, with this at the end of all names and texts. QMP lets no such name in,
 * so the page is given it, and saves before it draws again.
 */
function saveSpoiled(page, id, text) {
  return save(page, id, () => page.evaluate(([id, text]) => {
    const { view } = globalThis.blockd.tabs[0];
    view.shown = { boxes: view.shown.boxes.map((b) => ({ ...b, full: b.full + text, title: b.title + text, lines: [...b.lines, text] })), arrows: view.shown.arrows.map((a) => ({ ...a, label: a.label + text })) };
    document.querySelector(id).click();
  }, [id, text]));
}
const evil = `<&"'>]]>\\N \\" \u0001\uD800 {|} \\`;

onPage("the SVG that is saved is XML, with everything in it", {}, async (page, daemon) => {
  await guest(page, daemon);
  const picture = await saveSpoiled(page, "#save-svg", evil);
  // A page without the console's policy, which lets nothing be parsed.
  const reader = await page.context().newPage();
  const read = await reader.evaluate((text) => {
    const doc = new DOMParser().parseFromString(text, "image/svg+xml");
    const all = (selector) => [...doc.querySelectorAll(selector)].map((e) => e.textContent);
    return { trouble: doc.querySelector("parsererror")?.textContent ?? "", root: doc.documentElement.localName, boxes: all("g.box > title"), labels: all("path.arrow + text.label") };
  }, picture.text);
  assert.equal(read.trouble, "");
  assert.equal(read.root, "svg");
  assert.deepEqual(read.boxes.map((t) => t.split("<")[0]).sort(), ["base", "base-file", "export guest", "top", "top-file"]);
  for (const t of [...read.boxes, ...read.labels]) assert.ok(t.endsWith(`<&"'>]]>\\N \\" \uFFFD\uFFFD {|} \\`), t);
  assert.deepEqual(read.labels.map((t) => t.split("<")[0]).sort(), ["backing", "file", "file", "root"]);
});

const graphviz = spawnSync("dot", ["-V"]).status === 0;
onPage("Graphviz draws what is saved for it", { skip: !graphviz && "needs dot of Graphviz" }, async (page, daemon) => {
  await guest(page, daemon);
  const dot = (await saveSpoiled(page, "#save-dot", evil)).text;
  const run = (...args) => {
    const done = spawnSync("dot", args, { input: dot, encoding: "utf8" });
    assert.equal(done.status, 0, done.stderr + dot);
    return done.stdout;
  };
  assert.match(run("-Tsvg"), /<svg /);
  // What it has understood: each box once, with its name, and the edges between them.
  const graph = JSON.parse(run("-Tdot_json"));
  assert.deepEqual(graph.objects.map((o) => o.name.replace(/^r:.*/, "r")).sort(), ["n:base", "n:base-file", "n:top", "n:top-file", "r"]);
  assert.equal(graph.edges.length, 4);
  for (const e of graph.edges) assert.match(e.label, /^(backing|file|root)<&"'>\]\]>/);
});

onPage("verbs are buttons that the state allows, and states are kept", {}, async (page, daemon) => {
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "a", size: 64 << 20 });
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "b", size: 64 << 20 });
  await daemon.cmd("blockdev-mirror", { "job-id": "m", device: "a", target: "b", sync: "full", speed: 65536, "auto-dismiss": false });
  await page.keyboard.press("2");
  const card = page.locator("[data-job=m]");
  const allowed = () => card.locator("[data-verb]:not(:disabled)").evaluateAll((list) => list.map((b) => b.dataset.verb));
  await card.locator(".state.running").first().waitFor();
  await until("verbs of a job that runs", async () => (await allowed()).join() === "job-pause,block-job-set-speed,job-cancel");
  await card.locator("[data-verb=job-pause]").click();
  await card.locator("[data-verb=job-resume]:not(:disabled)").waitFor();
  await until("a pause", async () => ["paused", "standby"].includes(await daemon.status("m")));
  await card.locator("[data-verb=job-resume]").click();
  await card.locator("[data-verb=job-pause]:not(:disabled)").waitFor();
  await card.locator("[data-verb=block-job-set-speed]").click();
  await page.fill("dialog input", "0");
  await page.click("dialog >> text=Set >> nth=-1");
  await until("no speed limit", async () => (await daemon.cmd("query-block-jobs"))[0].speed === 0);
  await card.locator("[data-verb=job-complete]:not(:disabled)").click();
  await card.locator("[data-verb=job-dismiss]:not(:disabled)").click();
  await card.locator("h3 ~ .state:text-is('gone')").waitFor();
  const states = await card.locator(".states .state").allTextContents();
  assert.equal(states[0], "created");
  assert.deepEqual(states.slice(-2), ["concluded", "null"]);
  for (const s of ["running", "paused", "ready"]) assert.ok(states.includes(s), states.join());

  // Who comes later sees the same states, of a job that is gone.
  const late = await open(browser, daemon.url);
  await connected(late);
  await late.keyboard.press("2");
  const before = late.locator("[data-job=m] .states .state");
  await before.first().waitFor();
  assert.deepEqual(await before.allTextContents(), states);
  assert.match(await before.nth(1).getAttribute("title"), / s after created$/);
  assert.deepEqual(late.wrong, []);
  await late.context().close();

  // An error is shown.
  await daemon.cmd("blockdev-mirror", { "job-id": "n", device: "a", target: "b", sync: "full", speed: 65536 });
  await page.locator("[data-job=n] [data-verb=job-pause]:not(:disabled)").waitFor();
  await page.evaluate(() => globalThis.blockd.tabs[1].send("job-dismiss", { id: "n" }));
  await page.waitForSelector("#toasts >> text=cannot accept command verb");
});

onPage("a read-only client sees no verbs", { web: ",role=read-only" }, async (page, daemon) => {
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "a", size: 64 << 20 });
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "b", size: 64 << 20 });
  await daemon.cmd("blockdev-mirror", { "job-id": "m", device: "a", target: "b", sync: "full", speed: 65536 });
  await page.waitForSelector("#role:visible");
  await page.keyboard.press("2");
  await page.locator("[data-job=m]").waitFor();
  assert.equal(await page.locator("[data-job=m] [data-verb]:visible").count(), 0);
});

onPage("commands are completed, explained and run by keys", {}, async (page, daemon) => {
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "disk", size: 1 << 20 });
  await page.keyboard.press("6");
  await page.waitForFunction(() => globalThis.blockd.tabs[5].schema && globalThis.blockd.tabs[5].manual.size);
  await page.keyboard.type("block-dirty-bitmap-a");
  await page.waitForSelector("#offers li[aria-selected=true] >> text=block-dirty-bitmap-add");
  await page.keyboard.press("Tab");
  await page.waitForSelector(".doc h2:text-is('block-dirty-bitmap-add')");
  assert.ok(await page.locator(".doc td >> text=granularity").count());
  await page.keyboard.type("no");
  await page.keyboard.press("Tab");
  assert.equal(await page.inputValue("#qmp"), "block-dirty-bitmap-add node=");
  await page.keyboard.press("Tab"); // the one node there is
  await page.keyboard.type("name=b granularity=32k");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".output pre:text-is('{}')");
  const [node] = await daemon.cmd("query-named-block-nodes");
  assert.deepEqual(node["dirty-bitmaps"].map((b) => [b.name, b.granularity]), [["b", 32768]]);
  await page.keyboard.press("ArrowUp");
  assert.equal(await page.inputValue("#qmp"), "block-dirty-bitmap-add node=disk name=b granularity=32k");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".output .error >> text=Bitmap already exists");
  for (const name of (await daemon.cmd("query-commands")).map((c) => c.name)) {
    assert.ok(await page.evaluate((n) => globalThis.blockd.tabs[5].manual.has(n), name), `${name} is explained`);
  }
});

onPage("exports, images, events and bitmaps are shown", {}, async (page, daemon) => {
  const evil = `${daemon.port}-<img src=x onerror=alert(1)>.qcow2`;
  const base = daemon.image(`${daemon.port}-base.qcow2`, undefined, "write 0 2M");
  await daemon.qcow2("base", base);
  await daemon.qcow2("top", daemon.image(evil, base), "base");
  await daemon.cmd("block-dirty-bitmap-add", { node: "top", name: "daily" });
  await daemon.cmd("nbd-server-start", { addr: { type: "unix", data: { path: path.join(dir, `nbd-${daemon.port}`) } } });
  await daemon.cmd("block-export-add", { type: "nbd", id: "guest", "node-name": "top", writable: true });
  await follows(page, daemon);
  await page.waitForSelector("g.box.export[data-title='export guest'] >> text=0 clients");
  await page.waitForSelector("g.box[data-title=top] .badge >> text=daily");
  await page.locator("g.box[data-title=top]").click();
  await page.waitForSelector(".details >> text=onerror=alert(1)");
  assert.equal(await page.locator("img").count(), 0, "a name is no markup");
  await page.hover("g.box[data-title=top]");
  await page.waitForSelector(".tip:visible >> text=dirty bitmap daily");
  await page.evaluate(() => document.querySelector("g.arrow[data-edge='n:top backing n:base'] .hit").dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 300, clientY: 300 })));
  await page.waitForSelector(".tip:visible >> text=uses consistent-read");
  await page.keyboard.press("3");
  await page.waitForSelector("tr:has-text('top') >> text=daily");
  assert.deepEqual(await page.locator("#tab-images tbody tr td:first-child").allTextContents(), ["top", "base"]);
  await page.keyboard.press("4");
  await page.waitForSelector(".lines >> text=step 3");
  await page.locator("#tab-events input").fill("block-export-add");
  assert.equal(await page.locator("#tab-events .lines > div").count(), 1);
});

onPage("the log is shown from its beginning on, by level", {}, async (page, daemon) => {
  await page.keyboard.press("5");
  await daemon.cmd("x-log-set-level", { level: "debug", subsystem: "qmp", sink: "memory" });
  await daemon.cmd("x-log-trace", { pattern: "qmp_command", sink: "memory" });
  await daemon.cmd("query-version"); // is traced
  await page.waitForSelector("#tab-log .lines >> text=query-version");
  const log = await daemon.cmd("x-query-log", { limit: 500 });
  const numbers = () => page.evaluate(() => globalThis.blockd.tabs[4].kept.map((l) => l.number));
  await until("all lines", async () => (await numbers()).includes(log.lines.at(-1).number));
  const kept = await numbers();
  assert.deepEqual(kept.filter((n) => n <= log.lines.at(-1).number), log.lines.map((l) => l.number), "each line once, in order");
  await page.selectOption("#tab-log select", "error");
  await page.waitForFunction(() => document.querySelectorAll("#tab-log .lines .debug").length === 0);
});

onPage("five hundred nodes: a change moves nothing else and is quickly there", {}, async (page, daemon, t) => {
  for (let i = 0; i < 100; i++) {
    let file = { driver: "null-co", size: 1 << 20, "node-name": `null${i}` };
    for (const driver of ["raw", "copy-on-read", "copy-on-read"]) file = { driver, file, "node-name": `${driver}${i}-${file["node-name"].length}` };
    await daemon.cmd("blockdev-add", { driver: "raw", "node-name": `disk${i}`, file });
  }
  await page.waitForFunction(() => document.querySelectorAll("g.box").length === 500);
  await follows(page, daemon);
  const places = () => page.evaluate(() => Object.fromEntries([...globalThis.blockd.tabs[0].view.layout.places].map(([id, p]) => [id, `${p.x} ${p.y}`])));
  const was = await places();

  // What is written to the page for one node more, or less, does not depend on how many there are.
  await page.evaluate(() => {
    globalThis.written = 0;
    new MutationObserver((list) => { globalThis.written += list.length; })
      .observe(document.documentElement, { subtree: true, childList: true, attributes: true, characterData: true });
  });
  const written = () => page.evaluate(async () => {
    // Until all that is asked for after a change has come, and is drawn.
    const { daemon } = globalThis.blockd;
    for (let quiet = 0; quiet < 3;) {
      await new Promise((resolve) => requestAnimationFrame(resolve));
      quiet = daemon.timers.size || daemon.busy.size || globalThis.blockd.tabs[0].pending ? 0 : quiet + 1;
    }
    const n = globalThis.written;
    globalThis.written = 0;
    return n;
  });
  await written();
  const one = { driver: "raw", "node-name": "one-more", file: { driver: "null-co", "node-name": "its-file" } };
  await daemon.cmd("blockdev-add", one);
  await page.waitForSelector("g.box[data-title=one-more]");
  const added = await written();
  const is = await places();
  await daemon.cmd("blockdev-del", { "node-name": "one-more" });
  await page.waitForSelector("g.box[data-title=one-more]", { state: "detached" });
  const removed = await written();
  // The first box: all others come after it.
  await daemon.cmd("blockdev-del", { "node-name": "disk0" });
  await page.waitForSelector("g.box[data-title=disk0]", { state: "detached" });
  const first = await written();
  t.diagnostic(`written to the page: ${added} for a node and its file, ${removed} when they go, ${first} for the first five of all`);
  for (const n of [added, removed, first]) assert.ok(n > 2 && n < 150, `${n} writes`);

  // An update in which nothing is new writes nothing, whatever is chosen.
  await page.locator("g.box[data-title=disk42]").dispatchEvent("pointerdown", { button: 0, pointerId: 1 });
  await page.waitForSelector(".details h3:text-is('disk42')");
  await written();
  const idle = await page.evaluate(async () => {
    const tab = globalThis.blockd.tabs[0];
    const costs = [];
    tab.draw(); // what has come since
    await Promise.resolve();
    globalThis.written = 0;
    for (let i = 0; i < 10; i++) {
      const begin = performance.now();
      tab.timeline.update();
      tab.draw();
      costs.push(performance.now() - begin);
    }
    await Promise.resolve(); // what was written is told now
    return { written: globalThis.written, costs: costs.sort((a, b) => a - b) };
  });
  t.diagnostic(`an update in which nothing is new: ${idle.costs[5].toFixed(1)} ms (median), ${idle.costs[9].toFixed(1)} ms (longest)`);
  assert.equal(idle.written, 0);

  // From the daemon's time of the change to the page's. A machine that is busy makes any of them late, but not
  // each: a page that waits for something makes all late.
  await page.evaluate(() => {
    const { qmp, tabs } = globalThis.blockd;
    globalThis.delays = new Map();
    qmp.addEventListener("event", (e) => {
      const { event, timestamp, data } = e.detail;
      if (event !== "GRAPH_CHANGED") return;
      const at = timestamp.seconds * 1e3 + timestamp.microseconds / 1e3;
      const watch = new MutationObserver(() => {
        if (Number(document.querySelector(".canvas").dataset.step) < data.step.number) return;
        watch.disconnect();
        globalThis.delays.set(data.step.number, { shown: performance.timeOrigin + performance.now() - at, drawing: tabs[0].view.cost });
      });
      watch.observe(document.querySelector(".canvas"), { attributes: true, attributeFilter: ["data-step"] });
    });
  });
  const delays = [];
  for (let i = 0; i < 30 && !(delays.length >= 10 && delays.some((d) => d.shown < 100)); i++) {
    if (i % 2 === 0) await daemon.cmd("blockdev-add", one);
    else await daemon.cmd("blockdev-del", { "node-name": "one-more" });
    const { last } = await daemon.picture();
    delays.push(await (await page.waitForFunction((n) => globalThis.delays.get(n), last)).jsonValue());
  }
  const sorted = (of) => delays.map((d) => d[of]).sort((a, b) => a - b);
  const [shownAfter, drawing] = [sorted("shown"), sorted("drawing")];
  const middle = Math.floor(delays.length / 2);
  t.diagnostic(`500 nodes: shown ${shownAfter[middle].toFixed(1)} ms after the daemon's time of the change (median of ${delays.length}; ${shownAfter[0].toFixed(1)} to ${shownAfter.at(-1).toFixed(1)}), of which the drawing takes ${drawing[middle].toFixed(1)} ms`);
  assert.ok(shownAfter[0] < 100, shownAfter.join());

  for (const id of Object.keys(was)) assert.equal(is[id], was[id], id);
  const boxes = Object.values(is).map((p) => p.split(" ").map(Number));
  assert.equal(new Set(Object.values(is)).size, boxes.length, "no two boxes at one place");
  await page.keyboard.press("/");
  await page.keyboard.type("disk42");
  await page.waitForFunction(() => document.querySelectorAll("g.box:not(.faded)").length === 1);
});

onPage("in a dense graph no edge's text is over another, or over a box", {}, async (page, daemon, t) => {
  const seed = Number(process.env.SEED ?? 9);
  // 30 boxes, each above three of those before it; QMP has no node with so many users that go along with each other.
  const found = await page.evaluate(async (seed) => {
    const { GraphView } = await import("/console/graphview.js");
    const { toSVG } = await import("/console/export.js");
    let state = seed + 1;
    const random = (n) => (state = (state * 48271) % 0x7fffffff, state % n);
    const names = ["file", "backing", "data-file", "target", "source node", "root"];
    const boxes = [], arrows = [];
    for (let i = 0; i < 30; i++) {
      boxes.push({ id: "n" + i, kind: "node", title: "node" + i, full: "node" + i, lines: ["raw"], hue: "format", badges: [], mark: "" });
      for (const to of new Set(i ? [random(i), random(i), random(i)] : [])) {
        for (let k = random(4) ? 1 : 2; k; k--) { // some pairs have two edges
          arrows.push({ id: "e" + arrows.length, from: "n" + i, to: "n" + to, label: names[random(names.length)], hint: "", perm: [], shared: [], frozen: random(4) === 0, mark: "", read: random(2) * random(1 << 28), write: random(3) ? 0 : random(1 << 28), operations: 1 });
        }
      }
    }
    const frame = document.createElement("div");
    frame.className = "canvas";
    frame.style.cssText = "position: fixed; inset: 0; z-index: 100";
    document.body.append(frame);
    const view = new GraphView(frame, () => {});
    view.show({ boxes, arrows });
    await document.fonts.ready;
    const { left, top } = frame.getBoundingClientRect();
    const look = () => {
      view.look({ x: 0, y: 0, k: 1 }); // so near that texts are there
      const area = (e) => { const r = e.getBoundingClientRect(); return { text: e.textContent, x0: r.left, y0: r.top, x1: r.right, y1: r.bottom }; };
      const texts = [], lost = [], far = [];
      for (const g of frame.querySelectorAll("g.arrow")) {
        const [label, rate] = [area(g.querySelector(".label")), area(g.querySelector(".rate"))];
        if (getComputedStyle(g.querySelector(".label")).visibility === "hidden") lost.push(label.text);
        const both = rate.text ? { text: label.text + " / " + rate.text, x0: Math.min(label.x0, rate.x0), y0: label.y0, x1: Math.max(label.x1, rate.x1), y1: rate.y1 } : label;
        texts.push(both);
        const line = g.querySelector(".line");
        let near = Infinity;
        for (let at = 0, end = line.getTotalLength(); at <= end; at += 16) {
          const p = line.getPointAtLength(at);
          const [x, y] = [p.x + left, p.y + top];
          near = Math.min(near, Math.hypot(Math.max(both.x0 - x, x - both.x1, 0), Math.max(both.y0 - y, y - both.y1, 0)));
        }
        far.push(near);
      }
      const bodies = [...frame.querySelectorAll("g.box > rect:first-child")].map(area);
      const over = [];
      texts.forEach((a, i) => {
        for (const b of [...texts.slice(0, i), ...bodies]) if (a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1) over.push(JSON.stringify([a, b]));
      });
      return { over, lost, texts: texts.length, empty: texts.filter((a) => a.x1 - a.x0 < 10).length, far: far.sort((a, b) => a - b) };
    };
    const was = look();
    const corners = () => [...frame.querySelectorAll("g.arrow .label")].map((e) => e.getAttribute("x") + " " + e.getAttribute("y"));
    // Other rates, of the same size, move nothing.
    const before = corners();
    view.show({ boxes, arrows: arrows.map((a) => ({ ...a, read: a.read && a.read - 1, write: a.write && a.write - 1 })) });
    const still = corners().join() === before.join();
    // Traffic where there was none takes room, and takes it from nobody.
    view.show({ boxes, arrows: arrows.map((a) => ({ ...a, read: a.read || 1 << 20 })) });
    const busy = look();
    const saved = toSVG(view.shown, view.layout.places, (a) => view.way(a, view.layout.places, view.rows()), view.spots, "").match(/<text class="label"/g).length - 1;
    frame.remove();
    return { was, busy, still, saved };
  }, seed);
  for (const at of [found.was, found.busy]) {
    t.diagnostic(`${at.texts} texts; from its arrow the median is ${at.far[at.texts >> 1].toFixed(0)}, the farthest ${at.far.at(-1).toFixed(0)} (SEED=${seed})`);
    assert.ok(at.texts > 80);
    assert.equal(at.empty, 0);
    assert.deepEqual(at.over, [], `SEED=${seed}`);
    assert.deepEqual(at.lost, [], `SEED=${seed}`);
    assert.ok(at.far.at(-1) < 150, `SEED=${seed}`);
  }
  assert.ok(found.still, "places do not follow rates");
  assert.equal(found.saved, found.busy.texts);
});

test("the page comes back with the daemon, by itself", { timeout: 3 * patience }, async () => {
  let daemon = await Daemon.start(dir);
  const page = await open(browser, daemon.url);
  await connected(page);
  await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "first" });
  await follows(page, daemon);
  await daemon.stop("SIGKILL");
  await page.waitForSelector("#connection.lost");
  assert.deepEqual((await shown(page)).nodes, ["first"], "what was known stays, and is told to be old");
  assert.equal(await page.locator(".canvas.stale").count(), 1);
  daemon = await Daemon.start(dir, { port: daemon.port });
  try {
    await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "second" });
    await connected(page);
    await page.waitForSelector("g.box[data-title=second]");
    await follows(page, daemon);
    assert.deepEqual(page.wrong, []);
    await page.context().close();
  } finally {
    await daemon.stop("SIGKILL");
  }
});

test("a token is asked for, and the wrong one is refused", { timeout: 3 * patience }, async () => {
  const file = path.join(dir, "tokens");
  write(file, "control 0123456789abcdef-0123456789\n", 0o600);
  const daemon = await Daemon.start(dir, { web: ",token-file=" + file });
  try {
    const page = await open(browser, daemon.url);
    await page.waitForSelector("dialog[open] >> text=asks for a token");
    await page.fill("#token", "the wrong one, but long enough");
    await page.keyboard.press("Enter");
    await page.waitForSelector("dialog[open] >> text=The token is wrong");
    await page.fill("#token", "0123456789abcdef-0123456789");
    await page.keyboard.press("Enter");
    await connected(page);
    assert.equal(await page.evaluate(() => document.cookie + location.href.includes("0123456789abcdef")), "false");
    await page.reload();
    await connected(page);
    assert.deepEqual(page.wrong, []);
    await page.context().close();
  } finally {
    await daemon.stop("SIGKILL");
  }
});

/** How much lighter one colour is than the other, as WCAG has it. */
const contrasts = () => {
  const light = (c) => {
    const [r, g, b] = c.match(/[\d.]+/g).slice(0, 3).map(Number).map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\)$|transparent/.test(c)) return c;
    }
    return "rgb(255,255,255)";
  };
  const found = {};
  const add = (name, fore, back) => {
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    found[name] = (a + 0.05) / (b + 0.05);
  };
  for (const s of ["body", "nav button", "#connection", ".timeline .cause", ".steps .when", ".steps .plus", ".steps li.current b", ".details p"]) {
    const e = document.querySelector(s);
    add(s, getComputedStyle(e).color, under(e));
  }
  const box = getComputedStyle(document.querySelector("g.box > rect")).fill;
  for (const s of [".box .title", ".box .line"]) add(s, getComputedStyle(document.querySelector(s)).fill, box);
  return { found, body: getComputedStyle(document.body).backgroundColor };
};

for (const colorScheme of ["light", "dark"]) {
  onPage(`all is readable in ${colorScheme} surroundings`, { context: { colorScheme } }, async (page, daemon) => {
    await daemon.cmd("blockdev-add", { driver: "null-co", "node-name": "n" });
    await page.waitForSelector("g.box[data-title=n]");
    const { found, body } = await page.evaluate(contrasts);
    for (const [name, ratio] of Object.entries(found)) assert.ok(ratio >= 4.5, `${name}: ${ratio.toFixed(2)}`);
    const dark = Number(body.match(/\d+/)[0]) < 128;
    assert.equal(dark, colorScheme === "dark");
  });
}

onPage("boxes are reached by keys and have names for those who do not see", {}, async (page, daemon) => {
  await daemon.cmd("blockdev-add", { driver: "raw", "node-name": "above", file: { driver: "null-co", "node-name": "below" } });
  await page.waitForSelector("g.box[data-title=below]");
  await page.focus("svg.graph");
  await page.keyboard.press("ArrowDown");
  await page.waitForSelector(".details h3:text-is('above')");
  await page.keyboard.press("ArrowDown");
  await page.waitForSelector(".details h3:text-is('below')");
  const active = await page.getAttribute("svg.graph", "aria-activedescendant");
  assert.match(await page.getAttribute("#" + active, "aria-label"), /^below: null-co/);
  await page.keyboard.press("Escape");
  await page.waitForSelector(".details >> text=Choose a box");
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, select, [role=tabpanel], [role=listbox], [role=log]")]
    .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.title)).map((e) => e.outerHTML));
  assert.deepEqual(nameless, []);
});
