// What the browser's tests need: daemons with images, a client of QMP, and
// pages of a real Chromium.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const root = path.resolve(import.meta.dirname, "../../../..");
export const program = path.resolve(root, process.env.BLOCKD ?? "bin/blockd-test");
const seconds = 20 * Number(process.env.IOTESTS_TIMEOUT_SCALE ?? 1);
export const patience = seconds * 1000;

/** Asks until the answer is true. It is for what other processes do; whoever fails here has waited long. */
export async function until(what, ask) {
  const end = Date.now() + patience;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    if (Date.now() > end) throw new Error("not within " + seconds + " s: " + what);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A client of a monitor. */
class Client {
  constructor(socket) {
    this.socket = socket;
    this.waiting = [];
    let text = "";
    socket.setEncoding("utf8");
    socket.on("data", (part) => {
      text += part;
      for (let end; (end = text.indexOf("\n")) >= 0; text = text.slice(end + 1)) {
        const message = JSON.parse(text.slice(0, end));
        if ("return" in message || "error" in message) this.waiting.shift()(message);
      }
    });
    socket.on("error", () => {}); // the daemon's end is seen by its process
  }

  async cmd(execute, args) {
    const reply = new Promise((resolve) => this.waiting.push(resolve));
    this.socket.write(JSON.stringify({ execute, arguments: args }) + "\n");
    const message = await reply;
    if (message.error) throw new Error(execute + ": " + message.error.desc);
    return message.return;
  }
}

/** A daemon with a web address and a monitor. */
export class Daemon {
  /** @param {string} dir @param {{web?: string, port?: number}} [options] */
  static async start(dir, { web = "", port } = {}) {
    for (let tries = 0; ; tries++) {
      const d = new Daemon();
      d.dir = dir;
      d.port = port ?? (await freePort());
      d.url = `http://127.0.0.1:${d.port}/`;
      const monitor = path.join(dir, `qmp-${Date.now()}-${tries}`);
      d.output = "";
      d.process = spawn(program, ["--chardev", `socket,id=m,path=${monitor},server=on,wait=off`, "--monitor", "m", "--web", `addr=127.0.0.1:${d.port},qmp=on${web}`], { stdio: ["ignore", "pipe", "pipe"] });
      d.exited = once(d.process, "exit");
      for (const stream of [d.process.stdout, d.process.stderr]) stream.on("data", (part) => { d.output += part; });
      const socket = await until("a monitor", async () => {
        if (d.process.exitCode !== null) return "ended";
        const s = net.connect(monitor);
        return new Promise((resolve) => {
          s.once("connect", () => resolve(s));
          s.once("error", () => resolve(null));
        });
      });
      if (socket === "ended") {
        // Somebody else has taken the port meanwhile.
        if (tries < 5 && /in use/i.test(d.output)) continue;
        throw new Error(d.output);
      }
      d.client = new Client(socket);
      await d.cmd("qmp_capabilities");
      return d;
    }
  }

  cmd(execute, args) { return this.client.cmd(execute, args); }

  image(name, backing, fill) {
    const file = path.join(this.dir, name);
    execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", ...(backing ? ["-b", backing, "-F", "qcow2"] : []), file, "8M"]);
    if (fill) execFileSync("qemu-io", ["-f", "qcow2", "-c", fill, file]);
    return file;
  }

  qcow2(name, file, backing) {
    return this.cmd("blockdev-add", { driver: "qcow2", "node-name": name, file: { driver: "file", "node-name": name + "-file", filename: file }, ...(backing === undefined ? {} : { backing }) });
  }

  async status(job) {
    return (await this.cmd("query-jobs")).find((j) => j.id === job)?.status ?? "null";
  }

  /** The graph as it is: sorted nodes, and edges as PARENT NAME CHILD; users are told by kind. */
  async picture() {
    const g = await this.cmd("x-debug-query-block-graph");
    const last = (await this.cmd("x-query-graph-history")).last;
    const names = new Map(g.nodes.map((n) => [n.id, n.type === "block-driver" ? n.name : n.type === "block-job" ? "job " + n.name : "user"]));
    return {
      last,
      nodes: g.nodes.filter((n) => n.type === "block-driver").map((n) => n.name).sort(),
      jobs: g.nodes.filter((n) => n.type === "block-job").map((n) => "job " + n.name).sort(),
      edges: g.edges.map((e) => `${names.get(e.parent)} ${e.name} ${names.get(e.child)}`).sort(),
    };
  }

  async stop(signal = "SIGTERM") {
    this.process.kill(signal);
    await this.exited;
    this.client.socket.destroy();
  }
}

async function freePort() {
  const server = net.createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A browser with a new, empty profile. */
export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-dev-shm-usage"],
  });
}

/** A page of its own, which notes what goes wrong in it. */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(patience);
  page.wrong = [];
  page.on("pageerror", (e) => page.wrong.push(e.stack));
  page.on("console", (m) => {
    // A WebSocket that fails is told there, whatever the page does about it.
    if (m.type() === "error" && !/WebSocket connection|Failed to load resource/.test(m.text())) page.wrong.push(m.text());
  });
  await page.goto(url);
  return page;
}

export const connected = (page) => page.waitForSelector("#connection.connected");

/** What the page shows of the graph, as Daemon.picture tells it. */
export function shown(page) {
  return page.evaluate(() => {
    const all = (selector, f) => [...document.querySelectorAll(selector)].map(f).sort();
    const live = (e) => !e.classList.contains("removed");
    const view = globalThis.blockd.tabs[0].view;
    const name = (id) => { const b = view.byID.get(id); return b.kind === "node" || b.kind === "job" ? b.full : "user"; };
    return {
      nodes: all("g.box", (e) => (live(e) && !e.matches(".job, .export, .user") ? e.dataset.title : null)).filter(Boolean),
      jobs: all("g.box.job", (e) => (live(e) ? e.dataset.title : null)).filter(Boolean),
      edges: view.shown.arrows.filter((a) => a.mark !== "removed" && document.querySelector(`g.arrow[data-edge="${CSS.escape(`${a.from} ${a.label} ${a.to}`)}"]`)).map((a) => `${name(a.from)} ${a.label} ${name(a.to)}`).sort(),
    };
  });
}

export function temporary() {
  return fs.mkdtempSync(path.join(os.tmpdir(), "blockd-console-"));
}

export function read(file) {
  return fs.readFileSync(file, "utf8");
}

export function write(name, text, mode) {
  fs.writeFileSync(name, text, { mode });
}

export function remove(dir) {
  fs.rmSync(dir, { recursive: true, force: true });
}
