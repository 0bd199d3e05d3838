import { el, plural, rate, size, since, number, trip, action } from "./dom.js";
import { table } from "./table.js";

const kinds = { refused: "not let in", limit: "at a limit", slow: "too slow a reader: closed", dropped: "events not told" };

export function screen(live, app) {
  const t = table("Connections", [
    { name: "Who", text: (r) => r.account + "/" + r.name }, { name: "Listener", text: (r) => r.listener }, { name: "From", tight: true, text: (r) => r.remote }, { name: "Node", text: (r) => r.node },
    { name: "For", num: true, text: (r) => since(r.started, live.now()), sort: (r) => -r.started },
    { name: "In", num: true, text: (r) => rate(r.in_rate), sort: (r) => r.in_rate }, { name: "Out", num: true, text: (r) => rate(r.out_rate), sort: (r) => r.out_rate },
    { name: "Carried", num: true, text: (r) => size(r.in_bytes + r.out_bytes), sort: (r) => r.in_bytes + r.out_bytes },
    { name: "Waits for it", num: true, text: (r) => size(r.pending || 0), sort: (r) => r.pending || 0 },
    { name: "Round trip", num: true, text: (r) => trip(r.rtt_us), sort: (r) => r.rtt_us || 0 },
    app.can("connection.close") ? { name: "Do", cell: (r) => action("Disconnect", true, `The connection of ${r.account}/${r.name} from ${r.remote} ends. Its client may come again: who may not is denied in the screen of its account.`, "connection.close", { node: r.node, id: r.id, account: r.account, kind: r.kind }), mark: (r) => r.key } : null,
  ].filter(Boolean), { key: (r) => r.key, order: 7, down: true });
  const slow = table("Slowest readers", [
    { name: "Who", text: (r) => r.account + "/" + r.name }, { name: "Node", text: (r) => r.node }, { name: "Waits for it", num: true, text: (r) => size(r.pending), sort: (r) => r.pending },
  ], { key: (r) => r.key, order: 2, down: true, filter: false, empty: "Nothing waits for anybody." });
  const drops = table("Refused and dropped", [
    { name: "Why", text: (r) => r.reason || "no reason was told" }, { name: "What", text: (r) => kinds[r.kind] || r.kind }, { name: "Account", text: (r) => r.account || "–" }, { name: "Listener", text: (r) => r.listener || "–" },
    { name: "Times", num: true, text: (r) => number(r.count), sort: (r) => r.count }, { name: "Last", num: true, text: (r) => since(r.last, live.now()), sort: (r) => r.last },
    { name: "Last of", text: (r) => [r.who, r.node].filter(Boolean).join(" at ") },
  ], { key: (r) => r.key, order: 4, down: true, filter: false, empty: "Nobody was refused and nothing was dropped since you look." });
  const note = el("p", { class: "note", role: "status" });
  const by = el("div", { class: "cards" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Connections")), note, by, el("div", { class: "panel" }, t.box), el("section", { class: "panel" }, el("h2", {}, "Slowest readers"), slow.box), el("section", { class: "panel" }, el("h2", {}, "Refused and dropped, by reason, since somebody looks"), drops.box));
  return {
    root, feeds: ["connections", "drops"],
    draw() {
      const meta = live.row("connections", "meta"), all = live.rows("connections", "connection:");
      note.textContent = !meta ? "Asking the nodes…" : plural(all.length + meta.more, "connection") + (meta.more ? `; the ${number(all.length)} that carried the most are shown` : "") + (meta.missing?.length ? `; no answer from ${meta.missing.join(", ")}` : "");
      const listeners = new Map();
      for (const c of all) listeners.set(c.listener, (listeners.get(c.listener) || 0) + 1);
      const text = JSON.stringify([...listeners]);
      if (by.dataset.mark !== text) { by.dataset.mark = text; by.replaceChildren(...[...listeners].sort().map(([k, n]) => el("div", { class: "card" }, el("b", {}, number(n)), el("span", {}, "by " + k)))); }
      t.update(all);
      drops.update(live.rows("drops", "drop:"));
      slow.update(all.filter((c) => c.pending > 0).slice(0, 20));
    },
  };
}
