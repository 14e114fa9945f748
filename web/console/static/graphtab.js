// The tab of the graph: the picture, what is known of the box that is chosen,
// and the time line.

import { GraphView, arrowHint } from "./graphview.js";
import { Timeline } from "./timeline.js";
import { display, matching } from "./display.js";
import { toDot, toSVG } from "./export.js";
import { bytes, clock } from "./format.js";
import { causeText } from "./model.js";
import { download, fill, h, set, setText } from "./dom.js";

export class GraphTab {
  /** @param {import("./daemon.js").Daemon} daemon */
  constructor(daemon) {
    this.daemon = daemon;
    this.title = "Graph";
    this.pending = false;
    /** @type {URLSearchParams | null} */
    this.wanted = null;
    this.instance = "";
    this.canvas = h("div", { class: "canvas" });
    this.view = new GraphView(this.canvas, (box) => this.choose(box));
    this.timeline = new Timeline(daemon, () => this.draw());
    this.banner = h("div", { class: "banner", role: "status", hidden: true });
    this.empty = h("div", { class: "banner", hidden: true, text: "No nodes yet: blockdev-add opens one" });
    this.canvas.append(this.banner, this.empty, h("div", { class: "legend", "aria-hidden": "true" },
      ...["format", "filter", "storage", "export", "job"].map((k) => h("span", {}, h("i", { class: k }), k))));
    this.details = h("div", { class: "details", "aria-live": "polite" });
    this.search = h("input", { type: "search", class: "field", placeholder: "Find node, job, export  ( / )", "aria-label": "Find in the graph", id: "find" });
    this.search.addEventListener("input", () => this.view.find(matching(this.view.shown, this.search.value)));
    const button = (/** @type {string} */ text, /** @type {string} */ id, /** @type {string} */ title, /** @type {() => void} */ f) => h("button", { class: "button", type: "button", id, title, text, onclick: f });
    this.element = h("section", { role: "tabpanel", "aria-label": "Graph" },
      h("div", { class: "bar-line" }, this.search, button("Fit", "fit", "Show everything (F)", () => this.view.fit()), button("Tidy", "tidy", "Lay out anew (T)", () => this.view.tidy()),
        button("+", "zoom-in", "Closer (+)", () => this.view.zoom(1.25)), button("−", "zoom-out", "Farther (−)", () => this.view.zoom(0.8)),
        h("div", { class: "spacer" }), this.counts = h("span", { class: "dim" }),
        button("SVG", "save-svg", "Save as SVG", () => this.saveSVG()), button("Graphviz", "save-dot", "Save for Graphviz", () => this.saveDot())),
      h("div", { class: "graph-body" }, this.canvas, h("aside", { "aria-label": "Details and steps" }, this.details, this.timeline.panel)),
      this.timeline.bar);
    daemon.addEventListener("graph", (e) => this.changed(/** @type {CustomEvent} */ (e).detail));
    for (const what of ["facts", "traffic", "jobs", "images"]) daemon.addEventListener(what, () => this.later());
    daemon.addEventListener("connection", () => this.canvas.classList.toggle("stale", daemon.connection !== "connected"));
    this.choose(null);
  }

  /** A key that is for nobody else; true: it is for the time line, or to find. @param {KeyboardEvent} e */
  key(e) {
    if (e.key === " " && /** @type {HTMLElement} */ (e.target).matches("button")) return false;
    if (e.key !== "/") return this.timeline.key(e);
    this.search.focus();
    return true;
  }

  /** @param {any} detail */
  changed(detail) {
    const history = this.daemon.history;
    if (detail.anew && history && history.instance !== this.instance) {
      this.instance = history.instance;
      this.timeline.reset();
      if (this.wanted && !this.timeline.follow(this.wanted)) this.daemon.tell("notice", { text: "The link is to a step of another run of the daemon" });
      this.wanted = null;
    }
    this.later();
  }

  /** The address has a step. @param {URLSearchParams} q */
  open(q) {
    if (!this.daemon.history) this.wanted = q;
    else if (q.size && !this.timeline.follow(q)) this.daemon.tell("notice", { text: "The link is to a step of another run of the daemon" });
  }

  /** Draws with the next frame, once for all that happened. */
  later() {
    if (this.pending) return;
    this.pending = true;
    const draw = () => {
      this.pending = false;
      this.timeline.update();
      this.draw();
    };
    // A hidden page has no frames; it is brought up to date all the same.
    if (document.visibilityState === "hidden") setTimeout(draw, 50);
    else requestAnimationFrame(draw);
  }

  shown() {
    const { history, facts } = this.daemon;
    if (!history) return { boxes: [], arrows: [] };
    const t = this.timeline;
    const base = t.base;
    const past = t.step !== null && t.step !== history.last;
    // Of the past only the graph is known: names of exports stay, counters do not.
    const known = past ? { roots: facts.roots } : facts;
    return display(history.at(t.number), known, base === null ? null : history.at(base));
  }

  draw() {
    const history = this.daemon.history;
    if (!history) return;
    const d = this.shown();
    this.view.show(d);
    const t = this.timeline;
    const base = t.base;
    const step = history.steps.get(t.number);
    const present = t.step === null && base === null;
    this.banner.toggleAttribute("hidden", present);
    setText(this.banner, (t.step === null ? "the present" : `step ${t.number}${step ? ": " + causeText(step.cause) : ""}`) + (base === null ? "" : ` — changes since step ${base}`));
    this.empty.toggleAttribute("hidden", d.boxes.length > 0 || !present);
    setText(this.counts, `${d.boxes.filter((b) => b.kind === "node").length} nodes, ${d.arrows.length} edges`);
    set(this.canvas, "data-step", String(t.number));
    if (this.chosen) this.choose(d.boxes.find((b) => b.id === this.chosen) ?? null);
    this.drawn = performance.now();
  }

  /** @param {import("./display.js").Box | null} box */
  choose(box) {
    this.chosen = box?.id ?? "";
    if (!box) {
      fill(this.details, h("h2", { text: "Details" }), h("p", { class: "dim", text: "Choose a box to see what is known of it." }));
      return;
    }
    const { facts } = this.daemon;
    /** @type {[string, string][]} */
    const rows = [];
    const row = (/** @type {string} */ k, /** @type {any} */ v) => { if (v !== undefined && v !== null && v !== "") rows.push([k, String(v)]); };
    row("kind", box.kind === "node" ? box.hue + " node" : box.kind);
    if (box.mark) row("change", box.mark);
    if (box.node !== undefined) {
      const n = facts.nodes?.get(box.node);
      const image = facts.images?.get(box.node);
      row("driver", this.daemon.history?.at(this.timeline.number).nodes.get(box.node)?.driver ?? n?.driver);
      row("file", image?.file);
      if (n) {
        row("length", bytes(n.size));
        row("mode", (n["read-only"] ? "read-only" : "read-write") + (n.active ? "" : ", inactive") + (n.implicit ? ", a job's" : "") + (n.owned ? "" : ", goes with its users"));
        for (const b of n.blockers) row("blocked", b.reason + (b.except.length ? ` (but ${b.except.join(", ")})` : ""));
      }
      row("on the host", image?.image?.["actual-size"] !== undefined ? bytes(image.image["actual-size"]) : "");
      for (const b of image?.["dirty-bitmaps"] ?? []) row("bitmap", `${b.name ?? "(a job's)"}: ${bytes(b.count)} dirty, by ${bytes(b.granularity)}${b.persistent ? ", persistent" : ""}${b.recording ? "" : ", not recording"}${b.busy ? ", busy" : ""}`);
    }
    if (box.job !== undefined) {
      const j = this.daemon.jobs.get(box.job);
      if (j) {
        row("type", j.type);
        row("status", j.status);
        row("error", j.error);
      }
    }
    if (box.root !== undefined) {
      const t = facts.traffic?.get(box.root);
      if (t) {
        row("clients", t.clients);
        row("in flight", t["in-flight"]);
        row("waited for graph changes", t.held);
      }
    }
    const edges = this.view.shown.arrows.filter((a) => a.from === box.id || a.to === box.id);
    const name = (/** @type {string} */ id) => this.view.byID.get(id)?.full ?? id;
    fill(this.details, h("h2", { text: "Details" }), h("h3", { text: box.full }),
      h("dl", {}, ...rows.flatMap(([k, v]) => [h("dt", { text: k }), h("dd", { text: v })])),
      ...edges.map((a) => h("div", { class: "card edge" }, h("div", {}, h("b", { text: a.label }), a.from === box.id ? ` → ${name(a.to)}` : ` ← ${name(a.from)}`), ...arrowHint(a).slice(1).map((e) => { e.className = "dim"; return e; }))));
  }

  caption() {
    const t = this.timeline;
    const step = this.daemon.history?.steps.get(t.number);
    return `blockd, step ${t.number}` + (step ? `, ${causeText(step.cause)}, ${clock(step.timestamp)}` : "") + (t.base === null ? "" : `, changes since step ${t.base}`);
  }

  saveSVG() {
    const rows = this.view.rows();
    const places = this.view.layout.places;
    download(`blockd-step-${this.timeline.number}.svg`, "image/svg+xml", toSVG(this.view.shown, places, (a) => this.view.way(a, places, rows) ?? [], this.view.spots, this.caption()));
  }

  saveDot() {
    download(`blockd-step-${this.timeline.number}.dot`, "text/vnd.graphviz", toDot(this.view.shown, this.caption()));
  }

  /** @param {boolean} on */
  show(on) {
    if (on) {
      this.daemon.looking.add("graph");
      if (!this.view.touched) this.view.fit();
      this.later();
    } else this.daemon.looking.delete("graph");
  }
}

