// What is drawn of a graph: boxes and arrows with their texts, made of the
// graph and of what else is known. Pure: the same goes to the screen, to SVG
// and to Graphviz.

import { diffGraphs, words } from "./model.js";
import { bytes, duration, percent, rate, shorten } from "./format.js";

/**
 * @typedef {import("./model.js").Graph} Graph
 * @typedef {"" | "added" | "removed" | "moved" | "changed"} Mark
 * @typedef {{id: string, kind: "node" | "job" | "export" | "user", title: string, full: string, lines: string[],
 *   hue: string, badges: {text: string, hint: string}[], progress?: number, mark: Mark, faded?: boolean, node?: string, job?: string, root?: number}} Box
 * @typedef {{id: string, from: string, to: string, label: string, hint: string, perm: string[], shared: string[],
 *   frozen: boolean, mark: Mark, read: number, write: number, operations: number}} Arrow
 * @typedef {{boxes: Box[], arrows: Arrow[]}} Display
 */

/**
 * What is known besides the graph. All of it is about the present.
 * @typedef {object} Facts
 * @property {Map<string, any>} [nodes] answers of x-query-graph, by name
 * @property {Map<number, any>} [roots] the same of users
 * @property {Map<string, boolean>} [frozen] by edge
 * @property {Map<string, any>} [images] answers of query-named-block-nodes
 * @property {Map<string, {read: number, write: number, operations: number}>} [rates] of edges
 * @property {Map<number, any>} [traffic] of users
 * @property {Map<string, any>} [jobs] by id, with `rate` and `left`
 */

// What fits into a box.
const lineMost = 28;

const hues = new Map(Object.entries({
  file: "storage", host_device: "storage", nbd: "storage", "null-co": "storage", "null-aio": "storage",
  qcow2: "format", raw: "format", luks: "format", "snapshot-access": "format",
}));

/** The colour of a driver: storage, format or filter. @param {string} driver */
export function hueOf(driver) {
  return hues.get(driver) ?? "filter";
}

/** The box of a user that is no node. @param {{id: number, job?: string}} root */
function rootBox(root) {
  return root.job !== undefined ? "j:" + root.job : "r:" + root.id;
}

/**
 * @param {Graph} graph
 * @param {Facts} facts
 * @param {Graph | null} [compare] the graph that differences are to
 * @returns {Display}
 */
export function display(graph, facts, compare = null) {
  const diff = compare ? diffGraphs(compare, graph) : null;
  const ghosts = diff && compare ? compare : null;
  /** @type {Map<string, Box>} */
  const boxes = new Map();
  const add = (/** @type {Graph} */ g, /** @type {boolean} */ ghost) => {
    for (const r of g.roots.values()) {
      const mark = diff?.roots.get(r.id) ?? "";
      if (ghost && mark !== "removed") continue;
      const id = rootBox(r);
      const have = boxes.get(id);
      if (!have) boxes.set(id, userBox(r, id, facts, mark));
      else if (have.mark !== mark) have.mark = have.mark === "removed" || mark === "removed" ? "" : have.mark && mark;
    }
    for (const n of g.nodes.values()) {
      const mark = diff?.nodes.get(n.name) ?? "";
      if (ghost ? mark === "removed" : true) boxes.set("n:" + n.name, nodeBox(n, facts, mark));
    }
  };
  add(graph, false);
  if (ghosts) add(ghosts, true);
  /** @type {Arrow[]} */
  const arrows = [];
  const addEdges = (/** @type {Graph} */ g, /** @type {boolean} */ ghost) => {
    for (const e of g.edges.values()) {
      let mark = /** @type {Mark} */ (diff?.edges.get(e.key) ?? "");
      if (ghost && mark !== "removed" && mark !== "moved") continue;
      if (ghost) mark = "removed";
      else if (mark === "moved") mark = "added";
      const root = e.parentRoot === undefined ? undefined : g.roots.get(e.parentRoot);
      const from = e.parentNode !== undefined ? "n:" + e.parentNode : root ? rootBox(root) : "r:" + e.parentRoot;
      const to = "n:" + e.child;
      if (!boxes.has(from) || !boxes.has(to)) continue;
      const r = ghost ? undefined : facts.rates?.get(e.key);
      const frozen = !ghost && (facts.frozen?.get(e.key) ?? false);
      arrows.push({
        id: e.key + (ghost ? "\nbefore" : ""), from, to, label: e.name, perm: e.perm, shared: e.shared, frozen, mark,
        hint: `uses ${words(e.perm)}; shares ${words(e.shared)}`, read: r?.read ?? 0, write: r?.write ?? 0, operations: r?.operations ?? 0,
      });
    }
  };
  addEdges(graph, false);
  if (ghosts) addEdges(ghosts, true);
  return { boxes: [...boxes.values()], arrows };
}

/** @param {{name: string, driver: string}} n @param {Facts} facts @param {Mark} mark @returns {Box} */
function nodeBox(n, facts, mark) {
  const fact = facts.nodes?.get(n.name);
  const image = facts.images?.get(n.name);
  const line = [n.driver];
  if (fact) {
    line.push(bytes(fact.size));
    if (fact["read-only"]) line.push("read-only");
    if (!fact.active) line.push("inactive");
  }
  const badges = [];
  for (const b of image?.["dirty-bitmaps"] ?? []) {
    badges.push({ text: `▦ ${shorten(b.name ?? "(a job's)", 10)} ${bytes(b.count)}`, hint: `dirty bitmap ${b.name ?? "of a job"}: ${bytes(b.count)} dirty, granularity ${bytes(b.granularity)}${b.persistent ? ", persistent" : ""}${b.recording ? "" : ", not recording"}${b.busy ? ", busy" : ""}` });
  }
  if (badges.length > 1) badges.splice(0, badges.length, { text: `▦ ${badges.length} bitmaps`, hint: badges.map((b) => b.hint).join("; ") });
  if (fact?.blockers.length) badges.push({ text: "⊘", hint: fact.blockers.map((/** @type {any} */ b) => b.reason).join("; ") });
  return { id: "n:" + n.name, kind: "node", title: shorten(n.name, 20), full: n.name, lines: [shorten(line.join(" · "), lineMost)], hue: hueOf(n.driver), badges, mark, node: n.name };
}

/** @param {{id: number, job?: string, label?: string}} r @param {string} id @param {Facts} facts @param {Mark} mark @returns {Box} */
function userBox(r, id, facts, mark) {
  if (r.job !== undefined) {
    const job = facts.jobs?.get(r.job);
    const box = /** @type {Box} */ ({ id, kind: "job", title: shorten(r.job, 20), full: "job " + r.job, lines: ["job"], hue: "job", badges: [], mark, job: r.job });
    if (job) {
      box.progress = percent(job["current-progress"], job["total-progress"]);
      const parts = [`${job.type} ${box.progress} %`];
      if (job.status !== "running") parts.push(job.status);
      else if (job.rate > 0) parts.push(rate(job.rate));
      if (job.status === "running" && Number.isFinite(job.left)) parts.push(duration(job.left));
      // What it is doing comes first; its kind is among the details.
      if (parts.join(" · ").length > lineMost) parts[0] = box.progress + " %";
      box.lines = [shorten(parts.join(" · "), lineMost)];
    }
    return box;
  }
  const fact = facts.roots?.get(r.id);
  if (fact?.export || r.label?.startsWith("export ")) {
    const name = fact?.export?.id ?? r.label?.slice("export ".length) ?? "";
    const clients = facts.traffic?.get(r.id)?.clients ?? fact?.export?.clients;
    const line = fact?.export ? `${fact.export.type} export · ${clients} client${clients === 1 ? "" : "s"}` : "export";
    return { id, kind: "export", title: shorten(name, 20), full: "export " + name, lines: [line], hue: "export", badges: [], mark, root: r.id };
  }
  const title = r.label ?? "user " + r.id;
  return { id, kind: "user", title: shorten(title, 20), full: title, lines: ["user of the graph"], hue: "user", badges: [], mark, root: r.id };
}

/** Boxes within reach of those that match a text, whole pictures. @param {Display} d @param {string} text */
export function matching(d, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return null;
  return new Set(d.boxes.filter((b) => (b.full + "\n" + b.lines.join("\n") + "\n" + b.kind).toLowerCase().includes(wanted)).map((b) => b.id));
}
