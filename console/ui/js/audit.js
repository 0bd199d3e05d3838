import { el, say, call, when } from "./dom.js";
import { table } from "./table.js";

// short is what became of a record, in a form that can be read.
const change = (c) => `${c.subject}: ${c.before ? JSON.stringify(c.before) : "nothing"} → ${c.after ? JSON.stringify(c.after) : "nothing"}`;

const text = (r) => (r.changes || []).map(change).join("; ") || (r.request ? JSON.stringify(r.request) : "");
const whole = (c) => `${c.subject}\nbefore: ${JSON.stringify(c.before ?? null, null, 2)}\nafter: ${JSON.stringify(c.after ?? null, null, 2)}`;

export function screen() {
  const t = table("Audit", [
    { name: "When", tight: true, text: (r) => when(Date.parse(r.time)), sort: (r) => Date.parse(r.time) }, { name: "Who", text: (r) => r.who || "–" }, { name: "From", text: (r) => (r.from || []).join(", ") },
    { name: "Kind", text: (r) => r.kind }, { name: "What", text: (r) => r.what || "" }, { name: "Account", text: (r) => r.account || "" }, { name: "Result", text: (r) => r.result || "" }, { name: "Node", text: (r) => r.node },
    { name: "Before → after", text, cell: (r) => (text(r).length > 90 ? el("details", {}, el("summary", {}, el("span", { class: "long" }, text(r).slice(0, 300))), el("pre", { tabindex: "0" }, (r.changes || []).map(whole).join("\n\n") || JSON.stringify(r.request, null, 2))) : text(r)), mark: (r) => r.number },
  ], { key: (r) => r.node + "/" + r.number, order: 0, down: true, page: 200, filter: false });
  const said = el("p", { class: "note", role: "status" });
  const match = el("input", { type: "search", placeholder: "Search who, what or where", "aria-label": "Search the audit", onchange: () => { all = []; next = 0; more(); } });
  const older = el("button", { onclick: () => more() }, "Older");
  let all = [], next = 0;
  async function more() {
    say(said, "Asking…");
    try {
      const page = await call(`ask/audit?before=${next}&match=${encodeURIComponent(match.value)}`);
      all = all.concat(page.entries || []);
      next = page.next || 0;
      older.disabled = !next;
      say(said, `${all.length} entries${next ? ", and older ones" : ", and no older ones"}.`);
      t.update(all);
    } catch (e) { say(said, e.message + (e.fix ? ": " + e.fix : "")); }
  }
  more();
  return { root: el("div", {}, el("div", { class: "head" }, el("h1", {}, "Audit"), el("span", { class: "grow" }), match), el("div", { class: "panel" }, t.box, said, older)), feeds: ["fleet"], draw() {} };
}
