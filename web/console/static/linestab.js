// The tabs of lines: events, and the daemon's log. Both show the newest last,
// follow the end unless somebody has scrolled up, and can be filtered.

import { clock } from "./format.js";
import { h } from "./dom.js";

const mostShown = 1000;
const mostKept = 5000;

class LinesTab {
  /** @param {import("./daemon.js").Daemon} daemon @param {string} title @param {string} what of which there may be none yet */
  constructor(daemon, title, what) {
    this.daemon = daemon;
    this.title = title;
    /** @type {any[]} */
    this.kept = [];
    /** @type {any[]} */
    this.fresh = [];
    this.held = false;
    this.pending = false;
    this.name = title.toLowerCase();
    this.filter = h("input", { type: "search", class: "field", placeholder: "Filter, words in any order", "aria-label": "Filter " + this.name, oninput: () => this.redraw() });
    this.hold = h("button", { class: "button", type: "button", text: "Hold", "aria-pressed": "false", title: "Show nothing new for a while", onclick: () => {
      this.held = !this.held;
      this.hold.classList.toggle("on", this.held);
      this.hold.setAttribute("aria-pressed", String(this.held));
      if (!this.held) this.redraw();
    } });
    this.bar = h("div", { class: "bar-line" }, this.filter, this.hold, h("button", { class: "button", type: "button", text: "Clear", onclick: () => {
      this.kept = [];
      this.redraw();
    } }));
    this.lines = h("div", { class: "lines", role: "log", "aria-label": title });
    this.none = h("div", { class: "empty", text: what });
    this.scroll = h("div", { class: "scroll", tabindex: "0" }, this.none, this.lines);
    this.element = h("section", { role: "tabpanel", "aria-label": title }, this.bar, this.scroll);
  }

  /** @param {any} item */
  add(item) {
    this.kept.push(item);
    if (this.kept.length > mostKept) this.kept.splice(0, this.kept.length - mostKept);
    if (this.held || !this.daemon.looking.has(this.name)) return;
    this.fresh.push(item);
    if (this.pending) return;
    this.pending = true;
    setTimeout(() => {
      this.pending = false;
      const list = this.fresh;
      this.fresh = [];
      this.append(list);
    }, 30);
  }

  /** @param {any[]} items */
  append(items) {
    const atEnd = this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < 40;
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = items.slice(-mostShown).filter((i) => {
      const text = this.text(i).toLowerCase();
      return words.every((/** @type {string} */ w) => text.includes(w)) && this.wanted(i);
    });
    this.lines.append(...shown.map((i) => this.line(i)));
    while (this.lines.childElementCount > mostShown) this.lines.firstElementChild.remove();
    this.none.hidden = this.lines.childElementCount > 0;
    if (atEnd) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  redraw() {
    this.fresh = [];
    this.lines.replaceChildren();
    this.append(this.kept);
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  /** @param {boolean} on */
  show(on) {
    if (!on) {
      this.daemon.looking.delete(this.name);
      return;
    }
    this.daemon.looking.add(this.name);
    this.redraw();
  }

  /** @param {any} _item */
  wanted(_item) { return true; }
  /** @param {any} _item @returns {string} */
  text(_item) { return ""; }
  /** @param {any} _item @returns {Element} */
  line(_item) { return h("div"); }
}

export class EventsTab extends LinesTab {
  /** @param {import("./daemon.js").Daemon} daemon */
  constructor(daemon) {
    super(daemon, "Events", "No events yet. They are shown from when the page was opened.");
    daemon.addEventListener("event", (e) => {
      const event = /** @type {CustomEvent} */ (e).detail;
      if (event.event !== "LOG_LINE") this.add(event); // which has a tab of its own
    });
  }

  /** @param {any} e */
  text(e) { return e.event + " " + JSON.stringify(e.data ?? {}); }

  /** @param {any} e */
  line(e) {
    const data = e.event === "GRAPH_CHANGED" ? `step ${e.data.step.number}, ${JSON.stringify(e.data.step.cause)}, ${e.data.step.changes.length} changes` : JSON.stringify(e.data ?? {});
    return h("div", {}, h("time", { text: clock(e.timestamp) }), h("b", { text: e.event }), h("span", { text: data }));
  }
}

const graveness = { debug: 0, info: 1, warning: 2, error: 3 };

export class LogTab extends LinesTab {
  /** @param {import("./daemon.js").Daemon} daemon */
  constructor(daemon) {
    super(daemon, "Log", "The log is empty.");
    this.level = h("select", { class: "field", "aria-label": "Least level" }, ...Object.keys(graveness).map((l) => h("option", { value: l, text: l, selected: l === "debug" })));
    this.level.addEventListener("change", () => this.redraw());
    this.bar.append(this.level);
    this.last = 0;
    this.loading = 0;
    daemon.addEventListener("connection", () => { if (daemon.connection === "connected") this.load(); });
    daemon.addEventListener("event", (e) => {
      const event = /** @type {CustomEvent} */ (e).detail;
      if (event.event === "LOG_LINE") this.take([event.data.line]);
    });
  }

  async load() {
    const { qmp, commands } = this.daemon;
    if (!commands.has("x-log-subscribe")) {
      this.none.textContent = "This daemon does not show its log here.";
      return;
    }
    const round = ++this.loading;
    try {
      // Lines that are written between the two come twice, which take sees.
      await qmp.execute("x-log-subscribe");
      const past = await qmp.execute("x-query-log");
      if (round !== this.loading) return;
      if (past.instance !== this.instance) {
        this.instance = past.instance;
        this.kept = [];
        this.last = 0;
      }
      const early = this.kept.filter((l) => l.number > past.last);
      this.kept = this.kept.filter((l) => past.lines.length === 0 || l.number < past.lines[0].number);
      this.last = this.kept.at(-1)?.number ?? 0;
      this.kept.push(...past.lines);
      this.last = Math.max(this.last, past.last);
      this.take(early);
      this.redraw();
    } catch (e) {
      this.none.textContent = /** @type {Error} */ (e).message;
    }
  }

  /** @param {any[]} lines */
  take(lines) {
    for (const l of lines) {
      if (l.number <= this.last) continue;
      this.last = l.number;
      this.add(l);
    }
  }

  /** @param {any} l */
  wanted(l) {
    return (graveness[/** @type {keyof typeof graveness} */ (l.level)] ?? 3) >= graveness[/** @type {keyof typeof graveness} */ (this.level.value)];
  }

  /** @param {any} l */
  text(l) {
    return [l.level, l.subsystem, l.message, ...(l.attributes ?? []).map((/** @type {any} */ a) => a.name + "=" + a.value), l.request === undefined ? "" : "request=" + l.request].join(" ");
  }

  /** @param {any} l */
  line(l) {
    return h("div", { class: l.level }, h("time", { text: clock(l.timestamp) }), h("b", { text: `${l.level} ${l.subsystem}` }),
      h("span", {}, l.message, ...(l.attributes ?? []).map((/** @type {any} */ a) => h("span", { class: "dim", text: ` ${a.name}=${a.value}` })), l.request === undefined ? null : h("span", { class: "dim", text: ` request=${l.request}` })));
  }
}
