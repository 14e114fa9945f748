// The tab of QMP: a command line with completion from the daemon's schema, and
// the commands' documentation beside it.

import { Schema } from "./schema.js";
import { render, sections } from "./manual.js";
import { h, setText, sync } from "./dom.js";

const mostAnswers = 200;
const remembered = 200;

export class ConsoleTab {
  /** @param {import("./daemon.js").Daemon} daemon */
  constructor(daemon) {
    this.daemon = daemon;
    this.title = "Console";
    /** @type {Schema | null} */
    this.schema = null;
    /** @type {Map<string, string>} */
    this.manual = new Map();
    /** @type {string[]} */
    this.past = [];
    this.back = 0;
    this.draft = "";
    this.asked = 0;
    /** @type {{from: number, offers: import("./schema.js").Offer[]}} */
    this.offered = { from: 0, offers: [] };
    this.chosen = 0;
    this.output = h("div", { class: "output", role: "log", "aria-label": "Answers", tabindex: "0" });
    this.input = h("input", { type: "text", id: "qmp", autocomplete: "off", autocapitalize: "off", spellcheck: "false", role: "combobox", "aria-label": "QMP command", "aria-expanded": "false", "aria-controls": "offers", "aria-autocomplete": "list", placeholder: "query-jobs    or    blockdev-add driver=null-co node-name=n size=1G" });
    this.offers = h("ul", { class: "offers", id: "offers", role: "listbox", "aria-label": "Completions", hidden: true });
    this.doc = h("div", { class: "doc", "aria-label": "Documentation", tabindex: "0" });
    this.element = h("section", { role: "tabpanel", "aria-label": "Console" },
      h("div", { class: "shell" },
        h("div", { class: "talk" }, this.output, h("form", { class: "prompt", onsubmit: (/** @type {Event} */ e) => { e.preventDefault(); this.run(); } }, this.offers, this.input, h("button", { class: "button primary", text: "Run" }))),
        this.doc));
    this.input.addEventListener("input", () => this.typed());
    this.input.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => this.key(e));
    this.input.addEventListener("blur", () => setTimeout(() => this.close(), 150));
    daemon.addEventListener("connection", () => {
      this.schema = null;
      if (daemon.looking.has("console")) this.load();
    });
    this.explain("");
  }

  /** @param {boolean} on */
  show(on) {
    if (on) {
      this.daemon.looking.add("console");
      this.load();
      this.input.focus();
    } else this.daemon.looking.delete("console");
  }

  async load() {
    if (!this.manual.size) {
      try {
        const answer = await fetch(new URL("console/commands.md", location.href));
        if (answer.ok) this.manual = sections(await answer.text());
      } catch { /* the next time, then */ }
    }
    if (!this.schema && this.daemon.qmp.ready) {
      try {
        this.schema = new Schema(await this.daemon.qmp.execute("query-qmp-schema"));
      } catch { /* the connection is gone, which is told elsewhere */ }
    }
    this.explain(this.input.value.split(/\s/)[0]);
  }

  /** What there is, for a member that names it. @param {string} member @returns {string[]} */
  names(member) {
    const { history, jobs, facts } = this.daemon;
    const nodes = [...(history?.live.nodes.keys() ?? [])];
    const alive = [...jobs.values()].filter((j) => !j.gone).map((j) => j.id);
    switch (member) {
      case "id": return [...alive, ...[...(facts.roots?.values() ?? [])].flatMap((r) => (r.export ? [r.export.id] : []))];
      case "device": return [...nodes, ...alive];
      case "bitmap":
      case "name": return [...new Set([...(facts.images?.values() ?? [])].flatMap((n) => (n["dirty-bitmaps"] ?? []).map((/** @type {any} */ b) => b.name).filter(Boolean)))];
      case "node-name": case "node": case "target": case "overlay": case "base": case "base-node": case "top-node": case "bottom": case "file": case "backing": case "parent": case "replaces":
        return nodes;
    }
    return [];
  }

  typed() {
    const line = this.input.value;
    this.explain(line.trimStart().split(/\s/)[0]);
    if (!this.schema || !line) {
      this.close();
      return;
    }
    this.offered = this.schema.complete(line, (m) => this.names(m));
    this.chosen = 0;
    this.draw();
  }

  draw() {
    const shown = this.offered.offers.slice(0, 100);
    sync(this.offers, shown, (o) => o.text, (o) => h("li", { role: "option", id: "offer-" + o.text, onpointerdown: (/** @type {Event} */ e) => { e.preventDefault(); this.take(o); } }, h("span", { text: o.text }), h("span", { class: "dim", text: [o.hint, o.kind === "required" ? "required" : ""].filter(Boolean).join(", ") })), (e, o) => {
      const on = o === shown[this.chosen];
      e.setAttribute("aria-selected", String(on));
      if (on) e.scrollIntoView({ block: "nearest" });
    });
    this.offers.hidden = shown.length === 0;
    this.input.setAttribute("aria-expanded", String(shown.length > 0));
    if (shown.length) this.input.setAttribute("aria-activedescendant", "offer-" + shown[this.chosen].text);
    else this.input.removeAttribute("aria-activedescendant");
  }

  close() {
    this.offered = { from: 0, offers: [] };
    this.draw();
  }

  /** @param {import("./schema.js").Offer} offer */
  take(offer) {
    const whole = /[=.]$/.test(offer.text) ? "" : " ";
    this.input.value = this.input.value.slice(0, this.offered.from) + offer.text + whole;
    this.typed();
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    const open = !this.offers.hidden;
    const n = Math.min(100, this.offered.offers.length);
    if (e.key === "Tab" && !e.shiftKey && open) this.take(this.offered.offers[this.chosen]);
    else if (e.key === "Escape" && open) this.close();
    else if ((e.key === "ArrowDown" || e.key === "ArrowUp") && open) {
      this.chosen = (this.chosen + (e.key === "ArrowDown" ? 1 : n - 1)) % n;
      this.draw();
    } else if (e.key === "ArrowUp" || e.key === "ArrowDown") this.recall(e.key === "ArrowUp" ? 1 : -1);
    else return;
    e.preventDefault();
  }

  /** Brings back an earlier line. @param {number} by */
  recall(by) {
    if (this.back === 0) this.draft = this.input.value;
    this.back = Math.max(0, Math.min(this.past.length, this.back + by));
    this.input.value = this.back ? this.past[this.past.length - this.back] : this.draft;
    this.explain(this.input.value.split(/\s/)[0]);
  }

  async run() {
    const line = this.input.value.trim();
    if (!line) return;
    if (!this.schema) await this.load();
    this.input.value = "";
    this.back = 0;
    this.close();
    // Secrets are not for being looked up again.
    if (!line.includes("secret") && this.past.at(-1) !== line) this.past.push(line);
    if (this.past.length > remembered) this.past.shift();
    const { command, args, wrong } = this.schema ? this.schema.parse(line) : { command: line, args: undefined, wrong: "" };
    const answer = h("pre", { text: "…" });
    this.output.append(h("pre", { class: "asked", text: "> " + line }), answer);
    while (this.output.childElementCount > 2 * mostAnswers) this.output.firstElementChild.remove();
    try {
      if (wrong) throw new Error(wrong);
      const got = await this.daemon.qmp.execute(command, args);
      setText(answer, JSON.stringify(got, null, 2));
    } catch (error) {
      const e = /** @type {any} */ (error);
      answer.className = "error";
      setText(answer, (e.class ? e.class + ": " : "") + e.message);
    }
    this.output.scrollTop = this.output.scrollHeight;
  }

  /** Shows the documentation of a command. @param {string} name */
  explain(name) {
    if (this.explained === name + this.manual.size) return;
    const text = this.manual.get(name);
    if (text === undefined && name) return; // the last one stays until the next is complete
    this.explained = name + this.manual.size;
    if (!name) {
      const commands = [...this.manual.keys()].filter((n) => this.daemon.commands.has(n));
      this.doc.replaceChildren(h("h2", { text: "Commands" }),
        h("p", { class: "dim", text: "A command and its arguments as KEY=VALUE, with dots for members; or JSON. Tab completes, the arrows bring back earlier lines." }),
        ...commands.map((n) => h("div", {}, h("a", { href: "#console", class: "mono", text: n, onclick: (/** @type {Event} */ e) => { e.preventDefault(); this.follow(n); } }))));
      return;
    }
    this.doc.replaceChildren(h("h2", { text: name }), ...render(/** @type {string} */ (text), (n) => this.follow(n)));
    this.doc.scrollTop = 0;
  }

  /** @param {string} name */
  follow(name) {
    const found = [...this.manual.keys()].find((n) => n.toLowerCase() === name.toLowerCase());
    if (found) this.explain(found);
    if (found && !this.input.value.trim() && this.daemon.commands.has(found)) this.input.value = found + " ";
    this.input.focus();
  }
}
