// What is drawn, and the files that are made of it.

import { test } from "node:test";
import assert from "node:assert/strict";
import { display, matching } from "../../static/display.js";
import { toDot, toSVG } from "../../static/export.js";
import { bytes, duration, shorten } from "../../static/format.js";
import { sections } from "../../static/manual.js";
import { emptyGraph } from "../../static/model.js";
import { chains } from "../../static/imagestab.js";
import { route } from "../../static/layout.js";

function graph() {
  const g = emptyGraph();
  g.nodes.set("base", { name: "base", driver: "qcow2" });
  g.nodes.set("top", { name: "top", driver: "qcow2" });
  g.roots.set(1, { id: 1, label: "export e" });
  g.roots.set(2, { id: 2, job: "j" });
  g.roots.set(3, { id: 3, job: "j" });
  const add = (key, more) => g.edges.set(key, { key, perm: ["write"], shared: [], ...more });
  add("n:top\nbacking", { parentNode: "top", name: "backing", child: "base" });
  add("r:1\nroot", { parentRoot: 1, name: "root", child: "top" });
  add("r:2\nmain node", { parentRoot: 2, name: "main node", child: "top" });
  add("r:3\nbase", { parentRoot: 3, name: "base", child: "base" });
  return g;
}

test("a job's users are one box, an export has its name", () => {
  const jobs = new Map([["j", { type: "stream", status: "running", "current-progress": 50, "total-progress": 200, rate: 1024, left: 5 }]]);
  const d = display(graph(), { jobs });
  assert.deepEqual(d.boxes.map((b) => b.id).sort(), ["j:j", "n:base", "n:top", "r:1"]);
  const job = d.boxes.find((b) => b.id === "j:j");
  assert.equal(job.progress, 25);
  assert.match(job.lines[0], /stream 25 % · 1 KiB\/s · 5 s/);
  assert.equal(d.boxes.find((b) => b.id === "r:1").title, "e");
  assert.equal(d.arrows.length, 4);
});

test("differences show what went as well", () => {
  const before = graph(), after = graph();
  after.nodes.delete("base");
  after.nodes.set("new", { name: "new", driver: "raw" });
  after.edges.delete("r:3\nbase");
  after.edges.set("n:top\nbacking", { ...after.edges.get("n:top\nbacking"), child: "new" });
  after.edges.set("r:1\nroot", { ...after.edges.get("r:1\nroot"), perm: [] });
  const d = display(after, {}, before);
  const marks = Object.fromEntries(d.boxes.map((b) => [b.id, b.mark]));
  assert.deepEqual(marks, { "r:1": "", "j:j": "", "n:top": "", "n:new": "added", "n:base": "removed" });
  const arrows = d.arrows.map((a) => [a.from, a.label, a.to, a.mark].join(" ")).sort();
  assert.deepEqual(arrows, ["j:j base n:base removed", "j:j main node n:top ", "n:top backing n:base removed", "n:top backing n:new added", "r:1 root n:top changed"]);
});

test("finding looks at names, drivers and kinds", () => {
  const d = display(graph(), {});
  assert.deepEqual([...matching(d, "TOP")], ["n:top"]);
  assert.deepEqual([...matching(d, "export")], ["r:1"]);
  assert.equal(matching(d, " "), null);
});

test("files escape what clients named", () => {
  const g = emptyGraph();
  const evil = `</text><script>"\\\n\u0000&`;
  g.nodes.set(evil, { name: evil, driver: "raw" });
  const d = display(g, {});
  const places = new Map(d.boxes.map((b, i) => [b.id, { x: i * 300, y: 0 }]));
  const text = toSVG(d, places, () => [], new Map(), evil);
  assert.ok(!text.includes("<script>") && !text.includes("\u0000"));
  assert.ok(text.includes("&lt;script&gt;"));
  const dot = toDot(d, evil);
  assert.ok(dot.includes(`\\"\\\\\\n`), dot);
  assert.equal(dot.split("\n").length, 7, "a name makes no new line");
});

test("the picture as SVG has every box and arrow", () => {
  const d = display(graph(), {});
  const places = new Map(d.boxes.map((b, i) => [b.id, { x: 0, y: i * 116 }]));
  const text = toSVG(d, places, (a) => route(places.get(a.from), places.get(a.to), new Map()), new Map(d.arrows.slice(1).map((a) => [a.id, { t: 0.5, dx: 5, dy: 5 }])), "c");
  assert.equal(text.match(/class="box /g).length, 4);
  assert.equal(text.match(/class="arrow /g).length, 4);
  assert.equal(text.match(/<text class="label"/g).length, 4, "the caption, and the three texts that have a place");
});

test("images are told in chains, through filters", () => {
  const g = graph();
  g.nodes.set("cor", { name: "cor", driver: "copy-on-read" });
  g.nodes.set("top-file", { name: "top-file", driver: "file" });
  g.edges.set("n:top\nbacking", { ...g.edges.get("n:top\nbacking"), child: "cor" });
  g.edges.set("n:cor\nfile", { key: "n:cor\nfile", parentNode: "cor", name: "file", child: "base", perm: [], shared: [] });
  g.edges.set("n:top\nfile", { key: "n:top\nfile", parentNode: "top", name: "file", child: "top-file", perm: [], shared: [] });
  assert.deepEqual(chains(g, new Map()).map((r) => "  ".repeat(r.depth) + r.name), ["top", "  cor", "    base"]);
});

test("numbers are for people", () => {
  assert.deepEqual([0, 1023, 1024, 1536, 2 ** 30 * 1.25, 2 ** 60].map(bytes), ["0 B", "1023 B", "1 KiB", "1.5 KiB", "1.3 GiB", "1024 PiB"]);
  assert.deepEqual([0.4, 59, 61, 3700, 90000].map(duration), ["0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
  assert.equal(shorten("abcdefghij", 5), "ab…ij");
});

test("the manual is cut at its headings", () => {
  const found = sections("# A\n\n## B\n\n### one\n\ntext\n\n#### more\n\nx\n\n```\n### no\n```\n### two\n\ny\n## C\n");
  assert.deepEqual([...found.keys()], ["one", "two"]);
  assert.match(found.get("one"), /#### more[^]*### no/);
});
