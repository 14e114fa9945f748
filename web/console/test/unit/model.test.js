// The graph's model: steps forward and backward, and what differs.

import { test } from "node:test";
import assert from "node:assert/strict";
import { History, applyStep, cloneGraph, diffGraphs, emptyGraph, revertStep } from "../../static/model.js";

const all = ["consistent-read", "write"];
const edge = (type, parent, name, child, more) => ({ type, "parent-node": parent, name, child, ...more });
const steps = [
  { number: 1, cause: { type: "command", command: "blockdev-add" }, changes: [{ type: "node-added", "node-name": "base", driver: "qcow2" }] },
  { number: 2, cause: { type: "command", command: "blockdev-add" }, changes: [
    { type: "node-added", "node-name": "top", driver: "qcow2" }, edge("linked", "top", "backing", "base", { perm: ["consistent-read"], "shared-perm": all })] },
  { number: 3, cause: { type: "command", command: "block-export-add" }, changes: [
    { type: "root-added", root: 7, label: "export e" }, { type: "linked", "parent-root": 7, name: "root", child: "top", perm: all, "shared-perm": all }] },
  { number: 4, cause: { type: "command", command: "block-stream" }, changes: [
    { type: "node-added", "node-name": "cor", driver: "copy-on-read" }, edge("linked", "cor", "file", "base", { perm: all, "shared-perm": all }),
    edge("relinked", "top", "backing", "cor", { "old-child": "base", perm: all, "shared-perm": all, "old-perm": ["consistent-read"], "old-shared-perm": all })] },
  { number: 5, cause: { type: "job", job: "j" }, changes: [
    edge("unlinked", "top", "backing", "cor", { "old-perm": all, "old-shared-perm": all }), edge("unlinked", "cor", "file", "base", { "old-perm": all, "old-shared-perm": all }),
    { type: "permissions", "parent-root": 7, name: "root", child: "top", perm: [], "shared-perm": all, "old-perm": all, "old-shared-perm": all },
    { type: "node-removed", "node-name": "cor", driver: "copy-on-read" }] },
];

const plain = (g) => JSON.stringify({
  nodes: [...g.nodes.values()].sort((a, b) => (a.name < b.name ? -1 : 1)), roots: [...g.roots.values()],
  edges: [...g.edges.values()].sort((a, b) => (a.key < b.key ? -1 : 1)),
});

/** What the graph was after each step, made from the beginning. */
function states() {
  const g = emptyGraph();
  const list = [plain(g)];
  for (const s of steps) {
    applyStep(g, s);
    list.push(plain(g));
  }
  return list;
}

test("steps that are taken back leave what was before", () => {
  const want = states();
  const g = emptyGraph();
  for (const s of steps) applyStep(g, s);
  for (let n = steps.length; n > 0; n--) {
    assert.equal(plain(g), want[n]);
    revertStep(g, steps[n - 1]);
  }
  assert.equal(plain(g), want[0]);
});

test("a history that began in the middle shows every state, in any order", () => {
  const want = states();
  const middle = emptyGraph();
  for (const s of steps.slice(0, 3)) applyStep(middle, s);
  const history = new History("u", middle, 3);
  history.addPast(steps.slice(0, 4)); // step 4 came while the past was asked for
  assert.equal(history.earliest, 0);
  assert.equal(history.last, 4);
  assert.ok(history.add(steps[4]));
  for (const n of [0, 5, 2, 3, 1, 4, 0, 5]) assert.equal(plain(history.at(n)), want[n], `step ${n}`);
  history.at(2).nodes.clear();
  assert.equal(plain(history.at(2)), want[2], "who gets a graph may change it");
});

test("a step that is missing is seen, one that is known is nothing new", () => {
  const history = new History("u", emptyGraph(), 0);
  assert.equal(history.add(steps[1]), false);
  assert.equal(history.add(steps[0]), true);
  assert.equal(history.add(steps[0]), true);
  assert.equal(history.last, 1);
});

test("a past with its beginning cut off ends where it ends", () => {
  const g = emptyGraph();
  for (const s of steps) applyStep(g, s);
  const history = new History("u", g, 5);
  history.addPast(steps.slice(2));
  assert.equal(history.earliest, 2);
  assert.equal(plain(history.at(0)), states()[2]);
});

test("differences name what came, went, moved and changed", () => {
  const history = new History("u", emptyGraph(), 0);
  for (const s of steps) history.add(s);
  const d = diffGraphs(history.at(3), history.at(4));
  assert.deepEqual([...d.nodes], [["cor", "added"]]);
  assert.deepEqual([...d.edges], [["n:top\nbacking", "moved"], ["n:cor\nfile", "added"]]);
  const back = diffGraphs(history.at(5), history.at(2));
  assert.deepEqual([...back.roots], [[7, "removed"]]);
  const perms = diffGraphs(history.at(3), history.at(5));
  assert.deepEqual([...perms.edges], [["r:7\nroot", "changed"], ["n:top\nbacking", "removed"]]);
  const same = diffGraphs(history.at(3), cloneGraph(history.at(3)));
  assert.equal(same.nodes.size + same.roots.size + same.edges.size, 0);
});

test("old steps are forgotten, and the cursor with them", () => {
  const history = new History("u", emptyGraph(), 0);
  const toggle = (number) => ({ number, cause: {}, changes: [{ type: number % 2 ? "node-added" : "node-removed", "node-name": "n", driver: "raw" }] });
  history.add(toggle(1));
  history.at(0);
  for (let n = 2; n <= 20005; n++) history.add(toggle(n));
  assert.equal(history.earliest, 5);
  assert.equal(history.at(0).nodes.size, 1, "the earliest that is known");
  assert.equal(history.at(6).nodes.size, 0);
});
