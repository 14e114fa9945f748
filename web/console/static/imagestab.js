// The tab of images: every chain of images from its top down, with how full
// each is, and its bitmaps and snapshots.

import { bytes, percent } from "./format.js";
import { h, sync, setText } from "./dom.js";

/**
 * The rows of the table: top images, each followed by what it is over. An image
 * that several share comes below each.
 * @param {import("./model.js").Graph} graph
 * @param {Map<string, any>} images
 */
export function chains(graph, images) {
  /** @type {Map<string, Map<string, string>>} */
  const children = new Map();
  const under = new Set();
  for (const e of graph.edges.values()) {
    if (e.parentNode === undefined) continue;
    let own = children.get(e.parentNode);
    if (!own) children.set(e.parentNode, (own = new Map()));
    own.set(e.name, e.child);
    under.add(e.child);
  }
  /** @type {{key: string, name: string, depth: number, image: any, storage: string | undefined}[]} */
  const rows = [];
  const add = (/** @type {string} */ name, /** @type {number} */ depth, /** @type {string} */ way, /** @type {Set<string>} */ seen) => {
    const own = children.get(name) ?? new Map();
    // What only stores another's bytes is told with that one.
    rows.push({ key: way + "\n" + name, name, depth, image: images.get(name), storage: own.get("backing") !== undefined || !own.size ? own.get("file") : undefined });
    if (seen.has(name)) return;
    const next = new Set(seen).add(name);
    const below = own.get("backing") ?? (isFilter(graph, name) ? own.get("file") ?? [...own.values()][0] : undefined);
    if (below !== undefined) add(below, depth + 1, way + "\n" + name, next);
  };
  for (const n of graph.nodes.values()) if (!under.has(n.name)) add(n.name, 0, "", new Set());
  // Nodes that others use, but in no chain that was shown: of several children.
  const shown = new Set(rows.map((r) => r.name));
  for (const n of graph.nodes.values()) if (!shown.has(n.name) && children.get(n.name)?.size) add(n.name, 0, "", new Set());
  return rows;
}

const formats = new Set(["qcow2", "luks", "raw", "file", "host_device", "nbd", "null-co", "null-aio"]);

/** @param {import("./model.js").Graph} graph @param {string} name */
function isFilter(graph, name) {
  return !formats.has(graph.nodes.get(name)?.driver ?? "file");
}

export class ImagesTab {
  /** @param {import("./daemon.js").Daemon} daemon */
  constructor(daemon) {
    this.daemon = daemon;
    this.title = "Images";
    this.body = h("tbody");
    this.none = h("div", { class: "empty", text: "No images are open." });
    this.table = h("table", {}, h("thead", {}, h("tr", {}, ...["Node", "Format", "File"].map((text) => h("th", { scope: "col", text })),
      ...["Length", "On the host"].map((text) => h("th", { scope: "col", class: "num", text })), ...["Fill", "Bitmaps and snapshots"].map((text) => h("th", { scope: "col", text })))), this.body);
    this.filter = h("input", { type: "search", class: "field", placeholder: "Filter", "aria-label": "Filter images", oninput: () => this.draw() });
    this.element = h("section", { role: "tabpanel", "aria-label": "Images" }, h("div", { class: "bar-line" }, this.filter), h("div", { class: "scroll" }, this.none, this.table));
    this.pending = false;
    for (const what of ["images", "graph"]) daemon.addEventListener(what, () => this.later());
  }

  later() {
    if (this.pending || !this.daemon.looking.has("images")) return;
    this.pending = true;
    setTimeout(() => {
      this.pending = false;
      this.draw();
    }, 16);
  }

  /** @param {boolean} on */
  show(on) {
    if (!on) {
      this.daemon.looking.delete("images");
      return;
    }
    this.daemon.looking.add("images");
    this.daemon.ask("images");
    this.draw();
  }

  draw() {
    const { history, facts } = this.daemon;
    if (!history) return;
    const wanted = this.filter.value.trim().toLowerCase();
    const rows = chains(history.live, facts.images ?? new Map()).filter((r) => !wanted || (r.name + "\n" + (r.image?.file ?? "") + "\n" + (r.image?.drv ?? "")).toLowerCase().includes(wanted));
    this.none.hidden = rows.length > 0;
    this.table.hidden = rows.length === 0;
    sync(this.body, rows, (r) => r.key, () => h("tr"), (tr, r) => {
      const text = JSON.stringify([r.depth, r.image]);
      if (tr.shown === text) return;
      tr.shown = text;
      const i = r.image?.image;
      const virtual = i?.["virtual-size"];
      const actual = i?.["actual-size"];
      const part = virtual && actual !== undefined ? percent(actual, virtual) : undefined;
      const name = h("span", { text: r.name, class: r.depth ? "chain" : "" });
      name.style.marginLeft = r.depth * 18 + "px";
      const fill = h("i");
      fill.style.width = (part ?? 0) + "%";
      const extras = [...(r.image?.["dirty-bitmaps"] ?? []).map((/** @type {any} */ b) => `▦ ${b.name ?? "(a job's)"}: ${bytes(b.count)} dirty`),
        ...(i?.snapshots ?? []).map((/** @type {any} */ s) => `◷ ${s.name}`)];
      tr.replaceChildren(h("td", {}, name), h("td", { text: [r.image?.drv ?? history.live.nodes.get(r.name)?.driver, r.image?.ro ? "read-only" : "", r.image?.encrypted ? "encrypted" : ""].filter(Boolean).join(", ") }),
        h("td", { class: "mono", text: r.image?.file ?? "" }), h("td", { class: "num", text: virtual === undefined ? "" : bytes(virtual) }), h("td", { class: "num", text: actual === undefined ? "" : bytes(actual) }),
        h("td", {}, part === undefined ? null : h("div", { class: "progress fill", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": part, "aria-label": "Fill of " + r.name, title: part + " % of its length is on the host" }, fill)),
        h("td", {}, ...extras.map((text) => h("div", { text }))));
    });
    setText(this.none, wanted ? "Nothing matches." : "No images are open.");
  }
}
