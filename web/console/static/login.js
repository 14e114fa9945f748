// Tokens. Where the daemon asks for one, the page asks the user, and keeps it as
// long as its tab is open: not in a cookie, which browsers send unasked, nor in
// the address, which ends up in logs.

import { h, setText } from "./dom.js";

const place = "blockd.token";

export class Login {
  constructor() {
    /** @type {any} */
    this.dialog = null;
  }

  get token() { return sessionStorage.getItem(place) ?? ""; }

  /** The subprotocols to open a WebSocket with. @returns {string[]} */
  protocols() {
    const list = ["blockd.qmp"];
    if (this.token) {
      list.push("blockd.token." + btoa(this.token).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, ""));
    }
    return list;
  }

  /** Why a connection was refused, if that can be learnt. @returns {Promise<{ask: boolean, text: string}>} */
  async why() {
    try {
      const answer = await fetch(new URL("session", location.href), { headers: this.token ? { Authorization: "Bearer " + this.token } : {} });
      if (answer.status === 401) return { ask: true, text: this.token ? "The token is wrong, or no longer good." : "This daemon asks for a token." };
      if (answer.status === 429) return { ask: false, text: "The daemon asks to wait: there were too many requests." };
      if (!answer.ok) return { ask: false, text: (await answer.text()).trim() || "The daemon refuses: " + answer.status };
      return { ask: false, text: "QMP was refused: too many sessions, or it is not served (qmp=on)." };
    } catch {
      return { ask: false, text: "" }; // it is not there, which the connection's state says
    }
  }

  /** Asks for a token. @param {string} text @param {() => void} then */
  ask(text, then) {
    if (this.dialog?.open) return;
    if (!this.dialog) {
      const input = h("input", { class: "field", type: "password", autocomplete: "off", "aria-label": "Token", id: "token" });
      const why = h("p", {});
      this.dialog = h("dialog", { "aria-label": "Token" }, h("form", { method: "dialog" }, why, input, h("div", { class: "row" }, h("button", { class: "button primary", value: "ok", text: "Connect" }))));
      this.dialog.say = why;
      this.dialog.input = input;
      document.body.append(this.dialog);
      this.dialog.addEventListener("close", () => {
        const token = input.value.trim();
        input.value = "";
        if (this.dialog.returnValue !== "ok" || !token) return;
        // Neither a header nor a subprotocol could carry another one.
        sessionStorage.setItem(place, token.replace(/[^!-~]/g, "?"));
        this.then?.();
      });
    }
    this.then = then;
    setText(this.dialog.say, text);
    this.dialog.showModal();
  }
}
