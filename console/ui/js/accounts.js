import { el, svg, set, say, number, rate, size, badge, facts, call, action } from "./dom.js";
import { table } from "./table.js";

const points = 120;
const history = new Map(); // account to [[at, in, out], …]

function graph(name) {
  const w = 240, h = 54;
  const out = svg("polyline", { class: "out" }), into = svg("polyline", { class: "in" });
  const g = svg("svg", { class: "graph", viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: "none", role: "img", "aria-label": "Messages a second of " + name }, svg("line", { class: "base", x1: 0, x2: w, y1: h - 1, y2: h - 1 }), into, out);
  return { g, draw() {
    const seen = history.get(name) || [];
    const most = Math.max(1, ...seen.map((p) => Math.max(p[1], p[2])));
    const line = (k) => seen.map((p, i) => `${Math.round(w - (seen.length - 1 - i) * (w / (points - 1)))},${Math.round((h - 3) - (p[k] / most) * (h - 8))}`).join(" ");
    set(into, { points: line(1) });
    set(out, { points: line(2) });
    const last = seen[seen.length - 1] || [0, 0, 0];
    set(g, { "aria-label": `Messages a second of ${name}: ${rate(last[1], "m")} in, ${rate(last[2], "m")} out, ${rate(most, "m")} at most in two minutes` });
  } };
}

export function screen(live, app) {
  let chosen = app.param("account"), graphs = new Map(), at = 0, about = null;
  const t = table("Accounts", [
    { name: "Account", text: (r) => r.name, cell: (r) => el("button", { onclick: () => choose(r.name) }, r.name), mark: (r) => r.name },
    { name: "Users", num: true, text: (r) => number(r.users), sort: (r) => r.users },
    { name: "Connections", num: true, text: (r) => number(r.connections), sort: (r) => r.connections },
    { name: "In", num: true, text: (r) => rate(r.in_msgs, "m"), sort: (r) => r.in_msgs }, { name: "Out", num: true, text: (r) => rate(r.out_msgs, "m"), sort: (r) => r.out_msgs },
    { name: "Bytes in", num: true, text: (r) => rate(r.in_bytes), sort: (r) => r.in_bytes }, { name: "Bytes out", num: true, text: (r) => rate(r.out_bytes), sort: (r) => r.out_bytes },
  ], { key: (r) => r.name, order: 3, down: true });
  const busiest = el("div", { class: "cards" }), details = el("div", {}), note = el("p", { class: "note" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Accounts")), note,
    el("section", { class: "panel" }, el("h2", {}, "Messages a second of the busiest: in (line), out (dashed)"), busiest), details, el("div", { class: "panel" }, t.box));

  async function choose(name) {
    chosen = name;
    app.setParam("account", name);
    details.replaceChildren(el("p", { class: "note" }, "Asking…"));
    try { about = await call("ask/account?name=" + encodeURIComponent(name)); } catch (e) { about = null; details.replaceChildren(el("p", { class: "banner bad" }, e.message, " ", e.fix)); return; }
    const i = about.info, l = i.limits || {};
    const users = table("Users of " + name, [
      { name: "User", text: (u) => u.name }, { name: "Role", text: (u) => u.role }, { name: "State", text: (u) => (u.denied ? "denied" : "may log in"), cell: (u) => badge(u.denied ? "denied" : "up"), mark: (u) => u.denied },
      { name: "Do", cell: (u) => (u.denied ? (app.can("user.allow") ? action("Allow", false, `${name}/${u.name} may log in again.`, "user.allow", { name: name + "/" + u.name }) : "") : app.can("user.deny") ? action("Deny", true, `${name}/${u.name} is denied every way in, and its connections are closed on every node.`, "user.deny", { name: name + "/" + u.name }) : ""), mark: (u) => u.denied },
    ], { key: (u) => u.name });
    users.update(about.users);
    const close = el("button", { onclick: () => { chosen = ""; app.setParam("account", ""); details.replaceChildren(); } }, "Close");
    details.replaceChildren(el("section", { class: "panel", "aria-label": "Account " + name }, el("div", { class: "head" }, el("h2", { dir: "auto" }, name), el("span", { class: "grow" }), close),
      facts([["Connections", number(i.connections) + (l.connections ? " of " + number(l.connections) : "")], ["Streams", number(i.streams)], ["Stored", size(i.bytes) + (l.max_file || l.storage ? " of " + size(l.max_file || l.storage) : "")], ["Largest message", l.payload ? size(l.payload) : ""],
        ["Gives to others", (i.exports || []).map((e) => `${e.subject}${e.service ? " (service)" : ""} to ${(e.importers || []).join(", ") || "nobody yet"}`).join("; ") || "nothing"],
        ["Takes from others", (i.imports || []).map((e) => `${e.subject} of ${e.from?.account || e.from || "?"} (${e.state})`).join("; ") || "nothing"], ["Errors", (i.errors || []).join("; ")]]),
      users.box, about.more ? el("p", { class: "note" }, `and ${number(about.more)} more users: fleetbus user ls ${name}`) : null));
  }
  if (chosen) choose(chosen);

  return {
    root, feeds: ["accounts", "top"],
    draw() {
      const now = live.row("top", "at"), rates = new Map(live.rows("top", "rate:").map((r) => [r.name, r]));
      if (now && now !== at) {
        at = now;
        for (const [name, r] of rates) {
          if (!history.has(name)) history.set(name, []);
          const h = history.get(name);
          h.push([now, r.in_msgs, r.out_msgs]);
          if (h.length > points) h.shift();
        }
        for (const [name, h] of history) if (!rates.has(name)) { h.push([now, 0, 0]); if (h.length > points) h.shift(); }
      }
      const names = [...rates.keys()].sort((a, b) => rates.get(b).in_msgs + rates.get(b).out_msgs - rates.get(a).in_msgs - rates.get(a).out_msgs || (a < b ? -1 : 1)).slice(0, 8).sort();
      if ([...graphs.keys()].join("\0") !== names.join("\0")) {
        graphs = new Map(names.map((n) => [n, graphs.get(n) || { g: graph(n), text: el("span") }]));
        busiest.replaceChildren(...[...graphs].map(([n, x]) => el("div", { class: "card" }, el("strong", { dir: "auto" }, n), x.g.g, x.text)));
        if (!names.length) busiest.replaceChildren(el("p", { class: "note" }, "Nothing is sent now."));
      }
      for (const [n, x] of graphs) { x.g.draw(); say(x.text, `${rate(rates.get(n).in_msgs, "m")} in, ${rate(rates.get(n).out_msgs, "m")} out`); }
      const none = { connections: 0, in_msgs: 0, out_msgs: 0, in_bytes: 0, out_bytes: 0 };
      const known = live.rows("accounts", "account:").map((a) => ({ ...none, ...rates.get(a.name), ...a, key: a.key }));
      const meta = live.row("top", "meta");
      say(note, (meta?.missing?.length ? `No answer from ${meta.missing.join(", ")}. ` : "") + (meta?.errors || []).join(" "));
      t.update(known);
    },
  };
}
