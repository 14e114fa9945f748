// The picture as a file: SVG that stands alone, in colours for light and dark,
// and Graphviz. Names come from images and clients: both escape them.

import { corner } from "./labels.js";
import { boxHeight, boxWidth, curve } from "./layout.js";

/**
 * @typedef {import("./display.js").Display} Display
 * @typedef {import("./layout.js").Point} Point
 */

/** What XML cannot hold, which is what Graphviz makes, too, becomes the sign for it. @param {string} s */
function printable(s) {
  return s.replace(/[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu, "\uFFFD");
}

/** @param {string} s */
function xml(s) {
  return printable(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}

const style = `
text{font:12px system-ui,sans-serif}.box rect{fill:#fff;stroke:#8c959f}.title{font-weight:600;fill:#1f2328}.line,.label{fill:#59636e;font-size:11px}
.arrow{fill:none;stroke:#8c959f}.head{fill:#8c959f}.added rect,.added.arrow{stroke:#1a7f37;stroke-width:2}.removed rect,.removed.arrow{stroke:#cf222e;stroke-dasharray:5 4}
.changed.arrow{stroke:#9a6700;stroke-width:2}.format .strip{fill:#0969da}.storage .strip{fill:#6e7781}.filter .strip{fill:#8250df}.job .strip{fill:#bc4c00}.export .strip{fill:#1a7f37}.user .strip{fill:#6e7781}
@media (prefers-color-scheme:dark){.box rect{fill:#161b22;stroke:#6e7681}.title{fill:#e6edf3}.line,.label{fill:#9198a1}.arrow{stroke:#6e7681}.head{fill:#6e7681}}
`;

/**
 * @param {Display} d
 * @param {Map<string, Point>} places
 * @param {(a: import("./display.js").Arrow) => Point[]} way of an arrow
 * @param {Map<string, import("./labels.js").Spot>} spots where the arrows' texts stand
 * @param {string} caption
 */
export function toSVG(d, places, way, spots, caption) {
  const ways = d.arrows.map(way);
  /** @type {(Point | null)[]} */
  const texts = d.arrows.map((a, i) => {
    const spot = spots.get(a.id);
    return spot && ways[i].length ? corner(ways[i], spot) : null;
  });
  let [x0, y0, x1, y1] = [0, 0, 0, 0];
  const include = (/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ w, /** @type {number} */ h) => {
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + w), Math.max(y1, y + h)];
  };
  for (const b of d.boxes) {
    const p = /** @type {Point} */ (places.get(b.id));
    include(p.x - boxWidth / 2, p.y - boxHeight / 2, boxWidth, boxHeight);
  }
  texts.forEach((at, i) => { if (at) include(at.x, at.y, 8 * d.arrows[i].label.length, 16); });
  [x0, y0] = [Math.floor(x0 - 24), Math.floor(y0 - 40)];
  const width = Math.ceil(x1 + 24 - x0);
  const height = Math.ceil(y1 + 24 - y0);
  const out = [`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="${x0} ${y0} ${width} ${height}">`,
    `<title>${xml(caption)}</title><style>${style}</style>`,
    `<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>`,
    `<text class="label" x="${x0 + 12}" y="${y0 + 20}">${xml(caption)}</text>`];
  d.arrows.forEach((a, i) => {
    const at = texts[i];
    if (!ways[i].length) return;
    out.push(`<g><title>${xml(a.hint)}</title><path class="arrow ${a.mark}" marker-end="url(#head)" d="${curve(ways[i])}"/>`
      + (at ? `<text class="label" x="${at.x.toFixed(1)}" y="${(at.y + 12).toFixed(1)}">${xml(a.label)}</text>` : "") + "</g>");
  });
  for (const b of d.boxes) {
    const at = /** @type {Point} */ (places.get(b.id));
    const x = at.x - boxWidth / 2;
    const y = at.y - boxHeight / 2;
    out.push(`<g class="box ${b.hue} ${b.mark}"><title>${xml(b.full)}</title><rect x="${x}" y="${y}" width="${boxWidth}" height="${boxHeight}" rx="7"/><path class="strip" d="M${x + 4},${y + 8}v${boxHeight - 16}h3v-${boxHeight - 16}z"/>`
      + `<text class="title" x="${x + 15}" y="${y + 21}">${xml(b.title)}</text>`
      + b.lines.map((l, i) => `<text class="line" x="${x + 15}" y="${y + 37 + 14 * i}">${xml(l)}</text>`).join("") + "</g>");
  }
  out.push("</svg>");
  return out.join("\n") + "\n";
}

/** @param {string} s */
function quote(s) {
  return '"' + printable(s).replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n").replace(/\r/g, "") + '"';
}

const dotColours = { added: "#1a7f37", removed: "#cf222e", moved: "#1a7f37", changed: "#9a6700", "": "" };

/** @param {Display} d @param {string} caption */
export function toDot(d, caption) {
  const out = ["digraph blocks {", `  label=${quote(caption)}; labelloc=t; rankdir=TB; fontname="sans-serif"; fontsize=11;`,
    `  node [shape=box, style=rounded, fontname="sans-serif", fontsize=11];`, `  edge [fontname="sans-serif", fontsize=9];`];
  const extra = (/** @type {import("./display.js").Mark} */ mark) => (mark ? `, color=${quote(dotColours[mark])}` + (mark === "removed" ? ", style=dashed" : "") : "");
  for (const b of d.boxes) {
    out.push(`  ${quote(b.id)} [label=${quote([b.full, ...b.lines].join("\n"))}${b.kind === "node" ? "" : ", shape=ellipse"}${extra(b.mark)}];`);
  }
  for (const a of d.arrows) out.push(`  ${quote(a.from)} -> ${quote(a.to)} [label=${quote(a.label)}, tooltip=${quote(a.hint)}${extra(a.mark)}];`);
  out.push("}");
  return out.join("\n") + "\n";
}
