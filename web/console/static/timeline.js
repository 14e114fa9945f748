// The graph's view and its time line: which step is shown, what it is compared
// with, playing, and the link to a step (#graph?step=N&from=M&instance=U).

import { changeText, causeText } from "./model.js";
import { clock } from "./format.js";
import { h, set, setText, sync } from "./dom.js";

const speeds = [0.5, 1, 2, 5, 10, 25];
const listed = 150; // steps before and after the current one

export class Timeline {
  /** @param {import("./daemon.js").Daemon} daemon @param {() => void} onMove */
  constructor(daemon, onMove) {
    this.daemon = daemon;
    this.onMove = onMove;
    /** The step shown; null: the present. @type {number | null} */
    this.step = null;
    /** The step compared with; null: the one before. @type {number | null} */
    this.from = null;
    this.playing = 0;
    this.build();
  }

  build() {
    const button = (/** @type {string} */ text, /** @type {string} */ label, /** @type {() => void} */ f) =>
      h("button", { class: "button small", type: "button", title: label, "aria-label": label, text, onclick: f });
    this.playButton = button("Play", "Play (space)", () => this.toggle());
    this.playButton.id = "play";
    this.speed = h("select", { class: "field", "aria-label": "Speed of playing", title: "Speed of playing" },
      ...speeds.map((s) => h("option", { value: s, text: s + " steps/s", selected: s === 2 })));
    this.speed.addEventListener("change", () => { if (this.playing) this.play(); });
    this.liveButton = h("button", { class: "button small", id: "live", type: "button", title: "Follow the present (L)", onclick: () => this.go(null) }, h("span", { class: "live-dot" }), "Live");
    this.where = h("span", { class: "where" });
    this.cause = h("span", { class: "cause" });
    this.markButton = button("Compare from here", "Compare later steps with this one (M)", () => this.mark());
    this.markButton.id = "mark";
    this.linkButton = button("Copy link", "Copy a link to this step", () => this.copyLink());
    this.slider = h("input", { type: "range", min: 0, max: 0, value: 0, step: 1, id: "slider", "aria-label": "Step of the graph's history" });
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.bar = h("div", { class: "timeline" },
      h("div", { class: "row" },
        button("|◀", "First step", () => this.go(this.history?.earliest ?? 0)), button("◀", "One step back (comma)", () => this.by(-1)), this.playButton,
        button("▶", "One step on (full stop)", () => this.by(1)), this.liveButton, this.speed, this.where, this.cause, this.markButton, this.linkButton),
      h("div", { class: "track-wrap" }, this.canvas, this.slider));
    this.list = h("ol", { "aria-label": "Steps" });
    this.panel = h("div", { class: "steps" }, h("h2", { text: "Steps" }), this.list);
    new ResizeObserver(() => this.drawTicks()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawTicks());
  }

  get history() { return this.daemon.history; }

  /** The step that is shown, as a number. */
  get number() { return this.step ?? this.history?.last ?? 0; }

  /** The step that the shown one is compared with, or null. */
  get base() {
    if (!this.history) return null;
    if (this.from !== null) return this.from === this.number ? null : this.from;
    return this.step === null || this.step <= this.history.earliest ? null : this.step - 1;
  }

  /** @param {number | null} step */
  go(step) {
    const history = this.history;
    if (!history) return;
    if (step !== null) step = Math.max(history.earliest, Math.min(step, history.last));
    this.step = step;
    if (step === null && this.from === null) this.pause();
    this.update();
    this.onMove();
    this.link();
  }

  /** @param {number} n */
  by(n) { this.go(this.number + n); }

  mark() {
    this.from = this.from === null ? this.number : null;
    this.update();
    this.onMove();
    this.link();
  }

  toggle() { if (this.playing) this.pause(); else this.play(); }

  play() {
    clearInterval(this.playing);
    const history = this.history;
    if (!history) return;
    if (this.number >= history.last) this.go(history.earliest);
    this.playing = setInterval(() => {
      if (!this.history || this.number >= this.history.last) {
        this.pause();
        return;
      }
      this.by(1);
    }, 1000 / Number(this.speed.value));
    setText(this.playButton, "Pause");
    this.playButton.setAttribute("aria-label", "Pause");
  }

  pause() {
    clearInterval(this.playing);
    this.playing = 0;
    setText(this.playButton, "Play");
    this.playButton.setAttribute("aria-label", "Play");
  }

  /** The address of what is shown. */
  hash() {
    if (this.step === null && this.from === null) return "#graph";
    const q = new URLSearchParams();
    if (this.step !== null) q.set("step", String(this.step));
    if (this.from !== null) q.set("from", String(this.from));
    q.set("instance", this.history?.instance ?? "");
    return "#graph?" + q;
  }

  link() {
    if (location.hash !== this.hash()) history.replaceState(null, "", this.hash());
  }

  async copyLink() {
    const url = new URL(this.step === null ? "#graph?" + new URLSearchParams({ step: String(this.number), instance: this.history?.instance ?? "" }) : this.hash(), location.href).href;
    try {
      await navigator.clipboard.writeText(url);
      this.daemon.tell("notice", { text: "The link is copied", good: true });
    } catch {
      this.daemon.tell("notice", { text: url, good: true });
    }
  }

  /** Follows a link. False: it is of another run of the daemon. @param {URLSearchParams} q */
  follow(q) {
    if (!this.history) return true;
    const instance = q.get("instance");
    if (instance && instance !== this.history.instance) return false;
    const number = (/** @type {string} */ name) => (q.has(name) && Number.isInteger(Number(q.get(name))) ? Number(q.get(name)) : null);
    this.from = number("from");
    this.go(number("step"));
    return true;
  }

  /** The steps that there were are another daemon's. */
  reset() {
    this.step = null;
    this.from = null;
    this.pause();
  }

  /** Brings everything to the present state. */
  update() {
    const history = this.history;
    if (!history) return;
    if (this.step !== null && this.step < history.earliest) this.step = history.earliest;
    if (this.from !== null && (this.from < history.earliest || this.from > history.last)) this.from = null;
    const n = this.number;
    set(this.slider, "min", String(history.earliest));
    set(this.slider, "max", String(history.last));
    this.slider.value = n;
    const step = history.steps.get(n);
    set(this.slider, "aria-valuetext", `step ${n}${step ? ", " + causeText(step.cause) : ""}`);
    this.liveButton.classList.toggle("on", this.step === null);
    this.markButton.classList.toggle("on", this.from !== null);
    setText(this.markButton, this.from === null ? "Compare from here" : `Comparing with ${this.from} ✕`);
    setText(this.where, `step ${n} of ${history.last}`);
    setText(this.cause, step ? `${clock(step.timestamp)}  ${causeText(step.cause)}` : n === 0 ? "the beginning" : "what was before is no longer kept");
    this.drawList();
    this.drawTicks();
  }

  drawList() {
    const history = /** @type {import("./model.js").History} */ (this.history);
    const n = this.number;
    const steps = [];
    for (let k = Math.min(history.last, n + listed); k >= Math.max(history.first, n - listed); k--) {
      const s = history.steps.get(k);
      if (s) steps.push(s);
    }
    sync(this.list, steps, (s) => history.instance + s.number, (s) => {
      const shown = s.changes.slice(0, 6);
      return h("li", { tabindex: "-1", onclick: () => this.go(s.number) },
        h("div", { class: "head-line" }, h("span", { class: "dim", text: s.number }), h("b", { text: causeText(s.cause) }), h("span", { class: "when", text: clock(s.timestamp) })),
        h("div", { class: "changes" }, ...shown.map((/** @type {any} */ c) => {
          const text = changeText(c);
          return h("div", { class: text[0] === "+" ? "plus" : text[0] === "~" ? "tilde" : "minus", text });
        }), s.changes.length > 6 ? h("div", { text: `and ${s.changes.length - 6} more` }) : null));
    }, (e, s) => {
      e.classList.toggle("current", s.number === n);
      e.classList.toggle("from", s.number === this.from);
      if (s.number === n) set(e, "aria-current", "step");
      else e.removeAttribute("aria-current");
    });
    if (this.step !== null) this.list.querySelector(".current")?.scrollIntoView({ block: "nearest" });
    else if (this.panel.scrollTop < 80) this.panel.scrollTop = 0;
  }

  drawTicks() {
    const history = this.history;
    const c = this.canvas;
    const width = c.clientWidth;
    if (!history || !width) return;
    const scale = devicePixelRatio || 1;
    set(c, "width", String(Math.round(width * scale)));
    set(c, "height", String(14 * scale));
    const g = c.getContext("2d");
    const style = getComputedStyle(c);
    const colour = { command: style.getPropertyValue("--accent"), job: style.getPropertyValue("--job"), option: style.getPropertyValue("--storage"), shutdown: style.getPropertyValue("--red") };
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, width, 14);
    const span = Math.max(1, history.last - history.earliest);
    const x = (/** @type {number} */ k) => 8 + ((k - history.earliest) / span) * (width - 16);
    if (this.from !== null) {
      g.fillStyle = style.getPropertyValue("--amber-soft");
      g.fillRect(Math.min(x(this.from), x(this.number)), 0, Math.abs(x(this.from) - x(this.number)), 14);
    }
    let drawn = -2;
    for (let k = history.first; k <= history.last; k++) {
      const at = Math.round(x(k));
      if (at - drawn < 2) continue; // as many as there is room for
      drawn = at;
      const s = history.steps.get(k);
      g.fillStyle = colour[/** @type {keyof typeof colour} */ (s?.cause.type)] ?? colour.option;
      const high = Math.min(12, 4 + (s?.changes.length ?? 0));
      g.fillRect(at - 1, 13 - high, 2, high);
    }
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    if (e.key === ",") this.by(-1);
    else if (e.key === ".") this.by(1);
    else if (e.key === " ") this.toggle();
    else if (e.key === "l") this.go(null);
    else if (e.key === "m") this.mark();
    else return false;
    return true;
  }
}
