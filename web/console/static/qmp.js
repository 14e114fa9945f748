// QMP over WebSocket: one connection to the daemon that served this page.
// It reconnects by itself; whoever uses it hears of each new connection.
//
// Events of the object: `open` (detail: the greeting), `close` (detail: why),
// `event` (detail: an event of QMP).

/** An error that the daemon answered. */
export class QMPError extends Error {
  /** @param {{class: string, desc: string}} error */
  constructor(error) {
    super(error.desc);
    this.class = error.class;
  }
}

const firstPause = 250;
const longestPause = 5000;

export class QMP extends EventTarget {
  /**
   * @param {string} url
   * @param {(url: string) => WebSocket} connect makes a socket; for tests
   */
  constructor(url, connect = (u) => new WebSocket(u)) {
    super();
    this.url = url;
    this.connect = connect;
    /** @type {WebSocket | null} */
    this.socket = null;
    this.ready = false;
    this.pause = firstPause;
    this.next = 1;
    /** @type {Map<number, {resolve: (v: any) => void, reject: (e: Error) => void}>} */
    this.waiting = new Map();
    this.timer = 0;
    this.resting = false;
  }

  /** Connects, and goes on doing so until stop. */
  start() {
    let opened = false;
    const socket = this.connect(this.url);
    this.socket = socket;
    socket.onmessage = (m) => this.receive(m.data);
    socket.onopen = () => { opened = true; };
    socket.onclose = (e) => {
      if (this.socket !== socket) return;
      this.ready = false;
      const error = new Error("The connection is closed");
      const waiting = [...this.waiting.values()];
      this.waiting.clear();
      for (const w of waiting) w.reject(error);
      this.dispatchEvent(new CustomEvent("close", { detail: { opened, code: e.code, reason: e.reason } }));
      if (!this.resting) this.timer = setTimeout(() => this.start(), this.pause);
      this.pause = Math.min(this.pause * 2, longestPause);
    };
  }

  /** Tries now what would be tried later. */
  retry() {
    this.resting = false;
    if (this.socket && this.socket.readyState === 3) {
      clearTimeout(this.timer);
      this.pause = firstPause;
      this.start();
    }
  }

  /** Tries no more until retry is called. */
  rest() {
    clearTimeout(this.timer);
    this.resting = true;
  }

  /** Disconnects for good. */
  stop() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  }

  /** @param {string} text */
  receive(text) {
    const message = JSON.parse(text);
    if (message.QMP) {
      const greeting = message.QMP;
      this.send("qmp_capabilities", undefined).then(() => {
        this.ready = true;
        this.pause = firstPause;
        this.dispatchEvent(new CustomEvent("open", { detail: greeting }));
      }, () => this.socket?.close());
      return;
    }
    if (message.event) {
      this.dispatchEvent(new CustomEvent("event", { detail: message }));
      return;
    }
    const w = this.waiting.get(message.id);
    if (!w) return;
    this.waiting.delete(message.id);
    if (message.error) w.reject(new QMPError(message.error));
    else w.resolve(message.return);
  }

  /**
   * @param {string} command
   * @param {object} [args]
   * @returns {Promise<any>}
   */
  send(command, args) {
    return new Promise((resolve, reject) => {
      if (!this.socket || this.socket.readyState !== 1) {
        reject(new Error("Not connected"));
        return;
      }
      const id = this.next++;
      this.waiting.set(id, { resolve, reject });
      this.socket.send(JSON.stringify({ execute: command, arguments: args, id }));
    });
  }

  /**
   * Runs a command once negotiation is over.
   * @param {string} command
   * @param {object} [args]
   */
  execute(command, args) {
    if (!this.ready) return Promise.reject(new Error("Not connected"));
    return this.send(command, args);
  }
}
