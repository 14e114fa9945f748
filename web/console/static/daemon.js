// What the page knows of the daemon. Changes of the graph and of jobs come as
// events and are shown at once; what has no events (progress, traffic, fill) is
// asked for once a second or more rarely, and only while somebody looks.
//
// Events of the object: `connection`, `graph` (a step, or everything anew),
// `facts`, `traffic`, `jobs`, `images`, `event` (detail: one of QMP).

import { History, graphOfView, edgeKey, diffGraphs } from "./model.js";

const tick = 1000;
const imagesEvery = 5000;
const settle = 150;
const mostEvents = 5000;
const mostGone = 50;
// Of a job's states its first and its newest are kept, as the daemon does.
export const firstStates = 8;
const mostStates = 64;

/** @typedef {{id: string, type: string, status: string, rate: number, left: number, states: {status: string, at: number}[], dropped: number, gone: boolean, [more: string]: any}} Job */

export class Daemon extends EventTarget {
  /** @param {import("./qmp.js").QMP} qmp */
  constructor(qmp) {
    super();
    this.qmp = qmp;
    /** connecting, connected or lost */
    this.connection = "connecting";
    this.trouble = "";
    this.version = "";
    /** @type {Set<string>} */
    this.commands = new Set();
    this.readOnly = false;
    /** @type {History | null} */
    this.history = null;
    /** @type {import("./display.js").Facts} */
    this.facts = { nodes: new Map(), roots: new Map(), frozen: new Map(), images: new Map(), rates: new Map(), traffic: new Map(), jobs: new Map() };
    /** @type {Map<string, Job>} */
    this.jobs = new Map();
    this.facts.jobs = this.jobs;
    /** @type {any[]} */
    this.events = [];
    /** Names of what is on the page: graph, jobs, images. @type {Set<string>} */
    this.looking = new Set();
    /** @type {{at: number, edges: Map<string, any>} | null} */
    this.counted = null;
    this.busy = new Set();
    this.again = new Set();
    /** @type {Map<string, any>} */
    this.timers = new Map();
    this.imagesAt = 0;
    /** Steps that came while the past was asked for. @type {any[] | null} */
    this.early = null;
    this.round = 0;
    qmp.addEventListener("open", (e) => this.opened(/** @type {CustomEvent} */ (e).detail));
    qmp.addEventListener("close", (e) => this.closed(/** @type {CustomEvent} */ (e).detail));
    qmp.addEventListener("event", (e) => this.heard(/** @type {CustomEvent} */ (e).detail));
    setInterval(() => this.everySecond(), tick);
  }

  /** @param {string} name @param {any} [detail] */
  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {any} greeting */
  async opened(greeting) {
    const round = ++this.round;
    this.version = greeting.version?.package ?? "";
    this.early = [];
    this.jobs.clear(); // the daemon tells what was meanwhile
    try {
      const [commands, last] = await Promise.all([this.qmp.execute("query-commands"), this.qmp.execute("x-graph-subscribe")]);
      this.commands = new Set(commands.map((/** @type {any} */ c) => c.name));
      let role = greeting["x-role"];
      if (this.commands.has("x-query-session")) role = (await this.qmp.execute("x-query-session")).role;
      this.readOnly = role === "read-only";
      await this.load();
      this.takeJobHistory(await this.qmp.execute("x-query-job-history"));
      if (round !== this.round) return;
      this.connection = "connected";
      this.trouble = "";
      this.tell("connection", last);
      this.tell("graph", { anew: true });
      this.soon("jobs", 0);
      this.soon("images", 0);
    } catch (error) {
      this.trouble = String(/** @type {any} */ (error).message);
      if (round === this.round && this.qmp.ready) this.tell("connection");
    }
  }

  /** Gets the graph and its past. */
  async load() {
    const [view, past] = await Promise.all([this.qmp.execute("x-query-graph"), this.qmp.execute("x-query-graph-history")]);
    const history = new History(view.instance, graphOfView(view), view.last);
    history.addPast(past.steps);
    for (const step of this.early ?? []) history.add(step);
    this.early = null;
    if (this.history && this.history.instance !== history.instance) this.facts.images?.clear();
    this.history = history;
    this.counted = null;
    this.takeView(view);
  }

  /** @param {{opened: boolean, code: number, reason: string}} why */
  closed(why) {
    this.round++;
    this.early = null;
    this.connection = this.history ? "lost" : "connecting";
    this.trouble = why.opened ? "The connection has ended" : "The daemon does not answer";
    this.busy.clear();
    this.tell("connection");
  }

  /** @param {any} e */
  heard(e) {
    if (e.event === "GRAPH_CHANGED") {
      const { instance, step } = e.data;
      if (this.early) this.early.push(step);
      else if (this.history && this.history.instance === instance) {
        if (this.history.add(step)) this.tell("graph", { step });
        else this.resync();
        this.soon("facts", settle);
      }
    } else if (e.event === "JOB_STATUS_CHANGE") {
      this.jobState(e.data.id, e.data.status, e.timestamp.seconds + e.timestamp.microseconds / 1e6);
      this.tell("jobs");
      this.soon("jobs", 20);
    } else if (e.event.startsWith("BLOCK_EXPORT")) {
      this.soon("facts", settle);
    }
    if (e.event.startsWith("BLOCK_JOB_") && e.data?.error) {
      const job = this.jobs.get(e.data.device);
      if (job) job.error = e.data.error;
    }
    this.events.push(e);
    if (this.events.length > mostEvents) this.events.splice(0, this.events.length - mostEvents);
    this.tell("event", e);
  }

  /** A step is missing, or the graph is not what the steps made. */
  resync() {
    if (this.early) return;
    this.early = [];
    this.load().then(() => this.tell("graph", { anew: true }), () => { this.early = null; });
  }

  /** @param {string} id @param {string} status @param {number} at */
  jobState(id, status, at) {
    let job = this.jobs.get(id);
    if (!job || (job.gone && status === "created")) {
      job = { id, type: "", status, rate: NaN, left: NaN, states: [], dropped: 0, gone: false, "current-progress": 0, "total-progress": 0 };
      this.jobs.delete(id); // the new one comes last
      this.jobs.set(id, job);
    }
    if (job.states.at(-1)?.status !== status) job.states.push({ status, at });
    if (job.states.length > mostStates) {
      job.states.splice(firstStates, 1);
      job.dropped++;
    }
    job.status = status;
    job.gone = status === "null";
    const gone = [...this.jobs.values()].filter((j) => j.gone);
    for (const j of gone.slice(0, Math.max(0, gone.length - mostGone))) this.jobs.delete(j.id);
  }

  /** Asks soon, once for all who want it. @param {string} what @param {number} wait milliseconds */
  soon(what, wait) {
    if (this.timers.has(what)) return;
    this.timers.set(what, setTimeout(() => {
      this.timers.delete(what);
      this.ask(what);
    }, wait));
  }

  /** @param {string} what */
  async ask(what) {
    if (!this.qmp.ready || this.connection !== "connected") return;
    if (this.busy.has(what)) {
      this.again.add(what);
      return;
    }
    this.busy.add(what);
    try {
      switch (what) {
        case "facts": this.takeView(await this.qmp.execute("x-query-graph")); break;
        case "traffic": this.takeTraffic(await this.qmp.execute("x-query-graph-traffic")); break;
        case "jobs": {
          const known = [...this.jobs.values()]; // those that come meanwhile need not be in the answer
          const [list, block] = await Promise.all([this.qmp.execute("query-jobs"), this.qmp.execute("query-block-jobs")]);
          this.takeJobs(list, block, known);
          break;
        }
        case "images": this.takeImages(await this.qmp.execute("query-named-block-nodes", { flat: true })); break;
      }
    } catch {
      // The connection is gone, which is told elsewhere, or the command is.
    } finally {
      this.busy.delete(what);
      if (this.again.delete(what)) this.soon(what, tick);
    }
  }

  everySecond() {
    if (document.visibilityState === "hidden" || this.connection !== "connected") return;
    const graph = this.looking.has("graph");
    if (graph) this.ask("traffic");
    if ((graph || this.looking.has("jobs")) && [...this.jobs.values()].some((j) => !j.gone && j.status !== "concluded")) this.ask("jobs");
    if ((graph || this.looking.has("images")) && Date.now() - this.imagesAt >= imagesEvery) this.ask("images");
  }

  /** @param {any} view */
  takeView(view) {
    const { facts, history } = this;
    if (!history || view.instance !== history.instance) return;
    if (view.last === history.last) {
      const d = diffGraphs(history.live, graphOfView(view));
      if (d.nodes.size || d.roots.size || d.edges.size) this.resync();
    }
    const known = facts.nodes?.size;
    facts.nodes = new Map(view.nodes.map((/** @type {any} */ n) => [n["node-name"], n]));
    facts.roots = new Map(view.roots.map((/** @type {any} */ r) => [r.root, r]));
    facts.frozen = new Map(view.edges.filter((/** @type {any} */ e) => e.frozen).map((/** @type {any} */ e) => [edgeKey(e), true]));
    this.tell("facts");
    if (known !== view.nodes.length) this.soon("images", settle);
  }

  /** @param {any} t */
  takeTraffic(t) {
    const at = performance.now();
    const edges = new Map(t.edges.map((/** @type {any} */ e) => [edgeKey(e) + "\n" + e.child, e]));
    const rates = new Map();
    if (this.counted) {
      const seconds = (at - this.counted.at) / 1000;
      for (const [k, e] of edges) {
        const was = this.counted.edges.get(k);
        if (!was) continue;
        const r = (/** @type {string} */ m) => Math.max(0, (e[m] - was[m]) / seconds);
        rates.set(edgeKey(e), { read: r("read-bytes"), write: r("write-bytes"), operations: r("operations") });
      }
    }
    this.counted = { at, edges };
    this.facts.rates = rates;
    this.facts.traffic = new Map(t.roots.map((/** @type {any} */ r) => [r.root, r]));
    this.tell("traffic");
  }

  /**
   * Puts what jobs went through before what their events have told since.
   * @param {any[]} list as x-query-job-history has it
   */
  takeJobHistory(list) {
    const since = new Map(this.jobs);
    this.jobs.clear();
    for (const h of list) {
      if (!h.id) continue; // the daemon's own
      let at = 0;
      this.jobs.delete(h.id); // one before had the id
      for (const s of h.states) this.jobState(h.id, s.status, at = s.timestamp.seconds + s.timestamp.microseconds / 1e6);
      const job = /** @type {Job} */ (this.jobs.get(h.id));
      if (!job) continue; // too many are gone
      Object.assign(job, { type: h.type, dropped: job.dropped + h.dropped, error: h.error });
      const heard = since.get(h.id)?.states ?? [];
      // The event of the last state may bear a slightly later time.
      for (const s of heard) if (s.at > at) this.jobState(h.id, s.status, s.at);
    }
    for (const [id, job] of since) if (!this.jobs.has(id)) this.jobs.set(id, job);
  }

  /** @param {any[]} list @param {any[]} block @param {Job[]} known */
  takeJobs(list, block, known) {
    const now = performance.now() / 1000;
    const more = new Map(block.map((j) => [j.device, j]));
    for (const info of [...list].reverse()) { // the oldest first
      if (!info.id) continue; // the daemon's own
      this.jobState(info.id, info.status, Date.now() / 1000);
      const job = /** @type {Job} */ (this.jobs.get(info.id));
      const done = info["current-progress"];
      if (job.asked !== undefined && now > job.asked.at) {
        const speed = Math.max(0, (done - job.asked.done) / (now - job.asked.at));
        const weight = Math.min(1, now - job.asked.at); // events make for short intervals
        job.rate = Number.isFinite(job.rate) ? job.rate * (1 - 0.5 * weight) + speed * 0.5 * weight : speed;
        job.left = job.rate > 0 ? (info["total-progress"] - done) / job.rate : NaN;
      }
      job.asked = { at: now, done };
      const b = more.get(info.id);
      Object.assign(job, info, b ? { speed: b.speed, "auto-finalize": b["auto-finalize"], "auto-dismiss": b["auto-dismiss"], paused: b.paused, block: true } : {});
    }
    const live = new Set(list.map((j) => j.id));
    for (const job of known) {
      if (!live.has(job.id) && !job.gone && this.jobs.get(job.id) === job) this.jobState(job.id, "null", Date.now() / 1000);
    }
    this.tell("jobs");
  }

  /** @param {any[]} list */
  takeImages(list) {
    this.imagesAt = Date.now();
    this.facts.images = new Map(list.map((n) => [n["node-name"], n]));
    this.tell("images");
  }
}
