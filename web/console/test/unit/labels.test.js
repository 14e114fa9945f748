// Where arrows' texts stand: over no other, over no box, near their arrow.

import { test } from "node:test";
import assert from "node:assert/strict";
import { arrange, boxHeight, boxWidth, route } from "../../static/layout.js";
import { corner, placeLabels, pointAt } from "../../static/labels.js";

/** @param {number} seed */
function generator(seed) {
  let state = seed % 0x7ffffffe + 1;
  return (n) => (state = (state * 48271) % 0x7fffffff, state % n);
}

/** Texts of a graph with so many boxes, each using three of those before it. */
function texts(boxes, seed) {
  const random = generator(seed);
  const ids = [], arrows = [];
  for (let i = 0; i < boxes; i++) {
    const to = new Set();
    for (let k = 0; k < 3 && i; k++) to.add(random(i));
    for (const t of to) arrows.push({ from: "n" + i, to: "n" + t });
    ids.push("n" + i);
  }
  const { places } = arrange(ids, arrows);
  const rows = new Map();
  for (const p of places.values()) rows.set(p.y, [...(rows.get(p.y) ?? []), p.x]);
  const list = arrows.map((a, i) => ({ id: "e" + i, way: route(places.get(a.from), places.get(a.to), rows), size: { width: 30 + random(140), height: random(2) ? 15 : 30 } }));
  return { places, list };
}

const area = (text, spot) => {
  const at = corner(text.way, spot);
  return { x0: at.x, y0: at.y, x1: at.x + text.size.width, y1: at.y + text.size.height };
};
const meet = (a, b) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;

test("no text of a dense graph is over another or over a box, and none is left out", () => {
  const first = Number(process.env.SEED ?? 1);
  for (let seed = first; seed < first + Number(process.env.SEEDS ?? 20); seed++) {
    const { places, list } = texts(30, seed);
    const spots = placeLabels(places.values(), list);
    const areas = list.map((text) => {
      const spot = spots.get(text.id);
      assert.ok(spot, `${text.id} has no place (SEED=${seed})`);
      return area(text, spot);
    });
    const boxes = [...places.values()].map((p) => ({ x0: p.x - boxWidth / 2, x1: p.x + boxWidth / 2, y0: p.y - boxHeight / 2, y1: p.y + boxHeight / 2 }));
    areas.forEach((a, i) => {
      for (const b of [...areas.slice(0, i), ...boxes]) assert.ok(!meet(a, b), `${list[i].id} is over something (SEED=${seed})`);
    });
  }
});

test("a text alone stands beside the middle of its arrow", () => {
  const way = [{ x: 0, y: 0 }, { x: 100, y: 100 }];
  const size = { width: 40, height: 14 };
  assert.deepEqual(pointAt(way, 0.5), { x: 50, y: 50 });
  assert.deepEqual(corner(way, placeLabels([], [{ id: "a", way, size }]).get("a")), { x: 56, y: 43 });
});

test("a text that comes later moves none before it", () => {
  const { places, list } = texts(20, 7);
  const less = placeLabels(places.values(), list.slice(0, -1)), all = placeLabels(places.values(), list);
  for (const [id, spot] of less) assert.deepEqual(all.get(id), spot, id);
});

test("where there is no room, a text is left out", () => {
  const way = [{ x: 0, y: 0 }, { x: 0, y: 60 }];
  const many = Array.from({ length: 2000 }, (_, i) => ({ id: "e" + i, way, size: { width: 60, height: 15 } }));
  const spots = placeLabels([], many);
  assert.ok(spots.size > 20 && spots.size < many.length, String(spots.size));
  const areas = many.filter((t) => spots.has(t.id)).map((t) => area(t, spots.get(t.id)));
  areas.forEach((a, i) => assert.ok(!areas.slice(0, i).some((b) => meet(a, b))));
});
