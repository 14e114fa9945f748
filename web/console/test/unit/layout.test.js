// Where boxes stand: none over another, users above, nothing jumps.

import { test } from "node:test";
import assert from "node:assert/strict";
import { arrange, boxHeight, boxWidth, route } from "../../static/layout.js";

/** @param {number} chains */
function disks(chains) {
  const ids = [], arrows = [];
  for (let i = 0; i < chains; i++) {
    ids.push(`x${i}`, `t${i}`, `tf${i}`, `b${i}`, `bf${i}`);
    arrows.push({ from: `x${i}`, to: `t${i}` }, { from: `t${i}`, to: `tf${i}` }, { from: `t${i}`, to: `b${i}` }, { from: `b${i}`, to: `bf${i}` });
  }
  return { ids, arrows };
}

/** @param {{places: Map<string, {x: number, y: number}>}} layout @param {{from: string, to: string}[]} arrows */
function check(layout, arrows) {
  const list = [...layout.places.entries()].sort((a, b) => a[1].y - b[1].y || a[1].x - b[1].x);
  for (let i = 0; i < list.length; i++) {
    for (let k = i + 1; k < list.length && list[k][1].y - list[i][1].y < boxHeight; k++) {
      assert.ok(Math.abs(list[k][1].x - list[i][1].x) >= boxWidth, `${list[i][0]} and ${list[k][0]} overlap`);
    }
  }
  for (const a of arrows) assert.ok(layout.places.get(a.from).y < layout.places.get(a.to).y, `${a.from} is not above ${a.to}`);
}

test("500 boxes in 100 pictures do not overlap, and are more wide than high", () => {
  const d = disks(100);
  const layout = arrange(d.ids, d.arrows);
  assert.equal(layout.places.size, 500);
  check(layout, d.arrows);
  const xs = [...layout.places.values()].map((p) => p.x), ys = [...layout.places.values()].map((p) => p.y);
  const ratio = (Math.max(...xs) - Math.min(...xs)) / (Math.max(...ys) - Math.min(...ys));
  assert.ok(ratio > 0.8 && ratio < 4, `ratio ${ratio}`);
});

test("500 boxes in one picture are laid out in rows", () => {
  const ids = ["base"], arrows = [];
  for (let i = 0; i < 250; i++) {
    ids.push(`o${i}`, `f${i}`);
    arrows.push({ from: `o${i}`, to: `f${i}` }, { from: `o${i}`, to: "base" });
  }
  check(arrange(ids, arrows), arrows);
});

test("a new picture moves nothing", () => {
  const d = disks(20), more = disks(21);
  const before = arrange(d.ids, d.arrows);
  const after = arrange(more.ids, more.arrows, before);
  check(after, more.arrows);
  for (const id of d.ids) assert.deepEqual(after.places.get(id), before.places.get(id), id);
});

test("what is put above a picture moves nothing in it", () => {
  const d = disks(3);
  const before = arrange(d.ids, d.arrows);
  const arrows = [...d.arrows, { from: "job", to: "t1" }];
  const after = arrange([...d.ids, "job"], arrows, before);
  check(after, arrows);
  for (const id of d.ids) assert.deepEqual(after.places.get(id), before.places.get(id), id);
});

test("a filter in between moves down what is below it, and nothing aside", () => {
  const d = disks(3);
  const before = arrange(d.ids, d.arrows);
  const arrows = d.arrows.filter((a) => a.from !== "t1" || a.to !== "b1").concat({ from: "t1", to: "cor" }, { from: "cor", to: "b1" });
  const after = arrange([...d.ids, "cor"], arrows, before);
  check(after, arrows);
  for (const id of d.ids) {
    const was = before.places.get(id), is = after.places.get(id);
    if (["b1", "bf1"].includes(id)) assert.ok(is.y > was.y && is.x === was.x, id);
    else if (id !== "tf1") assert.deepEqual(is, was, id);
  }
});

test("what comes back takes its place again", () => {
  const d = disks(2);
  const whole = arrange(d.ids, d.arrows);
  const ids = d.ids.filter((id) => id !== "x1"), arrows = d.arrows.filter((a) => a.from !== "x1");
  const less = arrange(ids, arrows, whole);
  const memory = { places: new Map([...whole.places, ...less.places]), pictures: less.pictures };
  assert.deepEqual(arrange(d.ids, d.arrows, memory).places.get("x1"), whole.places.get("x1"));
});

test("random changes never make boxes overlap", () => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e6);
  let state = seed;
  const random = (n) => (state = (state * 48271) % 0x7fffffff, state % n);
  let ids = [], arrows = [], layout, made = 0;
  for (let round = 0; round < 30; round++) {
    if (ids.length && random(3) === 0) {
      const gone = ids[random(ids.length)];
      ids = ids.filter((id) => id !== gone);
      arrows = arrows.filter((a) => a.from !== gone && a.to !== gone);
    } else {
      const id = "n" + made++;
      // An older box is never above a newer one, so that there is no cycle.
      for (let k = random(3); k > 0 && ids.length; k--) arrows.push({ from: id, to: ids[random(ids.length)] });
      ids.push(id);
    }
    layout = arrange(ids, arrows, layout);
    try {
      check(layout, arrows);
    } catch (e) {
      e.message += ` (SEED=${seed}, round ${round})`;
      throw e;
    }
  }
});

test("arrows go around boxes in the rows between", () => {
  const way = route({ x: 0, y: 0 }, { x: 0, y: 232 }, new Map([[0, [0]], [116, [0, 228]], [232, [0]]]));
  for (const p of way) if (p.y > 80 && p.y < 150) assert.ok(Math.abs(p.x) > boxWidth / 2, JSON.stringify(way));
});
