// The page: its tabs, the connection's state, notices, and the address.

import { QMP } from "./qmp.js";
import { Daemon } from "./daemon.js";
import { GraphTab } from "./graphtab.js";
import { JobsTab } from "./jobstab.js";
import { ImagesTab } from "./imagestab.js";
import { EventsTab, LogTab } from "./linestab.js";
import { ConsoleTab } from "./consoletab.js";
import { Login } from "./login.js";
import { h, setText } from "./dom.js";

const url = new URL("qmp", location.href);
url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
url.hash = "";
url.search = "";
const login = new Login();
const qmp = new QMP(url.href, (u) => new WebSocket(u, login.protocols()));
const daemon = new Daemon(qmp);

/** @type {any[]} */
const tabs = [new GraphTab(daemon), new JobsTab(daemon), new ImagesTab(daemon), new EventsTab(daemon), new LogTab(daemon), new ConsoleTab(daemon)];
const names = tabs.map((t) => t.title.toLowerCase());
const bar = /** @type {HTMLElement} */ (document.getElementById("tabs"));
const main = /** @type {HTMLElement} */ (document.getElementById("main"));
let current = -1;

const buttons = tabs.map((tab, i) => {
  const count = h("span", { class: "count", hidden: true });
  tab.count = (/** @type {string} */ text) => {
    setText(count, text);
    count.hidden = !text;
  };
  tab.element.id = "tab-" + names[i];
  tab.element.hidden = true;
  main.append(tab.element);
  const b = h("button", { role: "tab", type: "button", "aria-controls": tab.element.id, "aria-selected": "false", title: `${tab.title} (${i + 1})`, onclick: () => open(names[i]) }, tab.title, count);
  bar.append(b);
  return b;
});

/** @param {string} name @param {URLSearchParams} [q] */
function open(name, q) {
  const i = Math.max(0, names.indexOf(name));
  if (i !== current) {
    tabs.forEach((tab, k) => {
      const on = k === i;
      tab.element.hidden = !on;
      buttons[k].setAttribute("aria-selected", String(on));
      buttons[k].tabIndex = on ? 0 : -1;
      if (on || k === current) tab.show(on);
    });
    current = i;
  }
  if (q) tabs[i].open?.(q);
  const hash = tabs[i].timeline?.hash() ?? "#" + names[i];
  if (!q && location.hash !== hash) history.replaceState(null, "", hash);
}

function fromAddress() {
  const [name, query = ""] = location.hash.slice(1).split("?");
  open(name || "graph", new URLSearchParams(query));
}

bar.addEventListener("keydown", (e) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
  if (!by) return;
  open(names[(current + by + names.length) % names.length]);
  buttons[current].focus();
});
document.addEventListener("keydown", (e) => {
  const at = /** @type {HTMLElement} */ (e.target);
  if (e.defaultPrevented || e.ctrlKey || e.metaKey || e.altKey || at.matches("input, textarea, select")) return;
  if (tabs[current].key?.(e)) {
    e.preventDefault();
    return;
  }
  const n = Number(e.key);
  if (n >= 1 && n <= names.length) {
    e.preventDefault(); // the key is not for what gets the focus
    open(names[n - 1]);
  }
});
addEventListener("hashchange", fromAddress);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && !qmp.resting) qmp.retry();
});

daemon.addEventListener("connection", () => {
  const pill = /** @type {HTMLElement} */ (document.getElementById("connection"));
  pill.className = "pill " + daemon.connection;
  setText(pill, daemon.connection === "lost" ? "connection lost, trying again" : daemon.connection);
  pill.title = daemon.trouble;
  setText(/** @type {Element} */ (document.getElementById("version")), daemon.version);
  /** @type {HTMLElement} */ (document.getElementById("role")).hidden = !daemon.readOnly;
});
// A WebSocket does not say why it failed; the address does.
qmp.addEventListener("close", async (e) => {
  if (/** @type {CustomEvent} */ (e).detail.opened) return;
  const why = await login.why();
  if (why.ask) {
    qmp.rest(); // wrong tokens are counted
    login.ask(why.text, () => qmp.retry());
  } else if (why.text) notice(why.text);
});

let lastNotice = "";
/** @param {string} text @param {boolean} [good] */
function notice(text, good = false) {
  const toasts = /** @type {HTMLElement} */ (document.getElementById("toasts"));
  if (text === lastNotice && toasts.childElementCount) return;
  lastNotice = text;
  const e = h("div", { text, class: good ? "good" : "" });
  toasts.append(e);
  setTimeout(() => e.remove(), good ? 3000 : 7000);
}
daemon.addEventListener("notice", (e) => {
  const { text, good } = /** @type {CustomEvent} */ (e).detail;
  notice(text, good);
});

fromAddress();
qmp.start();
// For tests and for the curious, in the browser's own console.
Object.assign(globalThis, { blockd: { daemon, tabs, qmp } });
