// Where boxes stand. What users would call one picture (boxes that are
// connected) is laid out in rows, users above what they use: small ones by
// dagre, large ones by rows and barycentres, which is what dagre does, without
// the parts that take long.
//
// A layout follows the one before: a box keeps its column, and its row unless
// it must go deeper; new boxes take the nearest room; pictures stay where they
// are unless one grows into another. `tidy` forgets what was.

import { Graph, layout as dagreLayout } from "./dagre.js";

export const boxWidth = 196;
export const boxHeight = 58;
const gapX = 32;
const rowPitch = 116;
const pictureGap = 56;
// Of the whole, its width by its height.
const wide = 1.7;
// dagre is quick up to here.
const dagreMost = 40;
// More boxes in a row are wrapped.
const rowMost = 24;

/**
 * @typedef {{x: number, y: number}} Point the middle of a box
 * @typedef {{from: string, to: string}} Arrow
 */

/**
 * @typedef {{places: Map<string, Point>, pictures: Set<string>}} Layout where boxes stand; what was laid out
 */

/** @returns {Layout} */
export function noLayout() {
  return { places: new Map(), pictures: new Set() };
}

/**
 * @param {string[]} ids the boxes
 * @param {Arrow[]} arrows
 * @param {Layout} [before] the layout to follow; it may know more boxes
 * @returns {Layout}
 */
export function arrange(ids, arrows, before = noLayout()) {
  /** @type {Map<string, Point>} */
  const places = new Map();
  /** @type {Set<string>} */
  const signatures = new Set();
  const pictures = components(ids, arrows).map((c) => {
    const signature = JSON.stringify([c.ids.slice().sort(), c.arrows.map((a) => a.from + "\n" + a.to).sort()]);
    signatures.add(signature);
    return arrangePicture(c, before.places, before.pictures.has(signature));
  });
  // Those that are as they were keep their place, then those that have changed.
  const placed = pictures.filter((p) => p.kept);
  for (const p of pictures.filter((p) => p.anchored && !p.kept).sort((a, b) => b.places.size - a.places.size)) {
    settle(p, placed);
    placed.push(p);
  }
  const fresh = pictures.filter((p) => !p.anchored);
  if (!placed.length) shelve(fresh);
  else {
    for (const p of fresh) {
      findRoom(p, placed);
      placed.push(p);
    }
  }
  for (const p of pictures) for (const [id, at] of p.places) places.set(id, at);
  return { places, pictures: signatures };
}

/** @param {string[]} ids @param {Arrow[]} arrows */
export function components(ids, arrows) {
  /** @type {Map<string, string>} */
  const parent = new Map(ids.map((id) => [id, id]));
  const find = (/** @type {string} */ id) => {
    let top = id;
    while (parent.get(top) !== top) top = /** @type {string} */ (parent.get(top));
    while (parent.get(id) !== top) {
      const next = /** @type {string} */ (parent.get(id));
      parent.set(id, top);
      id = next;
    }
    return top;
  };
  for (const a of arrows) parent.set(find(a.from), find(a.to));
  /** @type {Map<string, {ids: string[], arrows: Arrow[]}>} */
  const sets = new Map();
  for (const id of ids) {
    const top = find(id);
    let set = sets.get(top);
    if (!set) sets.set(top, (set = { ids: [], arrows: [] }));
    set.ids.push(id);
  }
  for (const a of arrows) sets.get(find(a.from))?.arrows.push(a);
  return [...sets.values()];
}

/** @typedef {{places: Map<string, Point>, anchored: boolean, kept: boolean, x0: number, y0: number, x1: number, y1: number}} Picture */

/**
 * @param {{ids: string[], arrows: Arrow[]}} c
 * @param {Map<string, Point>} before
 * @param {boolean} same it was laid out like this before
 * @returns {Picture}
 */
function arrangePicture(c, before, same) {
  if (same && c.ids.every((id) => before.has(id))) {
    const places = new Map(c.ids.map((id) => [id, /** @type {Point} */ (before.get(id))]));
    return bounds({ places, anchored: true, kept: true, x0: 0, y0: 0, x1: 0, y1: 0 });
  }
  const survivors = c.ids.filter((id) => before.has(id));
  const fresh = c.ids.length <= dagreMost ? byDagre(c, before) : byRows(c);
  if (survivors.length) follow(c.ids, fresh, before);
  return bounds({ places: fresh, anchored: survivors.length > 0, kept: false, x0: 0, y0: 0, x1: 0, y1: 0 });
}

/** @param {Picture} p */
function bounds(p) {
  p.x0 = p.y0 = Infinity;
  p.x1 = p.y1 = -Infinity;
  for (const at of p.places.values()) {
    p.x0 = Math.min(p.x0, at.x - boxWidth / 2);
    p.x1 = Math.max(p.x1, at.x + boxWidth / 2);
    p.y0 = Math.min(p.y0, at.y - boxHeight / 2);
    p.y1 = Math.max(p.y1, at.y + boxHeight / 2);
  }
  return p;
}

/** @param {Picture} p @param {number} dx @param {number} dy */
function move(p, dx, dy) {
  for (const [id, at] of p.places) p.places.set(id, { x: at.x + dx, y: at.y + dy });
  p.x0 += dx;
  p.x1 += dx;
  p.y0 += dy;
  p.y1 += dy;
}

/**
 * @param {{ids: string[], arrows: Arrow[]}} c
 * @param {Map<string, Point>} before
 */
function byDagre(c, before) {
  // dagre orders rows by what it meets first.
  const ids = [...c.ids].sort((a, b) => (before.get(a)?.x ?? Infinity) - (before.get(b)?.x ?? Infinity) || 0);
  // Most disks of a daemon look the same: what differs is names.
  const number = new Map(ids.map((id, i) => [id, i]));
  const shape = ids.length + ":" + c.arrows.map((a) => number.get(a.from) + ">" + number.get(a.to)).join();
  let points = shapes.get(shape);
  if (!points) {
    points = dagreShape(ids, c.arrows);
    if (shapes.size >= mostShapes) shapes.clear();
    shapes.set(shape, points);
  }
  const found = points;
  return new Map(ids.map((id, i) => [id, found[i]]));
}

/** Layouts by dagre, by what is laid out. @type {Map<string, Point[]>} */
const shapes = new Map();
const mostShapes = 500;

/** @param {string[]} ids @param {Arrow[]} arrows */
function dagreShape(ids, arrows) {
  const g = new Graph({ multigraph: true });
  g.setGraph({ rankdir: "TB", nodesep: gapX, ranksep: rowPitch - boxHeight, marginx: 0, marginy: 0 });
  g.setDefaultEdgeLabel(() => ({}));
  for (const id of ids) g.setNode(id, { width: boxWidth, height: boxHeight });
  arrows.forEach((a, i) => g.setEdge(a.from, a.to, {}, String(i)));
  dagreLayout(g);
  return ids.map((id) => {
    const n = g.node(id);
    return { x: Math.round(n.x), y: Math.round(n.y / rowPitch) * rowPitch };
  });
}

/** @param {{ids: string[], arrows: Arrow[]}} c */
function byRows(c) {
  const rank = ranks(c);
  /** @type {string[][]} */
  const rows = [];
  for (const id of c.ids) (rows[rank.get(id) ?? 0] ??= []).push(id);
  /** @type {Map<string, string[]>} */ const up = new Map();
  /** @type {Map<string, string[]>} */ const down = new Map();
  const push = (/** @type {Map<string, string[]>} */ m, /** @type {string} */ k, /** @type {string} */ v) => {
    const list = m.get(k);
    if (list) list.push(v);
    else m.set(k, [v]);
  };
  for (const a of c.arrows) {
    push(up, a.to, a.from);
    push(down, a.from, a.to);
  }
  /** @type {Map<string, number>} */
  const order = new Map();
  for (const row of rows) row.forEach((id, i) => order.set(id, i / row.length));
  for (let sweep = 0; sweep < 4; sweep++) {
    const near = sweep % 2 === 0 ? up : down;
    for (const row of sweep % 2 === 0 ? rows : [...rows].reverse()) {
      /** @type {Map<string, number>} */
      const weight = new Map();
      for (const id of row) {
        const list = near.get(id);
        const own = /** @type {number} */ (order.get(id));
        weight.set(id, list ? list.reduce((sum, o) => sum + /** @type {number} */ (order.get(o)), 0) / list.length : own);
      }
      row.sort((a, b) => /** @type {number} */ (weight.get(a)) - /** @type {number} */ (weight.get(b)));
      row.forEach((id, i) => order.set(id, i / row.length));
    }
  }
  /** @type {Map<string, Point>} */
  const places = new Map();
  let y = 0;
  for (const row of rows) {
    const lines = Math.ceil(row.length / rowMost);
    const length = Math.ceil(row.length / lines);
    for (let i = 0; i < row.length; i++) {
      const line = Math.floor(i / length);
      const inLine = Math.min(length, row.length - line * length);
      places.set(row[i], { x: ((i % length) - (inLine - 1) / 2) * (boxWidth + gapX), y: y + line * rowPitch });
    }
    y += lines * rowPitch;
  }
  return places;
}

/** The row of each box: below all who use it. @param {{ids: string[], arrows: Arrow[]}} c */
function ranks(c) {
  /** @type {Map<string, string[]>} */
  const below = new Map(c.ids.map((id) => [id, []]));
  /** @type {Map<string, number>} */
  const users = new Map(c.ids.map((id) => [id, 0]));
  for (const a of c.arrows) {
    below.get(a.from)?.push(a.to);
    users.set(a.to, (users.get(a.to) ?? 0) + 1);
  }
  /** @type {Map<string, number>} */
  const rank = new Map();
  const todo = c.ids.filter((id) => !users.get(id));
  for (const id of todo) rank.set(id, 0);
  for (let i = 0; i < todo.length; i++) {
    for (const next of below.get(todo[i]) ?? []) {
      rank.set(next, Math.max(rank.get(next) ?? 0, /** @type {number} */ (rank.get(todo[i])) + 1));
      const left = /** @type {number} */ (users.get(next)) - 1;
      users.set(next, left);
      if (left === 0) todo.push(next);
    }
  }
  return rank; // a cycle, which no graph has, stays in row 0
}

/**
 * Makes a fresh layout follow where boxes stood.
 * @param {string[]} ids @param {Map<string, Point>} fresh @param {Map<string, Point>} before
 */
function follow(ids, fresh, before) {
  const survivors = ids.filter((id) => before.has(id));
  const was = (/** @type {string} */ id) => /** @type {Point} */ (before.get(id));
  const is = (/** @type {string} */ id) => /** @type {Point} */ (fresh.get(id));
  const dy = commonest(survivors.map((id) => was(id).y - is(id).y));
  const dx = median(survivors.map((id) => was(id).x - is(id).x));
  /** @type {Map<number, {id: string, want: number, old: boolean}[]>} */
  const rows = new Map();
  for (const id of ids) {
    const y = is(id).y + dy;
    const old = before.has(id);
    let row = rows.get(y);
    if (!row) rows.set(y, (row = []));
    row.push({ id, want: old ? was(id).x : is(id).x + dx, old });
  }
  const step = boxWidth + gapX;
  for (const [y, row] of rows) {
    /** @type {number[]} */
    const taken = [];
    // Those that were in this row stay; then those that come from another.
    const rightful = (/** @type {{id: string, old: boolean}} */ b) => (b.old ? (was(b.id).y === y ? 0 : 1) : 2);
    row.sort((a, b) => rightful(a) - rightful(b) || a.want - b.want);
    for (const b of row) {
      const x = nearestFree(b.want, taken, step);
      taken.push(x);
      fresh.set(b.id, { x, y });
    }
  }
}

/** The place nearest to want that is `step` from all others. @param {number} want @param {number[]} taken @param {number} step */
function nearestFree(want, taken, step) {
  const free = (/** @type {number} */ x) => taken.every((t) => Math.abs(t - x) >= step - gapX / 2);
  if (free(want)) return want;
  let best = Infinity;
  for (const t of taken) {
    for (const x of [t - step, t + step]) if (free(x) && Math.abs(x - want) < Math.abs(best - want)) best = x;
  }
  return best;
}

/** @param {number[]} list */
function median(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** The value that occurs most often; of several the first. @param {number[]} list */
function commonest(list) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const v of list) counts.set(v, (counts.get(v) ?? 0) + 1);
  let best = list[0];
  for (const [v, n] of counts) if (n > /** @type {number} */ (counts.get(best))) best = v;
  return best;
}

/** @param {Picture} a @param {Picture} b */
function overlap(a, b) {
  return a.x0 < b.x1 + pictureGap / 2 && b.x0 < a.x1 + pictureGap / 2 && a.y0 < b.y1 + pictureGap / 2 && b.y0 < a.y1 + pictureGap / 2;
}

/** Boxes of two pictures are too near to each other. @param {Picture} a @param {Picture} b */
function touch(a, b) {
  if (!overlap(a, b)) return false;
  for (const p of a.places.values()) {
    for (const q of b.places.values()) {
      if (Math.abs(p.x - q.x) < boxWidth + gapX / 2 && Math.abs(p.y - q.y) < boxHeight + gapX / 2) return true;
    }
  }
  return false;
}

/** Puts pictures on shelves, in their order. @param {Picture[]} pictures */
function shelve(pictures) {
  const area = pictures.reduce((sum, p) => sum + (p.x1 - p.x0 + pictureGap) * (p.y1 - p.y0 + pictureGap), 0);
  const width = Math.sqrt(area * wide);
  let x = 0, y = 0, high = 0;
  for (const p of pictures) {
    if (x > 0 && x + p.x1 - p.x0 > width) {
      y += high + pictureGap;
      x = high = 0;
    }
    move(p, x - p.x0, y - p.y0);
    x = p.x1 + pictureGap;
    high = Math.max(high, p.y1 - p.y0);
  }
}

/** Moves a picture no farther than it must. @param {Picture} p @param {Picture[]} others */
function settle(p, others) {
  for (let tries = 0; tries < 2 * others.length + 2; tries++) {
    const other = others.find((o) => touch(p, o));
    if (!other) return;
    const right = other.x1 + pictureGap - p.x0;
    const down = other.y1 + pictureGap - p.y0;
    if (right <= down) move(p, right, 0);
    else move(p, 0, down);
  }
}

/** Looks for a place for a new picture, near the upper left. @param {Picture} p @param {Picture[]} others */
function findRoom(p, others) {
  const left = Math.min(...others.map((o) => o.x0));
  const top = Math.min(...others.map((o) => o.y0));
  const right = Math.max(...others.map((o) => o.x1));
  const bottom = Math.max(...others.map((o) => o.y1));
  let best = { cost: Infinity, x: left, y: bottom + pictureGap };
  const w = p.x1 - p.x0;
  const h = p.y1 - p.y0;
  const consider = (/** @type {number} */ x, /** @type {number} */ y) => {
    const extent = Math.max((Math.max(right, x + w) - left) / wide, Math.max(bottom, y + h) - top);
    const cost = extent * 1000 + (x - left) / wide + (y - top);
    if (cost >= best.cost) return;
    const at = { ...p, x0: x, y0: y, x1: x + w, y1: y + h };
    if (!others.some((o) => overlap(at, o))) best = { cost, x, y };
  };
  for (const o of others) {
    consider(o.x1 + pictureGap, o.y0);
    consider(o.x0, o.y1 + pictureGap);
    consider(o.x1 + pictureGap, top);
    consider(left, o.y1 + pictureGap);
  }
  move(p, best.x - p.x0, best.y - p.y0);
}

/**
 * The way of an arrow: a curve from the bottom of one box to the top of the
 * other, around boxes in the rows between.
 * @param {Point} from @param {Point} to @param {Map<number, number[]>} rows the boxes' columns, by row
 * @param {number} lane to keep arrows between the same boxes apart
 * @returns {Point[]}
 */
export function route(from, to, rows, lane = 0) {
  const start = { x: from.x + lane, y: from.y + boxHeight / 2 };
  const end = { x: to.x + lane, y: to.y - boxHeight / 2 };
  const points = [start];
  if (to.y > from.y) {
    const between = [...rows.keys()].filter((y) => y > from.y + 1 && y < to.y - 1).sort((a, b) => a - b);
    for (const y of between) {
      const last = points[points.length - 1];
      const straight = last.x + ((end.x - last.x) * (y - last.y)) / (end.y - last.y);
      const clear = boxWidth / 2 + 10;
      const columns = /** @type {number[]} */ (rows.get(y));
      let x = straight;
      const blocked = (/** @type {number} */ v) => columns.some((c) => Math.abs(c - v) < clear);
      if (blocked(x)) {
        let best = Infinity;
        for (const c of columns) {
          for (const side of [c - clear, c + clear]) if (!blocked(side) && Math.abs(side - straight) < Math.abs(best - straight)) best = side;
        }
        x = best;
      }
      points.push({ x, y: y - boxHeight / 2 }, { x, y: y + boxHeight / 2 });
    }
  }
  points.push(end);
  return points;
}

/** How far a curve between two points goes straight up or down. @param {Point} p @param {Point} q */
export function bendOf(p, q) {
  return q.y > p.y ? (q.y - p.y) / 2 : 60; // an arrow upwards leaves below all the same
}

/** A smooth path through points. @param {Point[]} points */
export function curve(points) {
  const n = (/** @type {number} */ v) => Math.round(v * 10) / 10;
  let d = `M${n(points[0].x)},${n(points[0].y)}`;
  for (let i = 1; i < points.length; i++) {
    const p = points[i - 1];
    const q = points[i];
    const bend = bendOf(p, q);
    d += ` C${n(p.x)},${n(p.y + bend)} ${n(q.x)},${n(q.y - bend)} ${n(q.x)},${n(q.y)}`;
  }
  return d;
}
