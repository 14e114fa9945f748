// The block graph as data, and its history: steps are applied forward and
// backward. Nothing here knows of pictures or of the network.

/**
 * @typedef {{name: string, driver: string}} GraphNode
 * @typedef {{id: number, job?: string, label?: string}} GraphRoot
 * @typedef {{key: string, parentNode?: string, parentRoot?: number, name: string, child: string,
 *   perm: string[], shared: string[]}} GraphEdge
 * @typedef {{nodes: Map<string, GraphNode>, roots: Map<number, GraphRoot>, edges: Map<string, GraphEdge>}} Graph
 * @typedef {{number: number, timestamp: {seconds: number, microseconds: number}, cause: any, changes: any[]}} Step
 */

/** @returns {Graph} */
export function emptyGraph() {
  return { nodes: new Map(), roots: new Map(), edges: new Map() };
}

/** @param {Graph} g @returns {Graph} */
export function cloneGraph(g) {
  return { nodes: new Map(g.nodes), roots: new Map(g.roots), edges: new Map(g.edges) };
}

/** The user of an edge, as a change or an answer names it. @param {any} e */
export function userKey(e) {
  return e["parent-node"] !== undefined ? "n:" + e["parent-node"] : "r:" + e["parent-root"];
}

/** An edge is its user's, by name. @param {any} e */
export function edgeKey(e) {
  return userKey(e) + "\n" + e.name;
}

/** @param {any} e @param {string} child @param {string[]} perm @param {string[]} shared @returns {GraphEdge} */
function makeEdge(e, child, perm, shared) {
  return { key: edgeKey(e), parentNode: e["parent-node"], parentRoot: e["parent-root"], name: e.name, child, perm, shared };
}

/** The graph of an answer of x-query-graph. @param {any} view @returns {Graph} */
export function graphOfView(view) {
  const g = emptyGraph();
  for (const n of view.nodes) g.nodes.set(n["node-name"], { name: n["node-name"], driver: n.driver });
  for (const r of view.roots) g.roots.set(r.root, { id: r.root, job: r.job, label: r.label });
  for (const e of view.edges) {
    const edge = makeEdge(e, e.child, e.perm, e["shared-perm"]);
    g.edges.set(edge.key, edge);
  }
  return g;
}

/** Makes what a step says. @param {Graph} g @param {Step} step */
export function applyStep(g, step) {
  for (const c of step.changes) {
    switch (c.type) {
      case "node-added": g.nodes.set(c["node-name"], { name: c["node-name"], driver: c.driver }); break;
      case "node-removed": g.nodes.delete(c["node-name"]); break;
      case "root-added": g.roots.set(c.root, { id: c.root, job: c.job, label: c.label }); break;
      case "root-removed": g.roots.delete(c.root); break;
      case "unlinked": g.edges.delete(edgeKey(c)); break;
      default: g.edges.set(edgeKey(c), makeEdge(c, c.child, c.perm, c["shared-perm"])); // linked, relinked, permissions
    }
  }
}

/** Takes back what a step says. @param {Graph} g @param {Step} step */
export function revertStep(g, step) {
  for (const c of [...step.changes].reverse()) {
    switch (c.type) {
      case "node-added": g.nodes.delete(c["node-name"]); break;
      case "node-removed": g.nodes.set(c["node-name"], { name: c["node-name"], driver: c.driver }); break;
      case "root-added": g.roots.delete(c.root); break;
      case "root-removed": g.roots.set(c.root, { id: c.root, job: c.job, label: c.label }); break;
      case "linked": g.edges.delete(edgeKey(c)); break;
      default: // unlinked, relinked, permissions
        g.edges.set(edgeKey(c), makeEdge(c, c["old-child"] ?? c.child, c["old-perm"], c["old-shared-perm"]));
    }
  }
}

/** Why a step happened, in words. @param {any} cause */
export function causeText(cause) {
  switch (cause.type) {
    case "command": return cause.command;
    case "job": return "job " + cause.job;
    case "option": return "--" + cause.option;
    default: return cause.type;
  }
}

/** A change in words. @param {any} c */
export function changeText(c) {
  const user = c["parent-node"] ?? (c.job !== undefined ? "job " + c.job : c.label ?? "user " + (c["parent-root"] ?? c.root));
  switch (c.type) {
    case "node-added": return `+ node ${c["node-name"]} (${c.driver})`;
    case "node-removed": return `− node ${c["node-name"]} (${c.driver})`;
    case "root-added": return `+ ${user}`;
    case "root-removed": return `− ${user}`;
    case "linked": return `+ ${user} —${c.name}→ ${c.child}`;
    case "unlinked": return `− ${user} —${c.name}→ ${c.child}`;
    case "relinked": return `~ ${user} —${c.name}→ ${c.child}, before ${c["old-child"]}`;
    default: return `~ ${user} —${c.name}→ ${c.child}: uses ${words(c.perm)}`;
  }
}

/** @param {string[]} list */
export function words(list) {
  return list.length ? list.join(", ") : "nothing";
}

/** @param {GraphEdge} a @param {GraphEdge} b */
function sameEdge(a, b) {
  return a.child === b.child && a.perm.join() === b.perm.join() && a.shared.join() === b.shared.join();
}

/**
 * What differs between two graphs. Of edges that stay, `moved` lead elsewhere
 * and `changed` have other permissions.
 * @param {Graph} a @param {Graph} b
 */
export function diffGraphs(a, b) {
  /** @type {Map<string, "added"|"removed">} */ const nodes = new Map();
  /** @type {Map<number, "added"|"removed">} */ const roots = new Map();
  /** @type {Map<string, "added"|"removed"|"moved"|"changed">} */ const edges = new Map();
  for (const k of b.nodes.keys()) if (!a.nodes.has(k)) nodes.set(k, "added");
  for (const k of a.nodes.keys()) if (!b.nodes.has(k)) nodes.set(k, "removed");
  for (const k of b.roots.keys()) if (!a.roots.has(k)) roots.set(k, "added");
  for (const k of a.roots.keys()) if (!b.roots.has(k)) roots.set(k, "removed");
  for (const [k, e] of b.edges) {
    const old = a.edges.get(k);
    if (!old) edges.set(k, "added");
    else if (old.child !== e.child) edges.set(k, "moved");
    else if (!sameEdge(old, e)) edges.set(k, "changed");
  }
  for (const k of a.edges.keys()) if (!b.edges.has(k)) edges.set(k, "removed");
  return { nodes, roots, edges };
}

// A page that is open for weeks forgets what is older.
const mostSteps = 20000;

/** The steps that are known, and the graph after any of them. */
export class History {
  /** @param {string} instance @param {Graph} graph after step number @param {number} number */
  constructor(instance, graph, number) {
    this.instance = instance;
    this.live = graph;
    this.last = number;
    /** @type {Map<number, Step>} */
    this.steps = new Map();
    this.first = number + 1;
    this.cursor = { number, graph: cloneGraph(graph) };
  }

  /**
   * Adds steps that have been before, as x-query-graph-history lists them.
   * @param {Step[]} steps
   */
  addPast(steps) {
    for (const s of steps) {
      if (s.number > this.last) this.add(s);
      else this.steps.set(s.number, s);
    }
    while (this.steps.has(this.first - 1)) this.first--;
  }

  /**
   * Adds the next step; false when one between is missing. A step that is known
   * is nothing new.
   * @param {Step} step
   */
  add(step) {
    if (step.number <= this.last) return true;
    if (step.number !== this.last + 1) return false;
    this.steps.set(step.number, step);
    this.last = step.number;
    applyStep(this.live, step);
    if (this.steps.size > mostSteps) this.steps.delete(this.first++);
    return true;
  }

  /** The earliest state that can be shown. */
  get earliest() { return this.first - 1; }

  /**
   * The graph after a step; the nearest that is known.
   * @param {number} number @returns {Graph}
   */
  at(number) {
    number = Math.max(this.earliest, Math.min(number, this.last));
    if (number === this.last) return cloneGraph(this.live);
    const c = this.cursor;
    // What is nearer: where the cursor stands, or the present.
    if (c.number < this.earliest || Math.abs(this.last - number) < Math.abs(c.number - number)) {
      c.graph = cloneGraph(this.live);
      c.number = this.last;
    }
    while (c.number < number) applyStep(c.graph, /** @type {Step} */ (this.steps.get(++c.number)));
    while (c.number > number) revertStep(c.graph, /** @type {Step} */ (this.steps.get(c.number--)));
    return cloneGraph(c.graph);
  }
}
