// The documentation of commands and events: docs/commands.md, which is part of
// the program, by section, and drawn as elements. Only the Markdown that the
// file uses is known: headings, paragraphs, lists, tables, code and links.

import { h } from "./dom.js";

/** Sections by their headings, which are names of commands and events. @param {string} text @returns {Map<string, string>} */
export function sections(text) {
  /** @type {Map<string, string>} */
  const found = new Map();
  let name = "";
  /** @type {string[]} */
  let body = [];
  let code = false;
  for (const line of [...text.split("\n"), "## "]) {
    if (line.startsWith("```")) code = !code;
    const m = code ? null : /^(#{1,3}) (.*)$/.exec(line);
    if (!m) {
      body.push(line);
      continue;
    }
    if (name) found.set(name, body.join("\n").trim());
    name = m[1].length === 3 ? m[2].trim() : "";
    body = [];
  }
  return found;
}

/**
 * The elements of a piece of Markdown.
 * @param {string} text
 * @param {(name: string) => void} follow leads to another section
 * @returns {Element[]}
 */
export function render(text, follow) {
  const out = [];
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    if (line.trim() === "") i++;
    else if (line.startsWith("#")) {
      out.push(h("h4", {}, ...inline(line.replace(/^#+ /, ""), follow)));
      i++;
    } else if (line.startsWith("|")) {
      const rows = [];
      for (; i < lines.length && lines[i].startsWith("|"); i++) rows.push(cells(lines[i]));
      const [head, , ...body] = rows;
      out.push(h("table", {}, h("thead", {}, h("tr", {}, ...head.map((c) => h("th", { scope: "col" }, ...inline(c, follow))))),
        h("tbody", {}, ...body.map((r) => h("tr", {}, ...r.map((c) => h("td", {}, ...inline(c, follow))))))));
    } else if (line.startsWith("    ") || line.startsWith("```")) {
      const fence = line.startsWith("```");
      if (fence) i++;
      const code = [];
      for (; i < lines.length && (fence ? !lines[i].startsWith("```") : lines[i].startsWith("    ")); i++) code.push(fence ? lines[i] : lines[i].slice(4));
      if (fence) i++;
      out.push(h("pre", { text: code.join("\n") }));
    } else if (/^[-*] /.test(line)) {
      const items = [];
      for (; i < lines.length && /^[-*] /.test(lines[i]); i++) items.push(h("li", {}, ...inline(lines[i].slice(2), follow)));
      out.push(h("ul", {}, ...items));
    } else {
      const words = [];
      for (; i < lines.length && lines[i].trim() !== "" && !/^(#|\||[-*] |```)/.test(lines[i]); i++) words.push(lines[i]);
      out.push(h("p", {}, ...inline(words.join(" "), follow)));
    }
  }
  return out;
}

/** @param {string} line */
function cells(line) {
  return line.replace(/^\||\|$/g, "").split("|").map((c) => c.trim());
}

/** @param {string} text @param {(name: string) => void} follow @returns {(Node | string)[]} */
function inline(text, follow) {
  const out = [];
  const token = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*]+)\*|\[([^\]]+)\]\(([^)]+)\)/g;
  let end = 0;
  for (const m of text.matchAll(token)) {
    out.push(text.slice(end, m.index));
    end = m.index + m[0].length;
    if (m[1]) out.push(h("code", { text: m[1] }));
    else if (m[2]) out.push(h("b", { text: m[2] }));
    else if (m[3]) out.push(h("i", { text: m[3] }));
    else if (m[5].startsWith("#")) {
      const name = m[5].slice(1);
      out.push(h("a", { href: "#console", onclick: (/** @type {Event} */ e) => { e.preventDefault(); follow(name); } }, ...inline(m[4], follow)));
    } else out.push(...inline(m[4], follow)); // what it leads to is not here
  }
  out.push(text.slice(end));
  return out.filter((x) => x !== "");
}
