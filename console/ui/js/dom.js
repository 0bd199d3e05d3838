// What all screens are made of. Text becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

// plain shows what is there and cannot be seen: characters that turn the order of others
// around, by which one name looks like another, and those that are not for people.
export const plain = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (c) => "‹" + c.codePointAt(0).toString(16).padStart(4, "0") + "›");

function fill(e, props, children) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || (value === false && !key.startsWith("aria-"))) continue;
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else e.setAttribute(key, value === true && !key.startsWith("aria-") ? "" : key === "title" || key.startsWith("aria-") ? plain(value) : String(value));
  }
  e.append(...children.flat(2).filter((c) => c !== null && c !== undefined && c !== false).map((c) => (c instanceof Node ? c : plain(c))));
  return e;
}

export const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);
export const svg = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

// set changes attributes that are not so already.
export function set(e, props) {
  for (const [key, value] of Object.entries(props)) {
    const text = String(value);
    if (e.getAttribute(key) !== text) e.setAttribute(key, text);
  }
}

// say changes a text that is not so already.
export function say(e, text) {
  text = plain(text ?? "");
  if (e.textContent !== text) e.textContent = text;
}

// How a thing stands: its word, its glyph and its color, worst last in order.
export const STATES = {
  up: { word: "up", glyph: "✓", tone: "ok", rank: 0 },
  unknown: { word: "unknown", glyph: "?", tone: "mute", rank: 2 },
  old: { word: "too old to tell", glyph: "…", tone: "warn", rank: 3 },
  denied: { word: "denied", glyph: "–", tone: "warn", rank: 3 },
  partly: { word: "cut off in part", glyph: "!", tone: "bad", rank: 5 },
  one_way: { word: "one way only", glyph: "→", tone: "bad", rank: 5 },
  cut: { word: "cut", glyph: "✕", tone: "bad", rank: 6 },
  down: { word: "down", glyph: "✕", tone: "bad", rank: 6 },
  deaf: { word: "deaf", glyph: "!", tone: "bad", rank: 7 },
};
export const stateOf = (name) => STATES[name] || { word: name || "unknown", glyph: "?", tone: "mute", rank: 2 };

export function badge(name, word) {
  const s = stateOf(name);
  return el("span", { class: "state " + s.tone }, el("span", { class: "glyph", "aria-hidden": "true" }, s.glyph), " " + (word || s.word));
}

export const prefs = {
  get(key, otherwise) {
    try { return localStorage.getItem("fleetbus." + key) ?? otherwise; } catch { return otherwise; }
  },
  set(key, value) {
    try { localStorage.setItem("fleetbus." + key, value); } catch { /* it is asked again */ }
  },
};

const utc = () => prefs.get("utc", "") === "yes";

export function when(ms) {
  if (!ms) return "–";
  const d = new Date(ms);
  if (utc()) return d.toISOString().replace("T", " ").slice(0, 19) + " UTC";
  return d.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

// day is when without the time of the day.
export function day(ms) {
  if (!ms) return "–";
  return utc() ? new Date(ms).toISOString().slice(0, 10) : new Date(ms).toLocaleDateString(undefined, { dateStyle: "medium" });
}

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " d " + Math.floor((s % 86400) / 3600) + " h";
}

export const since = (ms, now = Date.now()) => (ms ? span(now - ms) : "–");
export const number = (n) => (n === undefined || n === null ? "–" : Number(n).toLocaleString("en-US", { maximumFractionDigits: 0 }));
export const plural = (n, one, many = one + "s") => number(n) + " " + (n === 1 ? one : many);

export function size(n) {
  if (n === undefined || n === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (i === 0 || n >= 100 ? Math.round(n) : Math.round(n * 10) / 10) + " " + units[i];
}

export function rate(n, unit = "B") {
  if (!n) return "0";
  if (unit === "B") return size(n) + "/s";
  return (n >= 10 ? number(n) : Math.round(n * 10) / 10) + "/s";
}

export function trip(us) {
  if (!us) return "–";
  if (us < 1000) return us + " µs";
  return (us < 10000 ? Math.round(us / 100) / 10 : Math.round(us / 1000)) + " ms";
}

// facts is a list of what is known of one thing.
export function facts(pairs) {
  const dl = el("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value === undefined || value === null || value === "" || value === "–") continue;
    dl.append(el("dt", {}, name), el("dd", {}, value));
  }
  return dl;
}

export const card = (name, value, tone) => el("div", { class: "card" }, el("b", { class: tone || "" }, value), el("span", {}, name));

// fix shows what mends something: commands in a form that can be copied.
export function fix(text) {
  if (!text) return null;
  const parts = String(text).split(/(fleetbus [a-z][\w .\-\/]*)/);
  return el("span", {}, "Fix: ", parts.map((p) => (p.startsWith("fleetbus ") ? el("code", {}, p.trim()) : p)));
}

// call asks the node, or tells it to do something. What it refuses is thrown, with
// what, fix and status.
export async function call(path, body) {
  const options = { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(40000) };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch("api/" + path, options);
  } catch {
    throw Object.assign(new Error("the node does not answer"), { status: 0, fix: "" });
  }
  const text = await answer.text();
  let data = {};
  try { data = text ? JSON.parse(text) : {}; } catch { /* it is no answer of ours */ }
  if (!answer.ok) throw Object.assign(new Error(data.error || "the node answered " + answer.status), { status: answer.status, fix: data.fix || "" });
  return data;
}

export function announce(text) { say(document.getElementById("announce"), text); }

// confirm asks a question; the answer is a promise.
export function confirm(title, text, verb) {
  return new Promise((resolve) => {
    const yes = el("button", { class: "danger", value: "yes" }, verb);
    const d = el("dialog", { "aria-labelledby": "ask" },
      el("form", { method: "dialog" }, el("h2", { id: "ask" }, title), el("p", {}, text),
        el("div", { class: "actions" }, el("button", { value: "no", autofocus: true }, "Cancel"), yes)));
    d.addEventListener("close", () => { resolve(d.returnValue === "yes"); d.remove(); });
    document.body.append(d);
    d.showModal();
  });
}

// act does something after a question, and says how it went next to the button.
export function action(label, danger, ask, path, body) {
  const said = el("span", { role: "status", class: "note" });
  const button = el("button", { class: danger ? "danger" : "", onclick: async () => {
    if (ask && !(await confirm(label, ask, label))) return;
    button.disabled = true;
    say(said, "asking…");
    try {
      await call("do/" + path, body);
      say(said, "done");
    } catch (e) {
      say(said, e.message + (e.fix ? " – " + e.fix : ""));
    }
    button.disabled = false;
  } }, label);
  return el("span", { class: "actions" }, button, said);
}
