import { el, say, badge, number, when } from "./dom.js";
import { table } from "./table.js";

export function screen(live) {
  const t = table("Links to a central broker", [
    { name: "Hub", text: (r) => r.server }, { name: "Node", text: (r) => r.node }, { name: "Account", text: (r) => r.account },
    { name: "State", text: (r) => r.state, sort: (r) => (r.state === "connected" ? 1 : 0), cell: (r) => [badge(r.state === "connected" ? "up" : r.state === "unknown" ? "unknown" : "down", String(r.state).replaceAll("_", " ")), r.error ? el("div", { class: "why" }, r.error) : null], mark: (r) => [r.state, r.error] },
    { name: "Since", text: (r) => when(Date.parse(r.since)), sort: (r) => Date.parse(r.since) || 0 }, { name: "Waiting here", num: true, text: (r) => number(r.queued), sort: (r) => r.queued },
    { name: "Sent", num: true, text: (r) => number(r.sent), sort: (r) => r.sent }, { name: "Received", num: true, text: (r) => number(r.received), sort: (r) => r.received },
    { name: "Lost", num: true, text: (r) => number(r.lost), sort: (r) => r.lost },
  ], { key: (r) => r.key, order: 3, empty: "No node is linked to a central broker." });
  const m = table("MQTT clients by node and account", [
    { name: "Node", text: (r) => r.node }, { name: "Account", text: (r) => r.account }, { name: "Clients", num: true, text: (r) => number(r.n), sort: (r) => r.n },
  ], { key: (r) => r.key, order: 2, down: true, empty: "No MQTT client is connected." });
  const note = el("p", { class: "note" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Hub and MQTT")), el("section", { class: "panel" }, el("h2", {}, "Hub"), t.box), el("section", { class: "panel" }, el("h2", {}, "MQTT"), note, m.box));
  return {
    root, feeds: ["fleet", "connections"],
    draw() {
      t.update(live.rows("fleet", "hub:"));
      const counts = new Map();
      for (const c of live.rows("connections", "connection:")) {
        if (!c.listener.includes("mqtt") && !c.kind.toLowerCase().includes("mqtt")) continue;
        const key = c.node + "\0" + c.account;
        counts.set(key, { key, node: c.node, account: c.account, n: (counts.get(key)?.n || 0) + 1 });
      }
      const meta = live.row("connections", "meta");
      say(note, meta?.more ? `Counted among the busiest connections; ${number(meta.more)} more are not.` : "");
      m.update([...counts.values()]);
    },
  };
}
