// The tab of jobs: what each does, how long it will take, which states it went
// through, and the verbs that its state allows.

import { bytes, duration, percent, rate } from "./format.js";
import { firstStates } from "./daemon.js";
import { h, set, setText, sync } from "./dom.js";

// Which verbs a state allows: jobs/state.go, docs/commands.md.
const early = ["created", "running", "paused", "ready", "standby"];
/** @type {[string, string, (j: any) => boolean][]} */
const verbs = [
  ["Pause", "job-pause", (j) => early.includes(j.status) && !j.paused && !["paused", "standby"].includes(j.status)],
  ["Resume", "job-resume", (j) => early.includes(j.status) && (j.paused || ["paused", "standby"].includes(j.status))],
  ["Set speed", "block-job-set-speed", (j) => early.includes(j.status) && j.block],
  ["Complete", "job-complete", (j) => ["ready", "standby"].includes(j.status)],
  ["Finalize", "job-finalize", (j) => j.status === "pending"],
  ["Dismiss", "job-dismiss", (j) => j.status === "concluded"],
  ["Cancel", "job-cancel", (j) => [...early, "waiting", "pending"].includes(j.status)],
];

export class JobsTab {
  /** @param {import("./daemon.js").Daemon} daemon */
  constructor(daemon) {
    this.daemon = daemon;
    this.title = "Jobs";
    this.list = h("div", { class: "page" });
    this.none = h("div", { class: "empty", text: "No jobs. Those that come are shown here with their progress and, after they end, with their history." });
    this.element = h("section", { role: "tabpanel", "aria-label": "Jobs" }, h("div", { class: "scroll" }, this.none, this.list));
    this.dialog = this.makeDialog();
    this.element.append(this.dialog);
    this.pending = false;
    for (const what of ["jobs", "connection"]) daemon.addEventListener(what, () => this.later());
  }

  later() {
    const alive = [...this.daemon.jobs.values()].filter((j) => !j.gone).length;
    this.count(alive ? String(alive) : "");
    if (this.pending || !this.daemon.looking.has("jobs")) return;
    this.pending = true;
    setTimeout(() => {
      this.pending = false;
      this.draw();
    }, 16);
  }

  /** Set by the page: shows a number beside the title. @param {string} _text */
  count(_text) {}

  /** @param {boolean} on */
  show(on) {
    if (!on) {
      this.daemon.looking.delete("jobs");
      return;
    }
    this.daemon.looking.add("jobs");
    this.daemon.ask("jobs");
    this.draw();
  }

  draw() {
    const jobs = [...this.daemon.jobs.values()].reverse().sort((a, b) => Number(a.gone) - Number(b.gone));
    this.none.hidden = jobs.length > 0;
    this.list.hidden = jobs.length === 0;
    sync(this.list, jobs, (j) => j.id + "\n" + j.states[0]?.at, (j) => this.make(j), (e, j) => this.fill(e, j));
  }

  /** @param {any} j */
  make(j) {
    const e = h("article", { class: "card job", "data-job": j.id, "aria-label": "job " + j.id });
    e.parts = {
      state: h("span", { class: "state" }), type: h("span", { class: "dim" }), bar: h("i"), error: h("div", { class: "error" }), figures: h("div", { class: "figures" }),
      states: h("div", { class: "states", "aria-label": "States" }), verbs: h("div", { class: "verbs" }),
    };
    e.parts.progress = h("div", { class: "progress", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": "Progress of " + j.id }, e.parts.bar);
    const buttons = verbs.map(([text, command, may]) => {
      const b = h("button", { class: "button small" + (command === "job-cancel" ? " danger" : ""), type: "button", "data-verb": command, text, onclick: () => this.act(command, e.job) });
      b.may = may;
      return b;
    });
    e.parts.verbs.append(...buttons);
    e.append(h("div", { class: "top" }, h("h3", { text: j.id }), e.parts.type, e.parts.state), e.parts.progress, e.parts.figures, e.parts.error, e.parts.states, e.parts.verbs);
    return e;
  }

  /** @param {any} e @param {any} j */
  fill(e, j) {
    e.job = j;
    const p = e.parts;
    setText(p.type, j.type);
    const failed = Boolean(j.error);
    setText(p.state, j.gone ? "gone" : j.status);
    set(p.state, "class", "state " + (failed ? "failed" : j.gone ? "" : j.status));
    const part = percent(j["current-progress"], j["total-progress"]);
    p.bar.style.width = part + "%";
    set(p.progress, "aria-valuenow", String(part));
    const running = ["running", "ready"].includes(j.status);
    const figures = [`${bytes(j["current-progress"])} of ${bytes(j["total-progress"])}`, part + " %"];
    if (running && j.rate > 0) figures.push(rate(j.rate));
    if (running && j.left > 0) figures.push(duration(j.left) + " left");
    if (j.block && j.speed !== undefined) figures.push(j.speed > 0 ? "at most " + rate(j.speed) : "no speed limit");
    const converges = j["x-convergence"];
    if (converges) figures.push(`copies ${rate(converges["copy-rate"])}, dirtied ${rate(converges["dirty-rate"])}`);
    if (j["x-scratch"]) figures.push(`scratch ${bytes(j["x-scratch"].memory + j["x-scratch"].spilled)}`);
    if (j["x-orphans"]) figures.push(j["x-orphans"] + " requests have not returned");
    setText(p.figures, figures.join("   ·   "));
    setText(p.error, j.error ?? "");
    p.error.hidden = !failed;
    const states = j.dropped + j.states.length;
    if (p.statesShown !== states) {
      p.statesShown = states;
      p.states.replaceChildren(...j.states.flatMap((/** @type {any} */ s, /** @type {number} */ i) => [
        i ? h("span", { text: i === firstStates && j.dropped ? `→ … ${j.dropped} more … →` : "→", "aria-hidden": "true" }) : null,
        h("span", { class: "state " + s.status, text: s.status, title: new Date(s.at * 1000).toLocaleString() + (i ? `, ${(s.at - j.states[i - 1].at).toFixed(2)} s after ${j.states[i - 1].status}` : "") }),
      ]).filter(Boolean));
    }
    const may = !this.daemon.readOnly && this.daemon.connection === "connected" && !j.gone;
    p.verbs.hidden = this.daemon.readOnly || j.gone;
    for (const b of p.verbs.children) b.disabled = !may || !b.may(j);
  }

  /** @param {string} command @param {any} job */
  async act(command, job) {
    if (command === "block-job-set-speed") {
      this.dialog.job = job;
      this.dialog.querySelector("input").value = String((job.speed ?? 0) / 2 ** 20);
      this.dialog.querySelector("h2").textContent = "Speed limit of " + job.id;
      this.dialog.showModal();
      return;
    }
    await this.send(command, { id: job.id });
  }

  /** @param {string} command @param {object} args */
  async send(command, args) {
    try {
      await this.daemon.qmp.execute(command, args);
    } catch (e) {
      this.daemon.tell("notice", { text: /** @type {Error} */ (e).message });
    }
    this.daemon.soon("jobs", 20);
  }

  makeDialog() {
    const input = h("input", { class: "field", type: "number", min: "0", step: "any", "aria-label": "MiB per second" });
    const dialog = h("dialog", { "aria-label": "Speed limit" }, h("form", { method: "dialog" }, h("h2", { text: "Speed limit" }),
      h("label", {}, "MiB per second, 0 for no limit ", input),
      h("div", { class: "row" }, h("button", { class: "button", value: "", text: "Cancel" }), h("button", { class: "button primary", value: "set", text: "Set" }))));
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "set" || input.value === "") return;
      this.send("block-job-set-speed", { device: dialog.job.id, speed: Math.round(Number(input.value) * 2 ** 20) });
    });
    return dialog;
  }
}
