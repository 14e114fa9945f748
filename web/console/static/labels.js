// Where the texts of arrows stand: beside their arrow, near its middle, over no
// box and over no other text. Each takes the first free place of a list that
// goes from the middle outwards, so that a text moves only when it must.

import { bendOf, boxHeight, boxWidth } from "./layout.js";

/**
 * @typedef {import("./layout.js").Point} Point
 * @typedef {{width: number, height: number}} Size what a text takes, in the picture's units
 * @typedef {{t: number, dx: number, dy: number}} Spot the upper left corner, from the point at t (0 to 1) of the arrow's way
 * @typedef {{x0: number, y0: number, x1: number, y1: number}} Area
 */

// From the arrow to its text, and between texts.
const beside = 6;
const apart = 2;
const cell = 128;

/** Areas that are taken, found by where they are. */
class Taken {
  constructor() {
    /** @type {Map<string, Area[]>} */
    this.cells = new Map();
  }

  /** @param {Area} a @param {(list: Area[]) => boolean} found true: no more */
  each(a, found) {
    for (let x = Math.floor(a.x0 / cell); x <= Math.floor(a.x1 / cell); x++) {
      for (let y = Math.floor(a.y0 / cell); y <= Math.floor(a.y1 / cell); y++) {
        const key = x + " " + y;
        let list = this.cells.get(key);
        if (!list) this.cells.set(key, (list = []));
        if (found(list)) return true;
      }
    }
    return false;
  }

  /** @param {Area} a */
  add(a) { this.each(a, (list) => { list.push(a); return false; }); }

  /** @param {Area} a */
  free(a) {
    return !this.each(a, (list) => list.some((b) => a.x0 < b.x1 + apart && b.x0 < a.x1 + apart && a.y0 < b.y1 + apart && b.y0 < a.y1 + apart));
  }
}

/** The point of a way, which is drawn as layout.js has it. @param {Point[]} way @param {number} t 0 to 1 @returns {Point} */
export function pointAt(way, t) {
  const last = way.length - 2;
  const i = Math.min(last, Math.floor(t * (last + 1)));
  const p = way[i];
  const q = way[i + 1];
  const u = t * (last + 1) - i;
  const v = 1 - u;
  const bend = bendOf(p, q);
  return {
    x: p.x + (q.x - p.x) * (3 * u * u - 2 * u * u * u),
    y: p.y * v * v * v + 3 * (p.y + bend) * v * v * u + 3 * (q.y - bend) * v * u * u + q.y * u * u * u,
  };
}

// Along the way, the middle first; the ends are where arrows meet.
const along = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82, 0.12, 0.88];

/** Places away from the arrow, the nearest first: where there is no room beside it. */
const away = (() => {
  const list = [];
  for (let x = -14; x <= 14; x++) for (let y = -14; y <= 14; y++) list.push({ x: x * 16, y: y * 8 });
  return list.sort((a, b) => Math.hypot(a.x, a.y) - Math.hypot(b.x, b.y));
})();

/**
 * @param {Iterable<Point>} boxes
 * @param {{id: string, way: Point[], size: Size}[]} texts
 * @returns {Map<string, Spot>} those without a spot have no room: they are not shown
 */
export function placeLabels(boxes, texts) {
  const taken = new Taken();
  for (const p of boxes) taken.add({ x0: p.x - boxWidth / 2, y0: p.y - boxHeight / 2, x1: p.x + boxWidth / 2, y1: p.y + boxHeight / 2 });
  /** @type {Map<string, Spot>} */
  const spots = new Map();
  for (const { id, way, size } of texts) {
    const spot = find(taken, way, size);
    if (!spot) continue;
    const at = corner(way, spot);
    taken.add({ x0: at.x, y0: at.y, x1: at.x + size.width, y1: at.y + size.height });
    spots.set(id, spot);
  }
  return spots;
}

/** @param {Taken} taken @param {Point[]} way @param {Size} size @returns {Spot | null} */
function find(taken, way, size) {
  const fits = (/** @type {Spot} */ s) => {
    const at = corner(way, s);
    return taken.free({ x0: at.x, y0: at.y, x1: at.x + size.width, y1: at.y + size.height });
  };
  const dy = -size.height / 2;
  const parts = way.length - 1;
  // Of a way around boxes the first part is looked at first: it begins at who has the name.
  for (let part = 0; part < parts; part++) {
    for (const u of along) {
      for (const dx of [beside, -beside - size.width]) {
        const spot = { t: (part + u) / parts, dx, dy };
        if (fits(spot)) return spot;
      }
    }
  }
  for (const by of away) {
    const spot = { t: 0.5 / parts, dx: by.x - size.width / 2, dy: by.y + dy };
    if (fits(spot)) return spot;
  }
  return null;
}

/** The upper left corner of a text. @param {Point[]} way @param {Spot} spot @returns {Point} */
export function corner(way, spot) {
  const p = pointAt(way, spot.t);
  return { x: p.x + spot.dx, y: p.y + spot.dy };
}
