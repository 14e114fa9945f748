// Making elements. Text is always text, never markup: the page's policy
// (Trusted Types) has no way to parse any.

const svgSpace = "http://www.w3.org/2000/svg";

/** @param {Element} e @param {Record<string, any>} attributes */
function dress(e, attributes) {
  for (const [k, v] of Object.entries(attributes)) {
    if (v === undefined || v === null || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "text") e.textContent = v;
    else e.setAttribute(k, v === true ? "" : String(v));
  }
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined)} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  dress(e, attributes);
  for (const c of children) if (c !== null && c !== undefined) e.append(c);
  return e;
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...Node} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  const e = document.createElementNS(svgSpace, tag);
  dress(e, attributes);
  e.append(...children);
  return e;
}

/** Sets an attribute only where it differs: writing costs a new style. @param {Element} e @param {string} name @param {string} value */
export function set(e, name, value) {
  if (e.getAttribute(name) !== value) e.setAttribute(name, value);
}

/** @param {Element} e @param {string} value */
export function setText(e, value) {
  if (e.textContent !== value) e.textContent = value;
}

/** Puts other children into an element, unless they are the same: who has them read out hears nothing then. @param {Element} parent @param {...Node} children */
export function fill(parent, ...children) {
  const have = parent.childNodes;
  if (have.length !== children.length || children.some((c, i) => !c.isEqualNode(have[i]))) parent.replaceChildren(...children);
}

/**
 * Brings the children of an element to a list, keeping those that are there.
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {(item: T) => string} key
 * @param {(item: T) => Element} make
 * @param {(e: any, item: T) => void} update
 */
export function sync(parent, items, key, make, update) {
  /** @type {Map<string, Element>} */
  const have = new Map();
  for (const e of [...parent.children]) have.set(/** @type {any} */ (e).syncKey, e);
  // Those that go are taken out first: else all behind them would have to be put anew.
  const wanted = new Set(items.map(key));
  for (const [k, e] of have) {
    if (wanted.has(k)) continue;
    have.delete(k);
    e.remove();
  }
  let place = parent.firstElementChild;
  for (const item of items) {
    const k = key(item);
    let e = have.get(k);
    if (e) have.delete(k);
    else {
      e = make(item);
      /** @type {any} */ (e).syncKey = k;
    }
    update(e, item);
    if (e === place) place = place.nextElementSibling;
    else parent.insertBefore(e, place);
  }
}

/** Gives a text to the browser as a file. @param {string} name @param {string} type @param {string} text */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const a = h("a", { href: url, download: name });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
