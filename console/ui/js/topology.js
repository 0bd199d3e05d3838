import { el, svg, set, say, badge, stateOf, facts, fix, trip, rate, since, when, number, card, plural, announce } from "./dom.js";
import { layout, edgeBetween, outward, nearest, NODE, SATELLITE } from "./layout.js";
import { table } from "./table.js";

const collapseNodes = 16, collapseSites = 10, collapseAlike = 5, labelsMost = 7;
const short = (text, most = 18) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

// model makes of what the feeds say the things and the edges that are drawn.
export function model(live, all) {
  const fleet = live.row("fleet", "fleet");
  const things = new Map(), edges = new Map(), clusters = new Map(), hidden = [];
  const clusterOf = (name) => {
    if (!clusters.has(name)) clusters.set(name, { name, nodes: [], satellites: [] });
    return clusters.get(name);
  };
  const stand = new Map(); // what stands for a thing that is not drawn
  const regions = live.rows("fleet", "region:");
  for (const r of regions) clusterOf(r.name);

  const byCluster = new Map();
  for (const n of live.rows("fleet", "node:")) {
    if (!byCluster.has(n.cluster)) byCluster.set(n.cluster, []);
    byCluster.get(n.cluster).push(n);
  }
  for (const [name, nodes] of byCluster) {
    const c = clusterOf(name);
    const groups = new Map();
    const alike = (n) => n.state + (n.state === "up" && (n.leader || n.here || n.findings) ? "!" : "");
    for (const n of nodes) groups.set(alike(n), (groups.get(alike(n)) || 0) + 1);
    for (const n of nodes) {
      const many = !all && nodes.length > collapseNodes && groups.get(alike(n)) > collapseAlike;
      const id = many ? "group:" + name + "/" + alike(n) : n.key;
      stand.set(n.key, id);
      if (many) {
        let g = things.get(id);
        if (!g) {
          g = { id, kind: "group", of: "node", state: n.state, members: [], cluster: name };
          things.set(id, g);
          c.nodes.push(id);
        }
        g.members.push(n);
      } else {
        things.set(id, { ...n, id, kind: "node" });
        c.nodes.push(id);
      }
    }
  }
  const home = fleet ? clusterOf(fleet.cluster) : null;

  const sites = live.rows("fleet", "site:");
  const alikeSites = new Map();
  for (const s of sites) alikeSites.set(s.account + "\0" + s.state, (alikeSites.get(s.account + "\0" + s.state) || 0) + 1);
  for (const s of sites) {
    const many = !all && sites.length > collapseSites && alikeSites.get(s.account + "\0" + s.state) > 2;
    const id = many ? "group:site/" + s.account + "/" + s.state : s.key;
    stand.set(s.key, id);
    if (!things.has(id)) {
      things.set(id, many ? { id, kind: "group", of: "site", state: s.state, account: s.account, members: [] } : { ...s, id, kind: "site" });
      home.satellites.push(id);
    }
    if (many) things.get(id).members.push(s);
  }
  for (const t of groupsOfTargets(live)) {
    things.set(t.id, t);
    home?.satellites.push(t.id);
  }
  const hubs = [];
  for (const h of live.rows("fleet", "hub:")) {
    const id = "hub:" + h.server;
    const state = h.state === "connected" ? "up" : h.state === "not_connected" ? "down" : "unknown";
    const known = things.get(id);
    if (!known) {
      things.set(id, { id, kind: "hub", state, name: h.server, links: [h] });
      hubs.push(id);
    } else {
      known.links.push(h);
      if (stateOf(state).rank > stateOf(known.state).rank) known.state = state;
    }
  }

  // Edges between what is drawn; several between the same two are one, as bad as the worst.
  const idOf = (kind, name, end) => {
    if (kind === "leaf" && end === "b") return stand.get("site:" + name);
    if (kind === "gateway" && end === "b") return clusters.has(name) ? "cluster:" + name : undefined;
    if (kind === "hub" && end === "b") return "hub:" + name;
    return stand.get("node:" + name);
  };
  for (const l of live.rows("fleet", "link:")) {
    let a = idOf(l.kind, l.a, "a"), b = idOf(l.kind, l.b, "b");
    if (l.kind === "gateway" && fleet) a = "cluster:" + fleet.cluster;
    if (!a || !b || a === b) continue;
    const id = l.kind + ":" + a + "|" + b;
    const known = edges.get(id);
    if (!known) edges.set(id, { ...l, id, from: a, to: b, count: 1, members: [l] });
    else {
      known.count++;
      known.members.push(l);
      known.rate += l.rate || 0;
      if (stateOf(l.state).rank > stateOf(known.state).rank) Object.assign(known, { state: l.state, why: l.why, fix: l.fix, at_a: l.at_a, at_b: l.at_b, rtt_us: l.rtt_us, a: l.a, b: l.b });
      else if (l.state === known.state) known.rtt_us = Math.max(known.rtt_us || 0, l.rtt_us || 0);
    }
  }
  for (const r of regions) {
    if (!fleet || r.name === fleet.cluster) continue;
    const id = "gateway:cluster:" + fleet.cluster + "|cluster:" + r.name;
    if (!edges.has(id)) edges.set(id, { id, kind: "gateway", a: fleet.cluster, b: r.name, from: "cluster:" + fleet.cluster, to: "cluster:" + r.name, state: r.state, why: r.state === "up" ? "" : "no node here has a connection to a gateway of region " + r.name, fix: r.state === "up" ? "" : "open " + (r.addrs || []).join(", ") + " for the nodes here", count: 1, members: [] });
    else if (stateOf(r.state).rank > stateOf(edges.get(id).state).rank) edges.get(id).state = r.state;
  }
  // Spokes hold together what has no link of its own on the picture.
  for (const t of things.values()) {
    if (t.kind === "group" && t.of === "site" && t.state !== "up") continue;
    if (t.kind === "targets") edges.set("target:" + t.id, { id: "target:" + t.id, kind: "target", a: fleet?.cluster || "", b: t.name, from: "cluster:" + fleet?.cluster, to: t.id, state: t.state, count: t.members.length, why: t.why, members: [] });
  }
  for (const t of things.values()) if (t.kind === "group") hidden.push(`${plural(t.members.length, t.of)} ${t.account ? "of " + t.account + " " : ""}(${stateOf(t.state).word})`);
  if (fleet && !fleet.told) {
    const pairs = (fleet.nodes * (fleet.nodes - 1)) / 2;
    hidden.push(number(Math.max(0, pairs - live.rows("fleet", "link:route:").length)) + " links that are up");
  }
  return { fleet, things, edges, clusters: [...clusters.values()].sort((x, y) => (x.name < y.name ? -1 : 1)), hubs: hubs.sort(), hidden };
}

// groupsOfTargets are the load balancers, by account and group.
function groupsOfTargets(live) {
  const groups = new Map();
  for (const t of live.rows("certs", "target:")) {
    const id = "targets:" + t.account + "/" + t.group;
    if (!groups.has(id)) groups.set(id, { id, kind: "targets", name: t.group, account: t.account, state: "up", members: [], why: "" });
    groups.get(id).members.push(t);
  }
  for (const g of groups.values()) {
    const bad = g.members.filter((t) => t.state !== "up");
    if (bad.length) {
      g.state = bad.length === g.members.length && bad.every((t) => t.state === "down") ? "down" : "partly";
      g.why = bad.map((t) => t.name).slice(0, 5).join(", ") + (bad.length > 1 ? " do" : " does") + " not serve what they should";
    }
  }
  return [...groups.values()];
}

const radius = (t) => (!t ? 0 : t.kind === "node" ? NODE : t.kind === "group" ? NODE + 6 : t.kind === "hub" ? 34 : SATELLITE);
const nameOf = (t) => (t.kind === "group" ? plural(t.members.length, t.of) : t.kind === "site" ? t.account + "/" + t.name : t.kind === "targets" ? plural(t.members.length, "target") : t.name);

function subOf(t, silent, now) {
  const s = stateOf(t.state);
  if (t.kind === "group") return s.word + (t.account ? " · " + t.account : "");
  if (t.kind === "targets") return "group " + t.name;
  if (t.state !== "up") return s.word + (silent?.[t.name] ? " " + since(silent[t.name], now) : "");
  if (t.kind === "node") return plural(t.connections, "connection");
  return "";
}

function titleOf(t) {
  const kind = t.kind === "targets" ? "load balancers of group " + t.name : t.kind === "group" ? "" : t.kind;
  return `${kind} ${nameOf(t)}, ${stateOf(t.state).word}${t.leader ? ", leader" : ""}${t.here ? ", answers this console" : ""}`.trim();
}

function shape(t) {
  const r = radius(t);
  switch (t.kind) {
    case "site": return svg("path", { class: "shape", d: `M${-r} 0L${-r / 2} ${-r * 0.87}H${r / 2}L${r} 0L${r / 2} ${r * 0.87}H${-r / 2}Z` });
    case "targets": return svg("rect", { class: "shape", x: -r, y: -r, width: 2 * r, height: 2 * r, rx: 6 });
    case "hub": return svg("rect", { class: "shape", x: -70, y: -24, width: 140, height: 48, rx: 12 });
    case "group": return svg("g", {}, svg("circle", { r: r + 6 }), svg("circle", { class: "shape", r }));
  }
  return svg("circle", { class: "shape", r });
}

// explained reports whether what is wrong with a link is explained by a node that is
// told of anyway.
function explained(m, e) {
  if (e.state === "unknown") return true;
  if (e.state !== "down" && !(e.why || "").includes("is the one that is cut off")) return false;
  return [...m.things.values()].some((t) => (t.kind === "node" || t.kind === "group") && stateOf(t.state).tone === "bad" && (t.id === e.from || t.id === e.to) && (t.state === "down" || t.state === "deaf"));
}

// causes are what is wrong and not explained by something else that is, the worst first.
function causes(m) {
  const edges = [...m.edges.values()].filter((e) => stateOf(e.state).rank > 0 && !explained(m, e));
  const named = new Set(edges.flatMap((e) => [e.from, e.to]));
  const things = [...m.things.values()].filter((t) => stateOf(t.state).rank > 0 && t.state !== "unknown" && !(t.state === "partly" && t.kind === "node" && named.has(t.id)));
  return [...things, ...edges].sort((a, b) => stateOf(b.state).rank - stateOf(a.state).rank);
}

// ends names both ends of an edge, as they are drawn.
function ends(m, e) {
  const name = (id, plain) => (e.count > 1 && m.things.get(id)?.kind === "group" ? nameOf(m.things.get(id)) : plain);
  return name(e.from, e.a) + " – " + name(e.to, e.b);
}

export function screen(live, app) {
  const narrow = matchMedia("(max-width: 600px)");
  let mode = app.param("view") || (narrow.matches ? "table" : "picture");
  let all = app.param("all") === "yes";
  let chosen = app.param("show");
  let focus = null;

  const cards = el("div", { class: "cards" });
  const banner = el("div", {});
  const buttons = ["picture", "table"].map((m) => el("button", { "aria-pressed": m === mode, onclick: () => { mode = m; buttons.forEach((b, i) => b.setAttribute("aria-pressed", ["picture", "table"][i] === m)); draw(); } }, m === "picture" ? "Picture" : "Table"));
  const worst = el("label", { class: "noprint" }, el("input", { type: "checkbox", onchange: () => draw() }), " only problems");
  const hiddenNote = el("span", {});
  const more = el("button", { hidden: true, onclick: () => { all = !all; draw(); } });
  const picture = svg("svg", { role: "group", "aria-label": "The fleet as a picture. Arrow keys move, Enter tells more.", preserveAspectRatio: "xMidYMid meet" });
  const layers = ["hulls", "edges", "things", "words"].map((name) => svg("g", { class: name, "aria-hidden": name === "words" || name === "hulls" ? "true" : undefined }));
  picture.append(...layers);
  const legend = el("ul", { class: "legend" },
    [["up", "up"], ["partly", "in part"], ["one_way", "one way only"], ["cut", "cut or down"], ["unknown", "unknown"]].map(([s, text]) => el("li", {}, el("span", { class: stateOf(s).tone }, stateOf(s).glyph), " " + text)),
    el("li", {}, "○ node"), el("li", {}, "⬡ leaf node (site)"), el("li", {}, "▢ load balancers"));
  const map = el("div", { class: "map" }, picture, legend);
  const details = el("aside", { class: "panel", "aria-label": "Details", tabindex: "-1" });
  const state = (r) => badge(r.state);
  const linkTable = table("Links", [
    { name: "From", text: (r) => r.a }, { name: "To", text: (r) => r.b }, { name: "Kind", text: (r) => r.kind },
    { name: "State", text: (r) => stateOf(r.state).word, sort: (r) => -stateOf(r.state).rank, cell: state, mark: (r) => r.state },
    { name: "Round trip", num: true, text: (r) => trip(r.rtt_us), sort: (r) => r.rtt_us || 0 }, { name: "Carries", num: true, text: (r) => rate(r.rate), sort: (r) => r.rate || 0 },
    { name: "Why", text: (r) => r.why || "" }, { name: "Fix", text: (r) => r.fix || "", cell: (r) => fix(r.fix), mark: (r) => r.fix },
  ], { key: (r) => r.key, order: 3, empty: "There are no links." });
  const nodeTable = table("Nodes, sites, load balancers and hubs", [
    { name: "Name", text: (r) => r.label }, { name: "What", text: (r) => r.what }, { name: "In", text: (r) => r.in },
    { name: "State", text: (r) => stateOf(r.state).word, sort: (r) => -stateOf(r.state).rank, cell: state, mark: (r) => r.state },
    { name: "Why", text: (r) => r.why || "" }, { name: "Fix", text: (r) => r.fix || "", cell: (r) => fix(r.fix), mark: (r) => r.fix },
  ], { key: (r) => r.id, order: 3 });
  const tables = el("div", {}, el("section", { class: "panel" }, el("h2", {}, "Things"), nodeTable.box), el("section", { class: "panel" }, el("h2", {}, "Links"), linkTable.box));
  const split = el("div", { class: "split" }, map, details);
  const root = el("div", {},
    el("div", { class: "head" }, el("h1", {}, "Topology"), el("span", { class: "toggle noprint", role: "group", "aria-label": "View" }, buttons), worst, el("span", { class: "grow" }), hiddenNote, more),
    banner, cards, split, tables);

  const drawn = new Map();
  let places = new Map();

  function choose(id, move) {
    chosen = id;
    app.setParam("show", id);
    draw();
    if (move) details.focus();
  }

  picture.addEventListener("keydown", (e) => {
    const dir = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    const id = e.target.closest?.("[data-id]")?.dataset.id;
    if (!id) return;
    if (dir) {
      const to = nearest(places, places.get(id), ...dir);
      if (to) { focus = to; rove(); drawn.get(to)?.g.focus(); }
      e.preventDefault();
    } else if (e.key === "Enter" || e.key === " ") {
      choose(id, true);
      e.preventDefault();
    } else if (e.key === "Escape") {
      choose("", false);
    }
  });
  picture.addEventListener("click", (e) => {
    const id = e.target.closest?.("[data-id]")?.dataset.id;
    if (id) { focus = id; choose(id, false); }
  });
  picture.addEventListener("focusin", (e) => {
    const id = e.target.closest?.("[data-id]")?.dataset.id;
    if (id && focus !== id) { focus = id; rove(); }
  });

  function rove() {
    if (!places.has(focus)) focus = places.keys().next().value;
    for (const [id, d] of drawn) set(d.g, { tabindex: id === focus ? 0 : -1 });
  }

  function keep(id, tag, layer, make) {
    let d = drawn.get(id);
    if (d && d.tag !== tag) { d.g.remove(); d.label?.remove(); drawn.delete(id); d = null; }
    if (!d) {
      d = { tag, ...make() };
      drawn.set(id, d);
      layers[layer].append(d.g);
      if (d.label) layers[3].append(d.label);
    }
    d.used = true;
    return d;
  }

  function drawPicture(m) {
    const onlyBad = worst.querySelector("input").checked;
    const bad = (x) => stateOf(x.state).rank > 0;
    const l = layout(m.clusters.filter((c) => c.nodes.length || c.satellites.length || m.clusters.length > 1), m.hubs);
    const pad = 20;
    set(picture, { viewBox: `${-pad} ${-pad} ${Math.max(l.width + 2 * pad, 420)} ${l.height + 2 * pad}` });
    // What is wide is drawn small: its words are not.
    const k = Math.min(1.5, Math.max(1, l.width / 760));
    picture.style.setProperty("--k", k.toFixed(2));
    for (const d of drawn.values()) d.used = false;
    const hull = new Map(l.hulls.map((h) => [h.id, h]));
    for (const h of l.hulls) {
      const d = keep(h.id, "hull", 0, () => {
        const circle = svg("circle", { class: "hull" }), orbit = svg("circle", { class: "orbit" }), name = svg("text", { class: "hullname" });
        return { g: svg("g", { "aria-hidden": "true" }, orbit, circle, name), circle, orbit, name };
      });
      set(d.circle, { cx: h.x, cy: h.y, r: h.r });
      set(d.orbit, { cx: h.x, cy: h.y, r: h.orbit });
      set(d.name, { x: h.x, y: h.y - h.r - 10 });
      say(d.name, short(h.name, 24));
    }
    places = new Map();
    const labels = m.edges.size <= 30;
    const degree = m.clusters.length === 1 && m.clusters[0].nodes.length <= labelsMost;
    for (const e of m.edges.values()) {
      const a = l.places.get(e.from) || hull.get(e.from), b = l.places.get(e.to) || hull.get(e.to);
      if (!a || !b || (onlyBad && !bad(e))) continue;
      const s = stateOf(e.state), id = "edge:" + e.id;
      const d = keep(id, "edge", 1, () => {
        const hit = svg("line", { class: "hit" }), ink = svg("line", { class: "ink" }), rect = svg("rect", { height: 18 }), text = svg("text");
        const label = svg("g", {}, rect, text);
        return { g: svg("g", { role: "button", "data-id": id }, hit, ink), hit, ink, rect, text, label };
      });
      const line = edgeBetween(a, b, hull.get(e.from)?.r ?? radius(m.things.get(e.from)) + 2, hull.get(e.to)?.r ?? radius(m.things.get(e.to)) + 2);
      set(d.hit, line);
      set(d.ink, line);
      set(d.g, { class: `edge ${s.tone}${chosen === id ? " chosen" : ""}`, "aria-label": `${e.kind} between ${e.a} and ${e.b}, ${s.word}${e.rtt_us ? ", round trip " + trip(e.rtt_us) : ""}` });
      // Off the middle, where the lines of a ring cross.
      const at = e.kind === "leaf" ? 0.7 : e.kind === "route" && m.clusters.some((c) => c.nodes.length > 3) ? 0.33 : 0.5;
      const mid = { x: line.x1 + (line.x2 - line.x1) * at, y: line.y1 + (line.y2 - line.y1) * at };
      const text = e.state === "up" ? [e.rtt_us ? trip(e.rtt_us) : "", e.rate ? rate(e.rate) : ""].filter(Boolean).join(" · ") : s.glyph + " " + s.word;
      const show = text && ((stateOf(e.state).rank > 0 && !explained(m, e)) || chosen === id || (e.state === "up" && labels && (degree || e.kind !== "route")));
      set(d.label, { class: `label ${s.tone}`, display: show ? "inline" : "none" });
      say(d.text, text);
      set(d.text, { x: mid.x, y: mid.y + 4 });
      const wide = text.length * 6.6 * k + 12;
      set(d.rect, { x: mid.x - wide / 2, y: mid.y - 9, width: wide });
      places.set(id, mid);
    }
    for (const t of m.things.values()) {
      const p = l.places.get(t.id);
      if (!p || (onlyBad && !bad(t) && t.kind !== "node")) continue;
      const s = stateOf(t.state), r = radius(t);
      const d = keep(t.id, t.kind, 2, () => {
        const glyph = svg("text", { class: "glyph", y: 6 }), name = svg("text"), sub = svg("text", { class: "sub" }), mark = svg("text", { class: "here" });
        return { g: svg("g", { role: "button", "data-id": t.id }, shape(t)), label: svg("g", {}, glyph, name, sub, mark), glyph, name, sub, mark };
      });
      set(d.g, { class: `thing ${t.kind} ${s.tone}${chosen === t.id ? " chosen" : ""}`, transform: `translate(${Math.round(p.x * 10) / 10} ${Math.round(p.y * 10) / 10})`, "aria-label": titleOf(t) });
      say(d.glyph, t.kind === "group" ? (t.members.length > 999 ? "1k+" : t.members.length) : t.kind === "hub" ? "" : s.glyph);
      set(d.label, { class: `words ${s.tone}`, transform: d.g.getAttribute("transform") });
      const mark = [t.leader ? "★ leader" : "", t.here ? "this console" : ""].filter(Boolean).join(" · ");
      say(d.name, short(nameOf(t), t.kind === "hub" ? 16 : 22));
      say(d.sub, short(subOf(t, m.fleet?.silent, live.now()), 30));
      say(d.mark, mark);
      const o = t.kind === "hub" ? { anchor: "middle", x: 0, y: -1 } : outward(p.angle ?? Math.PI / 2, r, mark ? 3 : 2);
      [d.name, d.sub, d.mark].forEach((e, i) => set(e, { x: o.x, y: o.y + 15 * k * i - (o.y < 0 && o.anchor === "middle" ? 15 * (k - 1) * (mark ? 2 : 1) : 0), "text-anchor": o.anchor }));
      places.set(t.id, p);
    }
    for (const [id, d] of drawn) if (!d.used) { d.g.remove(); d.label?.remove(); drawn.delete(id); }
    rove();
  }

  function drawDetails(m) {
    const t = m.things.get(chosen), e = chosen?.startsWith("edge:") ? m.edges.get(chosen.slice(5)) : null;
    const now = live.now();
    let parts;
    if (t) parts = detailsOfThing(t, m, live, now, choose);
    else if (e) parts = detailsOfEdge(e, m);
    else parts = overview(m, live, choose);
    const mark = JSON.stringify(parts.mark);
    if (details.dataset.mark !== mark) {
      details.dataset.mark = mark;
      const at = details.scrollTop;
      details.replaceChildren(...parts.nodes.filter(Boolean));
      details.scrollTop = at;
    }
  }

  let spoken = new Map();
  // speak tells who listens what became worse or better, the worst first, not all of a storm.
  function speak(m) {
    const next = new Map(), changes = [];
    for (const t of [...m.things.values()].filter((t) => t.kind !== "group").concat([...m.edges.values()])) {
      next.set(t.id, t.state);
      const before = spoken.get(t.id);
      if (before && before !== t.state) changes.push([stateOf(t.state).rank, `${t.from ? "link " + t.a + " to " + t.b : titleOf(t).split(",")[0]} is ${stateOf(t.state).word}`]);
    }
    spoken = next;
    if (!changes.length) return;
    changes.sort((a, b) => b[0] - a[0]);
    announce(changes.slice(0, 2).map((c) => c[1]).join("; ") + (changes.length > 2 ? `; and ${changes.length - 2} more changes` : ""));
  }

  function draw() {
    const m = model(live, all);
    if (!m.fleet) { banner.replaceChildren(el("p", { class: "note" }, live.failed("fleet") ? "" : "Asking the nodes…")); return; }
    const deaf = [...m.things.values()].find((t) => t.state === "deaf");
    const silent = Object.entries(m.fleet.silent || {});
    const notes = [];
    if (deaf) notes.push(el("p", { class: "banner bad", role: "alert" }, el("b", {}, `Node ${deaf.name}, which answers this console, is deaf. `), "It hears none of the others and cannot tell whether they are down. ", fix(deaf.fix)));
    else if (silent.length) notes.push(el("p", { class: "banner bad" }, el("b", {}, "No answer from "), silent.slice(0, 5).map(([name, at], i) => [i ? ", " : "", el("b", {}, name), " for " + since(at, now10())]), silent.length > 5 ? ` and ${silent.length - 5} more` : "", "."));
    const text = JSON.stringify([deaf?.name, silent.map(([n, at]) => [n, since(at, now10())])]);
    if (banner.dataset.mark !== text) { banner.dataset.mark = text; banner.replaceChildren(...notes); }
    const f = m.fleet, edges = [...m.edges.values()];
    const badLinks = edges.filter((x) => stateOf(x.state).rank > 2 && !explained(m, x)).reduce((n, x) => n + x.members.filter((l) => stateOf(l.state).rank > 2).length, 0);
    const list = [["nodes that answer", `${f.answered} of ${f.nodes}`, f.answered < f.nodes ? "bad" : "ok"], ["links with a problem", deaf ? "unknown" : number(badLinks), deaf || badLinks ? "bad" : "ok"],
      ["leader", f.leader || "none", f.leader ? "" : "bad"], ["nodes that may fail", number(f.survives), f.survives ? "" : "warn"], ["accounts", number(f.accounts)], ["users", number(f.users)]];
    const cardMark = JSON.stringify(list);
    if (cards.dataset.mark !== cardMark) { cards.dataset.mark = cardMark; cards.replaceChildren(...list.map((c) => card(...c))); }
    map.hidden = details.hidden = mode !== "picture";
    split.hidden = mode !== "picture";
    tables.hidden = mode !== "table";
    const collapsed = m.hidden.length > 0;
    more.hidden = mode !== "picture" || !(collapsed || all) || f.nodes > 400;
    say(more, all ? "Collapse" : "Show all");
    say(hiddenNote, mode === "picture" && collapsed ? "Collapsed: " + m.hidden.join(", ") : "");
    hiddenNote.className = "note";
    if (mode === "picture") { drawPicture(m); drawDetails(m); }
    else {
      const onlyBad = worst.querySelector("input").checked, ok = (r) => !onlyBad || stateOf(r.state).rank > 0;
      linkTable.update(live.rows("fleet", "link:").filter(ok));
      nodeTable.update([
        ...live.rows("fleet", "node:").map((n) => ({ id: n.key, label: n.name, what: "node", in: n.cluster, state: n.state, why: n.why, fix: n.fix })),
        ...live.rows("fleet", "site:").map((s) => ({ id: s.key, label: s.name, what: "leaf node (site)", in: s.account, state: s.state, why: s.node ? "linked to " + s.node : "", fix: "" })),
        ...live.rows("certs", "target:").map((s) => ({ id: s.key, label: s.name, what: "load balancer", in: s.account + "/" + s.group, state: s.state, why: s.why, fix: s.fix })),
        ...[...m.things.values()].filter((t) => t.kind === "hub").map((h) => ({ id: h.id, label: h.name, what: "hub", in: "", state: h.state, why: h.links.map((x) => x.error).filter(Boolean)[0] || "", fix: "" })),
      ].filter(ok));
    }
    speak(m);
  }
  const now10 = () => live.now();

  return { root, feeds: ["fleet", "certs"], draw };
}

function peers(n, live, choose) {
  const rows = live.rows("fleet", "link:").filter((l) => l.a === n.name || l.b === n.name);
  rows.sort((a, b) => stateOf(b.state).rank - stateOf(a.state).rank || (a.key < b.key ? -1 : 1));
  if (!rows.length) return null;
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Links of " + n.name }, el("table", { class: "keep" }, el("caption", { class: "vh" }, "Links of " + n.name),
    el("thead", {}, el("tr", {}, ["To", "State", "Round trip", "Carries"].map((h, i) => el("th", { scope: "col", class: i > 1 ? "num" : "" }, h)))),
    el("tbody", {}, rows.slice(0, 60).map((l) => el("tr", {}, el("th", { scope: "row" }, l.a === n.name ? l.b : l.a), el("td", {}, badge(l.state), l.why ? el("div", { class: "why" }, l.why) : null), el("td", { class: "num" }, trip(l.rtt_us)), el("td", { class: "num" }, rate(l.rate)))))));
}

function detailsOfThing(t, m, live, now, choose) {
  const back = el("button", { onclick: () => choose("", false) }, "All of the fleet");
  const head = [el("h2", { dir: "auto" }, nameOf(t)), el("p", {}, badge(t.state))];
  if (t.why) head.push(el("p", { class: stateOf(t.state).tone === "bad" ? "banner bad" : "banner" }, t.why, t.fix ? el("br") : "", fix(t.fix)));
  let body = [];
  if (t.kind === "node") {
    body = [facts([["Cluster", t.cluster], ["Silent for", m.fleet.silent?.[t.name] ? since(m.fleet.silent[t.name], now) : ""], ["Heard by", t.cluster === m.fleet.cluster && m.fleet.nodes > 1 ? `${t.heard_by} of ${m.fleet.nodes - 1} others` : ""],
      ["Does not reach", (t.unreached || []).join(", ")], ["Leader", t.leader ? "yes" : ""], ["Up for", t.started ? since(t.started, now) : ""], ["Connections", number(t.connections)],
      ["Round trip", trip(t.rtt_us)], ["Clock", t.clock_ms ? `off by ${t.clock_ms} ms` : "right"], ["Certificates until", when(t.not_after)], ["Version", t.version], ["Other nodes at", t.addr], ["Clients at", t.clients], ["Events behind", t.behind ? number(t.behind) : ""]]),
      el("h2", {}, "Its links"), peers(t, live, choose) || el("p", { class: "note" }, m.fleet.told ? "It has none." : "All of its links are up.")];
  } else if (t.kind === "site") {
    body = [facts([["Account", t.account], ["Linked to", t.node], ["From", t.remote], ["Since", when(t.since)], ["Terms of the account", t.current ? "newest" : "older: it was not told yet"], ["Machine", t.machine]])];
  } else if (t.kind === "hub") {
    body = t.links.map((h) => facts([["Account", h.account], ["Node", h.node], ["State", badge(h.state === "connected" ? "up" : "down")], ["Error", h.error], ["Waiting here", number(h.queued)], ["Sent", number(h.sent)], ["Received", number(h.received)], ["Lost", number(h.lost)]]));
  } else {
    body = [el("ul", {}, t.members.slice(0, 100).map((x) => el("li", { dir: "auto" }, x.name + (x.why ? ": " + x.why : "")))), t.members.length > 100 ? el("p", { class: "note" }, `and ${t.members.length - 100} more: see the table`) : null];
  }
  const links = t.kind === "node" ? live.rows("fleet", "link:").filter((l) => l.a === t.name || l.b === t.name) : [];
  return { nodes: [el("p", { class: "noprint" }, back), ...head, ...body], mark: [t, links, m.fleet.silent?.[t.name] ? since(m.fleet.silent[t.name], now) : "", t.started ? since(t.started, now) : ""] };
}

function detailsOfEdge(e, m) {
  const one = (l) => [l.at_a ? el("dt", {}, "At " + l.a) : null, l.at_a ? el("dd", {}, l.at_a) : null, l.at_b ? el("dt", {}, "At " + l.b) : null, l.at_b ? el("dd", {}, l.at_b) : null];
  return { mark: e, nodes: [el("h2", {}, ends(m, e)), el("p", {}, badge(e.state), " · " + e.kind + (e.count > 1 ? ` · ${e.count} links` : "")),
    e.why || e.fix ? el("p", { class: stateOf(e.state).tone === "bad" ? "banner bad" : "banner" }, e.why || "", e.fix ? el("br") : "", fix(e.fix)) : null,
    facts([["Round trip", trip(e.rtt_us)], ["Carries", e.rate ? rate(e.rate) : ""]]), e.at_a || e.at_b ? el("h2", {}, "From both ends") : null, el("dl", { class: "facts" }, one(e))] };
}

function overview(m, live, choose) {
  const bad = causes(m);
  const items = bad.slice(0, 12).map((x) => el("li", {}, el("button", { onclick: () => choose(x.from ? "edge:" + x.id : x.id, true) }, x.from ? ends(m, x) : nameOf(x)), " ", badge(x.state), x.why ? el("div", { class: "why" }, x.why) : null));
  const findings = live.rows("fleet", "finding:").filter((f) => f.severity !== "info");
  return { mark: [bad.map((x) => [x.id, x.state, x.why]), findings.map((f) => f.text)], nodes: [
    el("h2", {}, bad.length ? "What is wrong" : "All is well"), bad.length ? el("ul", {}, items) : el("p", {}, "Every node answers, and every link carries messages both ways."),
    bad.length > 12 ? el("p", { class: "note" }, `and ${bad.length - 12} more: see the table`) : null,
    findings.length ? el("h2", {}, el("a", { href: "#/doctor" }, `The doctor has ${plural(findings.length, "finding")}`)) : null,
    findings.length ? el("ul", {}, findings.slice(0, 4).map((f) => el("li", {}, f.text))) : null,
    el("p", { class: "note noprint" }, "Choose a node or a link to see both of its ends.")] };
}
