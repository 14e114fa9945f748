// The picture of the graph on the screen: SVG of our own, brought to what is to
// be shown by touching only what differs, with moves drawn out so that the eye
// can follow. Pan by dragging, zoom by the wheel; all of it by keys, too.

import { arrange, boxHeight, boxWidth, curve, noLayout, route } from "./layout.js";
import { corner, placeLabels } from "./labels.js";
import { bytes, rate } from "./format.js";
import { words } from "./model.js";
import { h, set, setText, svg, sync } from "./dom.js";

/**
 * @typedef {import("./display.js").Box} Box
 * @typedef {import("./display.js").Arrow} Arrow
 * @typedef {import("./display.js").Display} Display
 * @typedef {import("./layout.js").Point} Point
 */

const moveTime = 320;
// A line of an arrow's text: its font's height, and how far below its upper edge the letters stand.
const lineHeight = 15;
const ascent = 12;
// The room for rates is kept in such steps: they change each second, and places should not.
const rateStep = 32;
// Where the text of an arrow is that has no room: it is seen only while the arrow is pointed at.
const noRoom = { t: 0.5, dx: 7, dy: 0 };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class GraphView {
  /** @param {HTMLElement} frame @param {(box: Box | null) => void} onSelect */
  constructor(frame, onSelect) {
    this.frame = frame;
    this.onSelect = onSelect;
    this.layout = noLayout();
    /** Where boxes have ever stood, so that what comes back finds its place. @type {Map<string, Point>} */
    this.memory = new Map();
    /** Where boxes are drawn, which follows the layout. @type {Map<string, Point>} */
    this.at = new Map();
    /** @type {Display} */
    this.shown = { boxes: [], arrows: [] };
    /** @type {Map<string, any>} */ this.boxes = new Map();
    /** @type {Map<string, any>} */ this.arrows = new Map();
    /** @type {Map<string, Box>} */ this.byID = new Map();
    this.structure = "";
    /** Where arrows' texts stand, by arrow. @type {Map<string, import("./labels.js").Spot>} */
    this.spots = new Map();
    /** What they were placed for. */
    this.texts = "";
    this.selected = "";
    /** @type {Set<string> | null} */
    this.found = null;
    this.view = { x: 0, y: 0, k: 1 };
    this.fitted = false;
    this.touched = false;
    this.moving = 0;
    /** How long the last drawing took, in milliseconds. */
    this.cost = 0;

    this.arrowLayer = svg("g", { class: "arrows", "aria-hidden": "true" });
    this.boxLayer = svg("g", { class: "boxes" });
    this.scene = svg("g", {}, this.arrowLayer, this.boxLayer);
    this.svg = svg("svg", { class: "graph", role: "application", "aria-label": "Block graph. Arrow keys move between boxes, plus and minus zoom, F fits, T tidies.", tabindex: "0" },
      svg("defs", {}, ...["", "added", "removed", "changed", "busy"].map((m) => svg("marker", { id: "head" + m, markerWidth: 8, markerHeight: 8, refX: 7, refY: 4, orient: "auto", markerUnits: "userSpaceOnUse" }, svg("path", { class: "head " + m, d: "M0,0 L8,4 L0,8 z" })))),
      this.scene);
    this.tip = h("div", { class: "tip", role: "tooltip", hidden: true });
    frame.append(this.svg, this.tip);
    this.listen();
  }

  listen() {
    const s = this.svg;
    /** @type {{x: number, y: number, id: number} | null} */
    let drag = null;
    s.addEventListener("pointerdown", (/** @type {PointerEvent} */ e) => {
      if (e.button !== 0) return;
      const box = this.boxAt(e.target);
      this.select(box ? box.id : "");
      if (!box) {
        drag = { x: e.clientX - this.view.x, y: e.clientY - this.view.y, id: e.pointerId };
        s.setPointerCapture(e.pointerId);
      }
    });
    s.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => {
      if (drag) {
        this.touched = true;
        this.look({ x: e.clientX - drag.x, y: e.clientY - drag.y, k: this.view.k });
      } else this.hint(e.target, e.clientX, e.clientY);
    });
    const drop = () => { drag = null; };
    s.addEventListener("pointerup", drop);
    s.addEventListener("pointercancel", drop);
    s.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    s.addEventListener("wheel", (/** @type {WheelEvent} */ e) => {
      e.preventDefault();
      const r = s.getBoundingClientRect();
      this.zoom(Math.exp(-e.deltaY / 500), e.clientX - r.left, e.clientY - r.top);
    }, { passive: false });
    s.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => this.key(e));
    new ResizeObserver(() => { if (!this.touched) this.fit(); }).observe(this.frame);
  }

  /** @param {any} target @returns {Box | null} */
  boxAt(target) {
    const g = target.closest?.("g.box");
    return g ? this.byID.get(g.syncKey) ?? null : null;
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const ways = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const way = ways[/** @type {keyof typeof ways} */ (e.key)];
    if (way) this.step(way[0], way[1]);
    else if (e.key === "+" || e.key === "=") this.zoom(1.25);
    else if (e.key === "-") this.zoom(0.8);
    else if (e.key === "f" || e.key === "0") this.fit();
    else if (e.key === "t") this.tidy();
    else if (e.key === "Escape") this.select("");
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  /** Selects the next box in a direction. @param {number} dx @param {number} dy */
  step(dx, dy) {
    const from = this.layout.places.get(this.selected);
    let best = "";
    let least = Infinity;
    for (const [id, p] of this.layout.places) {
      if (!from) {
        if (p.x + 2 * p.y < least) {
          least = p.x + 2 * p.y;
          best = id;
        }
        continue;
      }
      const along = (p.x - from.x) * dx + (p.y - from.y) * dy;
      const aside = Math.abs((p.x - from.x) * dy) + Math.abs((p.y - from.y) * dx);
      if (along > 1 && along + 2 * aside < least) {
        least = along + 2 * aside;
        best = id;
      }
    }
    if (best) {
      this.select(best);
      this.reveal(best);
    }
  }

  /** @param {string} id */
  select(id) {
    if (this.selected === id) return;
    const paint = () => {
      const e = this.boxes.get(this.selected);
      if (e) {
        e.g.classList.toggle("selected");
        e.g.setAttribute("aria-selected", e.g.classList.contains("selected") ? "true" : "false");
      }
    };
    paint();
    this.selected = id;
    paint();
    const e = this.boxes.get(id);
    if (e) this.svg.setAttribute("aria-activedescendant", e.g.id);
    else this.svg.removeAttribute("aria-activedescendant");
    this.onSelect(this.byID.get(id) ?? null);
  }

  /** Moves the view so that a box is in it. @param {string} id */
  reveal(id) {
    const p = this.layout.places.get(id);
    if (!p) return;
    const { width, height } = this.svg.getBoundingClientRect();
    const x = p.x * this.view.k + this.view.x;
    const y = p.y * this.view.k + this.view.y;
    const marginX = Math.min(140, width / 3);
    const marginY = Math.min(80, height / 3);
    const dx = x < marginX ? marginX - x : x > width - marginX ? width - marginX - x : 0;
    const dy = y < marginY ? marginY - y : y > height - marginY ? height - marginY - y : 0;
    if (dx || dy) {
      this.touched = true;
      this.look({ x: this.view.x + dx, y: this.view.y + dy, k: this.view.k });
    }
  }

  /** @param {{x: number, y: number, k: number}} view */
  look(view) {
    this.view = view;
    this.scene.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.k})`);
    this.svg.classList.toggle("far", view.k < 0.45);
  }

  /** @param {number} by @param {number} [cx] @param {number} [cy] the point that stays */
  zoom(by, cx, cy) {
    const r = this.svg.getBoundingClientRect();
    cx ??= r.width / 2;
    cy ??= r.height / 2;
    const k = Math.min(3, Math.max(0.03, this.view.k * by));
    const f = k / this.view.k;
    this.touched = true;
    this.look({ x: cx - (cx - this.view.x) * f, y: cy - (cy - this.view.y) * f, k });
  }

  /** Shows everything. */
  fit() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width || !this.layout.places.size) return;
    let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
    for (const p of this.layout.places.values()) {
      x0 = Math.min(x0, p.x - boxWidth / 2);
      x1 = Math.max(x1, p.x + boxWidth / 2);
      y0 = Math.min(y0, p.y - boxHeight / 2);
      y1 = Math.max(y1, p.y + boxHeight / 2);
    }
    const top = 48, bottom = 40; // for the banner and the legend
    const k = Math.max(0.03, Math.min(1.15, (width - 48) / (x1 - x0), (height - top - bottom) / (y1 - y0)));
    this.touched = false;
    this.look({ x: width / 2 - ((x0 + x1) / 2) * k, y: top + (height - top - bottom) / 2 - ((y0 + y1) / 2) * k, k });
  }

  /** Lays everything out anew. */
  tidy() {
    this.layout = noLayout();
    this.memory.clear();
    this.structure = "";
    for (const e of this.arrows.values()) e.room = 0;
    this.show(this.shown);
    this.fit();
  }

  /** Draws. @param {Display} d */
  show(d) {
    const begin = performance.now();
    const structure = d.boxes.map((b) => b.id).join("\n") + "\n\n" + d.arrows.map((a) => a.from + ">" + a.to).join("\n");
    const first = this.shown.boxes.length === 0;
    this.shown = d;
    this.byID = new Map(d.boxes.map((b) => [b.id, b]));
    let moved = false;
    if (structure !== this.structure) {
      this.structure = structure;
      const before = { places: new Map([...this.memory, ...this.layout.places]), pictures: this.layout.pictures };
      this.layout = arrange(d.boxes.map((b) => b.id), d.arrows, before);
      for (const [id, p] of this.layout.places) this.memory.set(id, p);
      if (this.memory.size > 4000) this.memory = new Map(this.layout.places);
      moved = true;
    }
    this.drawBoxes(d);
    this.drawArrows(d);
    const settled = this.settle(d, moved);
    if (moved) this.begin(first);
    else if (settled) this.place();
    if (moved && (first || !this.touched)) this.fit();
    this.cost = performance.now() - begin;
  }

  /** @param {Display} d */
  drawBoxes(d) {
    const made = new Set();
    sync(this.boxLayer, d.boxes, (b) => b.id, (b) => {
      const e = {
        g: svg("g", { class: "box", role: "img", id: "box" + GraphView.next++ }), rect: svg("rect", { width: boxWidth, height: boxHeight, rx: 8 }),
        strip: svg("path", { class: "strip", d: `M5,10v${boxHeight - 20}` }), title: svg("text", { class: "title", x: 16, y: 23 }),
        line: svg("text", { class: "line", x: 16, y: 41 }), badges: svg("g", { class: "badges" }), bar: /** @type {any} */ (null),
      };
      e.g.append(e.rect, e.strip, e.title, e.line, e.badges);
      this.boxes.set(b.id, e);
      made.add(b.id);
      return e.g;
    }, (_, b) => {
      const e = this.boxes.get(b.id);
      const faded = this.found && !this.found.has(b.id);
      set(e.g, "class", `box ${b.kind} ${b.hue} ${b.mark}${faded ? " faded" : ""}${b.id === this.selected ? " selected" : ""}`);
      set(e.g, "data-title", b.full);
      set(e.g, "aria-label", `${b.full}: ${b.lines.join(", ")}${b.mark ? ", " + b.mark : ""}`);
      setText(e.title, b.title);
      setText(e.line, b.lines[0] ?? "");
      if (b.progress !== undefined) {
        if (!e.bar) {
          e.bar = svg("rect", { class: "bar", x: 16, y: 48, height: 4, rx: 2 });
          e.g.append(svg("rect", { class: "track", x: 16, y: 48, width: boxWidth - 30, height: 4, rx: 2 }), e.bar);
        }
        set(e.bar, "width", String(((boxWidth - 30) * b.progress) / 100));
      }
      if (e.bar) e.g.classList.toggle("no-progress", b.progress === undefined);
      const badges = b.badges.map((x) => x.text).join("   ");
      if (e.badgeText !== badges) {
        e.badgeText = badges;
        e.badges.replaceChildren(...(badges ? [svg("text", { class: "badge", x: 16, y: 54, text: badges })] : []));
        set(e.line, "y", badges ? "38" : "41");
      }
    });
    for (const id of this.boxes.keys()) {
      if (this.byID.has(id)) continue;
      this.boxes.delete(id);
      this.at.delete(id);
    }
    if (this.selected && !this.byID.has(this.selected)) this.select("");
  }

  /** @param {Display} d */
  drawArrows(d) {
    /** @type {Set<string>} */
    const alive = new Set();
    sync(this.arrowLayer, d.arrows, (a) => a.id, (a) => {
      const e = { g: svg("g"), path: svg("path", { class: "line" }), hit: svg("path", { class: "hit" }), label: svg("text", { class: "label" }), rate: svg("text", { class: "rate" }), d: "", room: 0 };
      e.g.append(e.path, e.hit, e.label, e.rate);
      this.arrows.set(a.id, e);
      return e.g;
    }, (_, a) => {
      const e = this.arrows.get(a.id);
      alive.add(a.id);
      e.arrow = a;
      const busy = a.read + a.write > 0;
      const faded = this.found && !(this.found.has(a.from) && this.found.has(a.to));
      set(e.g, "class", `arrow ${a.mark}${busy ? " busy" : ""}${a.frozen ? " frozen" : ""}${faded ? " faded" : ""}`);
      set(e.g, "data-edge", `${a.from} ${a.label} ${a.to}`);
      set(e.path, "marker-end", `url(#head${a.mark === "moved" ? "added" : a.mark || (busy ? "busy" : "")})`);
      // A MiB a second is twice as wide as none; a hundred, thrice.
      set(e.path, "stroke-width", busy ? (1.5 + Math.min(4, Math.log10(1 + (a.read + a.write) / 65536))).toFixed(1) : "1.5");
      setText(e.label, (a.frozen ? "❄ " : "") + a.label);
      setText(e.rate, busy ? [a.read ? "r " + rate(a.read) : "", a.write ? "w " + rate(a.write) : ""].filter(Boolean).join("  ") : "");
    });
    for (const id of this.arrows.keys()) if (!alive.has(id)) this.arrows.delete(id);
    this.lanes = lanesOf(d.arrows);
  }

  /** Begins to move boxes to their places. @param {boolean} first */
  begin(first) {
    cancelAnimationFrame(this.moving);
    /** @type {Map<string, Point>} */
    const from = new Map();
    for (const [id, to] of this.layout.places) {
      const at = this.at.get(id);
      if (!at) {
        this.at.set(id, to); // new ones appear where they belong
        this.boxes.get(id)?.g.classList.add("fresh");
      } else if (at.x !== to.x || at.y !== to.y) from.set(id, at);
    }
    if (first || calm.matches || !from.size || document.visibilityState === "hidden") {
      for (const [id, to] of this.layout.places) this.at.set(id, to);
      this.place();
      return;
    }
    const begin = performance.now();
    const frame = () => {
      const t = Math.min(1, (performance.now() - begin) / moveTime);
      const ease = 1 - (1 - t) ** 3;
      for (const [id, p] of from) {
        const to = this.layout.places.get(id);
        if (to) this.at.set(id, { x: p.x + (to.x - p.x) * ease, y: p.y + (to.y - p.y) * ease });
      }
      this.place();
      if (t < 1) this.moving = requestAnimationFrame(frame);
    };
    frame();
  }

  /** Puts boxes and arrows where they are. */
  place() {
    for (const [id, e] of this.boxes) {
      const p = this.at.get(id);
      if (p) set(e.g, "transform", `translate(${p.x - boxWidth / 2} ${p.y - boxHeight / 2})`);
    }
    const rows = this.rows();
    for (const e of this.arrows.values()) {
      const points = this.way(e.arrow, this.at, rows);
      if (!points) continue;
      const d = curve(points);
      if (d !== e.d) {
        e.d = d;
        e.path.setAttribute("d", d);
        e.hit.setAttribute("d", d);
      }
      const spot = this.spots.get(e.arrow.id);
      set(e.g, "data-room", spot ? "yes" : "no");
      const at = corner(points, spot ?? noRoom);
      for (const [text, y] of [[e.label, at.y + ascent], [e.rate, at.y + lineHeight + ascent]]) {
        set(text, "x", at.x.toFixed(1));
        set(text, "y", y.toFixed(1));
      }
    }
  }

  /**
   * Finds places for arrows' texts, where boxes will be; false: nothing has changed that they depend on.
   * @param {Display} d @param {boolean} moved
   */
  settle(d, moved) {
    /** @type {{id: string, size: import("./labels.js").Size}[]} */
    const list = [];
    const sizes = [];
    for (const a of d.arrows) {
      const e = this.arrows.get(a.id);
      const rates = e.rate.textContent;
      // Whoever has had traffic keeps the room for it.
      if (rates) e.room = Math.max(e.room, Math.ceil(textWidth(rates, 600) / rateStep) * rateStep);
      const size = { width: Math.max(textWidth(e.label.textContent, 400), e.room), height: e.room ? 2 * lineHeight : lineHeight };
      sizes.push(size.width, size.height);
      list.push({ id: a.id, size });
    }
    const texts = sizes.join();
    if (!moved && texts === this.texts) return false;
    this.texts = texts;
    const rows = this.rows();
    /** @type {{id: string, size: import("./labels.js").Size, way: Point[]}[]} */
    const ways = [];
    d.arrows.forEach((a, i) => {
      const way = this.way(a, this.layout.places, rows);
      if (way) ways.push({ ...list[i], way });
    });
    this.spots = placeLabels(this.layout.places.values(), ways);
    return true;
  }

  /** The columns of boxes, by row, as they will be. */
  rows() {
    /** @type {Map<number, number[]>} */
    const rows = new Map();
    for (const p of this.layout.places.values()) {
      const row = rows.get(p.y);
      if (row) row.push(p.x);
      else rows.set(p.y, [p.x]);
    }
    return rows;
  }

  /** @param {Arrow} a @param {Map<string, Point>} at @param {Map<number, number[]>} rows */
  way(a, at, rows) {
    const from = at.get(a.from);
    const to = at.get(a.to);
    return from && to ? route(from, to, rows, this.lanes?.get(a.id) ?? 0) : null;
  }

  /** Shows what is to be said of what the pointer is at. @param {any} target @param {number} x @param {number} y */
  hint(target, x, y) {
    const box = this.boxAt(target);
    const arrow = box ? null : [...this.arrows.values()].find((e) => e.hit === target)?.arrow;
    if (!box && !arrow) {
      this.tip.hidden = true;
      return;
    }
    const key = box ? "b" + box.id : "a" + arrow.id;
    if (this.tip.hidden || this.tip.key !== key) {
      this.tip.key = key;
      this.tip.replaceChildren(...(box ? boxHint(box) : arrowHint(arrow)));
      this.tip.hidden = false;
    }
    const f = this.frame.getBoundingClientRect();
    const w = this.tip.offsetWidth;
    const left = Math.min(x - f.left + 14, f.width - w - 8);
    this.tip.style.left = Math.max(8, left) + "px";
    this.tip.style.top = Math.min(y - f.top + 16, f.height - this.tip.offsetHeight - 8) + "px";
  }

  /** Dims what is not in the set. @param {Set<string> | null} ids */
  find(ids) {
    this.found = ids;
    this.show(this.shown);
    if (ids?.size) this.reveal([...ids][0]);
  }
}
GraphView.next = 1;

/** Widths of texts, by weight and text. @type {Map<string, number>} */
const widths = new Map();
/** @type {CanvasRenderingContext2D | null} */
let ruler = null;

/** How wide an arrow's text is. @param {string} text @param {number} weight */
function textWidth(text, weight) {
  const key = weight + text;
  let width = widths.get(key);
  if (width === undefined) {
    ruler ??= document.createElement("canvas").getContext("2d");
    if (!ruler) return text.length * 8;
    ruler.font = `${weight} 11px ${getComputedStyle(document.body).fontFamily}`;
    width = Math.ceil(ruler.measureText(text).width) + 1;
    if (widths.size > 4000) widths.clear(); // rates are all different
    widths.set(key, width);
  }
  return width;
}

/** @param {Box} b */
function boxHint(b) {
  return [h("b", { text: b.full }), ...[...b.lines, ...b.badges.map((x) => x.hint)].map((text) => h("div", { text }))];
}

/** @param {Arrow} a */
export function arrowHint(a) {
  const list = [h("b", { text: a.label }), h("div", { text: "uses " + words(a.perm) }), h("div", { text: "shares " + words(a.shared) })];
  if (a.frozen) list.push(h("div", { text: "frozen: a job or a filter relies on it" }));
  if (a.operations > 0) list.push(h("div", { text: `${Math.round(a.operations)} requests/s, reads ${bytes(a.read)}/s, writes ${bytes(a.write)}/s` }));
  return list;
}

/** How far arrows between the same boxes are apart. @param {Arrow[]} arrows */
function lanesOf(arrows) {
  /** @type {Map<string, string[]>} */
  const pairs = new Map();
  for (const a of arrows) {
    const k = a.from + "\n\n" + a.to;
    const list = pairs.get(k);
    if (list) list.push(a.id);
    else pairs.set(k, [a.id]);
  }
  /** @type {Map<string, number>} */
  const lanes = new Map();
  for (const list of pairs.values()) {
    if (list.length > 1) list.forEach((id, i) => lanes.set(id, (i - (list.length - 1) / 2) * 44));
  }
  return lanes;
}
