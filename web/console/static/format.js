// Numbers and times for people.

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** @param {number} n bytes */
export function bytes(n) {
  if (!Number.isFinite(n)) return "";
  let i = 0;
  while (Math.abs(n) >= 1024 && i < units.length - 1) {
    n /= 1024;
    i++;
  }
  return (i === 0 || n >= 100 || Number.isInteger(n) ? Math.round(n).toString() : n.toFixed(1)) + " " + units[i];
}

/** @param {number} n bytes per second */
export function rate(n) {
  return bytes(n) + "/s";
}

/** @param {number} s seconds */
export function duration(s) {
  if (!Number.isFinite(s)) return "";
  s = Math.max(0, Math.round(s));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + (s % 60) + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
}

/** A time of QMP, as the clock of this machine shows it. @param {{seconds: number, microseconds: number}} t */
export function clock(t) {
  const d = new Date(t.seconds * 1000);
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${String(Math.floor(t.microseconds / 1000)).padStart(3, "0")}`;
}

/** @param {number} part @param {number} whole */
export function percent(part, whole) {
  return whole > 0 ? Math.min(100, Math.floor((part / whole) * 100)) : 0;
}

/** Shortens in the middle, where names of files and ids differ least. @param {string} s @param {number} most */
export function shorten(s, most) {
  if (s.length <= most) return s;
  const head = Math.ceil((most - 1) / 2);
  return s.slice(0, head) + "…" + s.slice(s.length - (most - 1 - head));
}
