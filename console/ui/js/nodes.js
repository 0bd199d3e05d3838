import { el, badge, stateOf, fix, trip, since, when, number, action, prefs } from "./dom.js";
import { table } from "./table.js";

const days = (ms, now) => (ms ? Math.floor((ms - now) / 86400000) : "");

export function screen(live, app) {
  const t = table("Nodes", [
    { name: "Node", text: (r) => r.name, cell: (r) => [el("a", { href: "#/topology?show=" + encodeURIComponent(r.key) }, r.name), r.leader ? " ★" : "", r.here ? el("span", { class: "mute" }, " this console") : ""], mark: (r) => [r.name, r.leader, r.here] },
    { name: "State", text: (r) => stateOf(r.state).word, sort: (r) => -stateOf(r.state).rank, cell: (r) => [badge(r.state), r.why ? el("div", { class: "why" }, r.why) : null, r.fix ? el("div", { class: "why" }, fix(r.fix)) : null, r.behind ? el("div", { class: "why" }, number(r.behind) + " events behind") : null], mark: (r) => [r.state, r.why, r.fix, r.behind] },
    { name: "Cluster", text: (r) => r.cluster }, { name: "Version", text: (r) => r.version || "–" },
    { name: "Up for", num: true, text: (r) => since(r.started, live.now()), sort: (r) => -(r.started || 0) },
    { name: "Connections", num: true, text: (r) => (r.state === "down" ? "–" : number(r.connections)), sort: (r) => r.connections },
    { name: "Round trip", num: true, text: (r) => trip(r.rtt_us), sort: (r) => r.rtt_us || 0 },
    { name: "Certificate days", num: true, text: (r) => days(r.not_after, live.now()), sort: (r) => r.not_after || 0 },
    { name: "Findings", num: true, text: (r) => r.findings || 0, sort: (r) => r.findings || 0 },
  ], { key: (r) => r.key, order: 1 });
  const lead = el("p", { class: "note" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Nodes"), el("span", { class: "grow" }), app.can("node.renew") ? action("Renew all node certificates", false, "Every node gets new certificates at once. No connection drops.", "node.renew", { name: "" }) : null), lead, el("div", { class: "panel" }, t.box));
  return {
    root, feeds: ["fleet"],
    draw() {
      const f = live.row("fleet", "fleet");
      if (f) lead.textContent = f.leader ? `${f.leader} leads the group that agrees on streams; ${f.survives} more may fail; ${f.answered} of ${f.nodes} answer, ${f.quorum} are the majority.` : `Nobody leads: ${f.answered} of ${f.nodes} answer and ${f.quorum} are the majority. Nothing durable can be written.`;
      t.update(live.rows("fleet", "node:"));
    },
  };
}
