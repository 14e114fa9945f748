// What the daemon says about its commands (query-qmp-schema), for the command
// line: lines become commands with typed arguments, and words can be completed.
//
// A line is a command and its arguments as KEY=VALUE, with dots for members and
// numbers for elements of lists (file.driver=file, bitmaps.0=b); quotes hold
// what has spaces; braces and brackets are JSON. Or the line is a command in
// JSON as it goes over the wire.

/** @typedef {{text: string, kind: string, hint: string}} Offer */

export class Schema {
  /** @param {any[]} infos */
  constructor(infos) {
    /** @type {Map<string, any>} */ this.types = new Map();
    /** @type {Map<string, any>} */ this.commands = new Map();
    for (const i of infos) {
      if (i["meta-type"] === "command") this.commands.set(i.name, i);
      else if (i["meta-type"] !== "event") this.types.set(i.name, i);
    }
  }

  /** @param {string} command */
  argument(command) {
    return this.types.get(this.commands.get(command)?.["arg-type"]);
  }

  /** Members of an object, with those of the variant that `given` selects. @param {any} type @param {any} given @returns {any[]} */
  members(type, given) {
    if (!type) return [];
    const list = [...(type.members ?? [])];
    for (const v of type.variants ?? []) {
      if (given && v.case === given[type.tag]) list.push(...this.members(this.types.get(v.type), given));
    }
    return list;
  }

  /** The types that a value may have. @param {any} type @returns {any[]} */
  branches(type) {
    if (!type) return [];
    if (type["meta-type"] !== "alternate") return [type];
    return type.members.map((/** @type {any} */ m) => this.types.get(m.type)).filter(Boolean);
  }

  /** The words that a value may be. @param {any} type @returns {string[]} */
  values(type) {
    const words = [];
    for (const b of this.branches(type)) {
      if (b["meta-type"] === "enum") words.push(...(b.values ?? b.members.map((/** @type {any} */ m) => m.name)));
      else if (b["json-type"] === "boolean") words.push("true", "false");
    }
    return words;
  }

  /** From an object to a member, or from a list to an element. @param {any} type @param {any} given @param {string} part */
  step(type, given, part) {
    for (const b of this.branches(type)) {
      if (b["meta-type"] === "object") {
        const m = this.members(b, given).find((x) => x.name === part);
        if (m) return { type: this.types.get(m.type), given: given?.[part] };
      }
      if (b["meta-type"] === "array") return { type: this.types.get(b["element-type"]), given: given?.[part] };
    }
    return { type: undefined, given: undefined };
  }

  /** A type in a word or two. @param {any} type @returns {string} */
  name(type) {
    if (!type) return "";
    switch (type["meta-type"]) {
      case "array": return "[" + this.name(this.types.get(type["element-type"])) + "]";
      case "alternate": return this.branches(type).map((b) => this.name(b)).join(" or ");
      case "builtin": return type["json-type"] === "int" ? "integer" : type["json-type"];
      default: return type["meta-type"];
    }
  }

  /**
   * What the last word of a line can become.
   * @param {string} line
   * @param {(key: string) => string[]} names what there is, for members that name it: nodes, jobs, exports
   * @returns {{from: number, offers: Offer[]}}
   */
  complete(line, names = () => []) {
    const words = split(line);
    const open = words.length && words[words.length - 1].end === line.length && !/\s$/.test(line) ? words.pop() : undefined;
    const last = open?.text ?? "";
    const from = open?.start ?? line.length;
    if (last.startsWith("{") || (words[0]?.text ?? "").startsWith("{")) return { from, offers: [] };
    /** @type {Offer[]} */
    let offers;
    if (!words.length) {
      offers = [...this.commands.keys()].map((text) => ({ text, kind: "command", hint: "" }));
    } else {
      const command = words[0].text;
      const { args } = this.arguments(command, words.slice(1).map((w) => w.text));
      const at = last.indexOf("=");
      const key = at < 0 ? last : last.slice(0, at);
      const parts = key.split(".");
      const leaf = /** @type {string} */ (parts.pop());
      let type = this.argument(command);
      /** @type {any} */
      let given = args;
      for (const p of parts) ({ type, given } = this.step(type, given, p));
      const lead = parts.map((p) => p + ".").join("");
      if (at >= 0) {
        const value = this.step(type, given, leaf).type;
        const some = [...this.values(value), ...(value && !this.values(value).length ? names(leaf) : [])];
        offers = some.map((v) => ({ text: key + "=" + quoted(v), kind: "value", hint: "" }));
      } else {
        offers = this.branches(type).filter((b) => b["meta-type"] === "object").flatMap((b) => this.members(b, given))
          .filter((m) => !(given && m.name in given && parts.length === 0))
          .map((m) => {
            const t = this.types.get(m.type);
            const object = this.branches(t).every((b) => b["meta-type"] === "object");
            return { text: lead + m.name + (object ? "." : "="), kind: m.default === undefined ? "required" : "optional", hint: this.name(t) };
          });
        offers.sort((a, b) => (a.kind === b.kind ? 0 : a.kind === "required" ? -1 : 1));
      }
    }
    const seen = new Set();
    offers = offers.filter((o) => o.text.startsWith(last) && o.text !== last && !seen.has(o.text) && seen.add(o.text));
    if (!words.length) offers.sort((a, b) => (a.text < b.text ? -1 : 1));
    return { from, offers };
  }

  /**
   * The arguments that words make, with the types that the schema wants. What
   * does not fit stays text: the daemon says what is wrong in its own words.
   * @param {string} command @param {string[]} words
   * @returns {{args: any, wrong: string}}
   */
  arguments(command, words) {
    /** @type {any} */
    const args = Object.create(null);
    let wrong = "";
    for (const w of words) {
      const at = w.indexOf("=");
      if (at <= 0) {
        wrong ||= `KEY=VALUE is expected, not ${w}`;
        continue;
      }
      const parts = w.slice(0, at).split(".");
      let o = args;
      for (const p of parts.slice(0, -1)) {
        if (typeof o[p] !== "object" || o[p] === null) o[p] = Object.create(null);
        o = o[p];
      }
      o[/** @type {string} */ (parts.at(-1))] = w.slice(at + 1);
    }
    return { args: this.typed(this.argument(command), args), wrong };
  }

  /** @param {any} type @param {any} v @returns {any} */
  typed(type, v) {
    if (typeof v === "string") return this.scalar(type, v);
    if (typeof v !== "object" || v === null) return v;
    const branches = this.branches(type);
    const keys = Object.keys(v);
    const array = branches.find((b) => b["meta-type"] === "array");
    if (array && keys.length && keys.every((k, i) => k === String(i))) {
      return keys.map((k) => this.typed(this.types.get(array["element-type"]), v[k]));
    }
    const object = branches.find((b) => b["meta-type"] === "object");
    /** @type {any} */
    const out = {};
    const given = object ? v : {};
    for (const k of keys) {
      const m = this.members(object, given).find((x) => x.name === k);
      out[k] = this.typed(this.types.get(m?.type), v[k]);
    }
    return out;
  }

  /** @param {any} type @param {string} word @returns {any} */
  scalar(type, word) {
    const branches = this.branches(type);
    for (const b of branches) {
      switch (b["json-type"]) {
        case "int": {
          const n = size(word);
          if (n !== undefined) return n;
          break;
        }
        case "number":
          if (word !== "" && Number.isFinite(Number(word))) return Number(word);
          break;
        case "boolean":
          if (["on", "true", "yes"].includes(word)) return true;
          if (["off", "false", "no"].includes(word)) return false;
          break;
        case "null":
          if (word === "null") return null;
          break;
        case "value":
        case "object":
        case "array":
          try {
            if (b["json-type"] === "value" || /^[[{]/.test(word)) return JSON.parse(word);
          } catch { /* then it is text */ }
          if (b["json-type"] === "array" && branches.length === 1) return word === "" ? [] : word.split(",").map((w) => this.typed(this.types.get(b["element-type"]), w));
      }
    }
    return word;
  }

  /**
   * The command of a line.
   * @param {string} line
   * @returns {{command: string, args: any, wrong: string}}
   */
  parse(line) {
    if (line.trim().startsWith("{")) {
      try {
        const o = JSON.parse(line);
        if (typeof o.execute !== "string") return { command: "", args: undefined, wrong: 'a command in JSON has "execute"' };
        return { command: o.execute, args: o.arguments, wrong: "" };
      } catch (e) {
        return { command: "", args: undefined, wrong: /** @type {Error} */ (e).message };
      }
    }
    const words = split(line).map((w) => w.text);
    const command = words.shift() ?? "";
    const { args, wrong } = this.arguments(command, words);
    return { command, args: words.length ? args : undefined, wrong };
  }
}

const multiples = new Map([["", 1], ["k", 2 ** 10], ["m", 2 ** 20], ["g", 2 ** 30], ["t", 2 ** 40], ["p", 2 ** 50]]);

/** A whole number, with or without a unit; undefined: it is none, or would lose digits. @param {string} word */
function size(word) {
  const m = /^(-?(?:0x[0-9a-f]+|\d+))([kmgtp]?)$/i.exec(word);
  if (!m) return undefined;
  const n = (m[1].startsWith("-") ? -Number(m[1].slice(1)) : Number(m[1])) * /** @type {number} */ (multiples.get(m[2].toLowerCase()));
  return Number.isSafeInteger(n) ? n : undefined;
}

/** @param {string} word */
function quoted(word) {
  return /[\s"'\\]/.test(word) ? "'" + word.replace(/\\/g, "\\\\").replace(/'/g, "\\'") + "'" : word;
}

/**
 * Splits a line into words: at spaces, but not within quotes, braces and
 * brackets. Within quotes a backslash takes the next character as it is.
 * @param {string} line
 * @returns {{text: string, start: number, end: number}[]}
 */
export function split(line) {
  const words = [];
  let i = 0;
  while (i < line.length) {
    while (/\s/.test(line[i] ?? "x")) i++;
    if (i >= line.length) break;
    const start = i;
    let text = "";
    let depth = 0;
    let quote = "";
    for (; i < line.length; i++) {
      const c = line[i];
      if (quote) {
        if (c === "\\" && i + 1 < line.length) text += (depth ? c : "") + line[++i];
        else if (c === quote) {
          quote = "";
          if (depth) text += c;
        } else text += c;
      } else if (c === '"' || c === "'") {
        quote = c;
        if (depth) text += c;
      } else if (/\s/.test(c) && depth === 0) break;
      else {
        if (c === "{" || c === "[") depth++;
        if (c === "}" || c === "]") depth--;
        text += c;
      }
    }
    words.push({ text, start, end: i });
  }
  return words;
}
