import { el, svg, say, badge, day as date, number, plural, action, stateOf, fix } from "./dom.js";
import { table } from "./table.js";

const day = 86400000;

// timeline is a bar from today to the end, in a window of 90 days, with the time of renewal on it.
function timeline(r, now) {
  const w = 180, days = Math.max(0, (r.not_after - now) / day), x = (d) => Math.max(0, Math.min(1, d / 90)) * w;
  const tone = !r.not_after || days < 3 ? "bad" : days < 14 ? "warn" : "";
  return svg("svg", { class: "timeline", viewBox: `0 0 ${w} 14`, preserveAspectRatio: "none", role: "img", "aria-label": r.not_after ? `${Math.floor(days)} days left` : "none was obtained yet" },
    svg("rect", { class: "bar " + tone, x: 0, y: 4, width: Math.max(2, x(days)), height: 6 }), r.renews ? svg("rect", { class: "bar warn", x: Math.max(0, x((r.renews - now) / day) - 1), y: 0, width: 2, height: 14 }) : null);
}

export function screen(live, app) {
  const t = table("Certificates", [
    { name: "Names", text: (r) => (r.names || []).join(", ") }, { name: "Account and group", text: (r) => r.account + "/" + r.group },
    { name: "90 days from now", sort: (r) => r.not_after || 0, cell: (r) => timeline(r, live.now()), mark: (r) => [r.not_after, r.renews, Math.floor(live.now() / 3600000)] },
    { name: "Days left", num: true, text: (r) => (!r.not_after ? "none" : r.not_after < live.now() ? "ended" : Math.floor((r.not_after - live.now()) / day)), sort: (r) => r.not_after || 0 },
    { name: "Renews", tight: true, text: (r) => date(r.renews), sort: (r) => r.renews || 0 },
    { name: "Targets", text: (r) => `${r.current} of ${r.targets} current` + (r.pending ? `, ${r.pending} pending` : "") + (r.failed ? `, ${r.failed} failed` : "") + (r.away ? `, ${r.away} away` : "") + (r.wave ? "; " + r.wave : ""), sort: (r) => r.current - r.targets },
    { name: "Problem", text: (r) => [r.failure, ...(r.details || [])].filter(Boolean).join("; ") },
    app.can("cert.renew") ? { name: "Do", cell: (r) => action("Renew now", false, `The managers obtain another certificate for ${(r.names || []).join(", ")}, and deliver it in waves.`, "cert.renew", { account: r.account, id: r.id }), mark: (r) => r.key } : null,
  ].filter(Boolean), { key: (r) => r.key, order: 3, empty: "There are none. To obtain one: fleetbus cert mk DOMAIN" });
  const targets = table("Targets", [
    { name: "Load balancer", text: (r) => r.name }, { name: "Account and group", text: (r) => r.account + "/" + r.group },
    { name: "State", text: (r) => stateOf(r.state).word, sort: (r) => -stateOf(r.state).rank, cell: (r) => badge(r.state), mark: (r) => r.state }, { name: "Why", text: (r) => r.why || "" }, { name: "Fix", text: (r) => r.fix || "", cell: (r) => fix(r.fix), mark: (r) => r.fix },
  ], { key: (r) => r.key, order: 2 });
  const nodes = table("Certificates of nodes", [{ name: "Node", text: (r) => r.name }, { name: "Days left", num: true, text: (r) => (r.not_after ? Math.floor((r.not_after - live.now()) / day) : "–"), sort: (r) => r.not_after || 0 }, { name: "Until", text: (r) => date(r.not_after), sort: (r) => r.not_after || 0 }], { key: (r) => r.key, order: 1, filter: false });
  const note = el("p", { class: "note", role: "status" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Certificates")), note, el("div", { class: "panel" }, t.box), el("section", { class: "panel" }, el("h2", {}, "Targets"), targets.box), el("section", { class: "panel" }, el("h2", {}, "Nodes, which renew their own"), nodes.box));
  return {
    root, feeds: ["certs", "fleet"],
    draw() {
      const meta = live.row("certs", "meta"), all = live.rows("certs", "cert:");
      say(note, !meta ? "Asking the managers…" : `${plural(all.length, "certificate")}, ${number(all.filter((c) => c.not_after && c.not_after - live.now() < 14 * day).length)} of them end within two weeks.` + (meta.errors?.length ? " No answer: " + meta.errors.join("; ") : ""));
      t.update(all);
      targets.update(live.rows("certs", "target:"));
      nodes.update(live.rows("fleet", "node:").filter((n) => n.not_after));
    },
  };
}
