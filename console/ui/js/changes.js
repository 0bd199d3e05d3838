import { el, say, badge, stateOf, number, size, since, when } from "./dom.js";
import { table } from "./table.js";

export function screen(live, app) {
  const admin = app.me.account === "FLEET";
  const states = { running: "up", failed: "down", waiting: "unknown" };
  const t = table("Sources", [
    { name: "Source", text: (r) => r.account + "/" + r.name }, { name: "Database", text: (r) => r.type },
    { name: "State", text: (r) => r.state, sort: (r) => -stateOf(states[r.state]).rank, cell: (r) => [badge(states[r.state], r.state), r.error ? el("div", { class: "why" }, r.error) : null, r.warning ? el("div", { class: "why" }, r.warning) : null], mark: (r) => [r.state, r.error, r.warning] },
    { name: "At", text: (r) => r.runner || "nobody" }, { name: "Lag", num: true, text: (r) => number(r.lag_ms) + " ms", sort: (r) => r.lag_ms }, { name: "Heard of", num: true, text: (r) => (r.seen ? since(r.seen, live.now()) : "never"), sort: (r) => r.seen || 0 },
    { name: "Kept for it", num: true, text: (r) => size(r.retained), sort: (r) => r.retained }, { name: "Told", num: true, text: (r) => number(r.announced), sort: (r) => r.announced }, { name: "Refused", num: true, text: (r) => number(r.refused), sort: (r) => r.refused },
  ], { key: (r) => r.key, order: 2, empty: "There are none. To tell of a database: fleetbus change source add" });
  const feed = table("Keys that change", [
    { name: "When", text: (r) => when(r.at), sort: (r) => r.at }, { name: "Source", text: (r) => r.source }, { name: "Key", text: (r) => r.key_text },
  ], { key: (r) => r.key, order: 0, down: true, empty: "Nothing has changed since you look." });
  const note = el("p", { class: "note" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Changes")), note, admin ? el("div", { class: "panel" }, t.box) : el("section", { class: "panel" }, el("h2", {}, "Keys that change, as they do"), feed.box));
  return {
    root, feeds: [admin ? "fleet" : "notices"],
    draw() {
      if (!admin && !live.here("notices")) { say(note, "Asking…"); return; }
      say(note, admin ? "The keys that change are shown to users of an account, as their role allows." : "What changed is in the database, and not here: these are keys.");
      if (admin) t.update(live.rows("fleet", "source:"));
      else feed.update([...(live.feeds.get("notices")?.rows || new Map())].map(([key, r]) => ({ ...r, key, key_text: r.key })));
    },
  };
}
