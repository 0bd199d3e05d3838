import { el, say, number, plural, size, rate, since, call } from "./dom.js";
import { table } from "./table.js";

export function screen(live, app) {
  let chosen = "";
  const own = app.me.account !== "FLEET";
  const t = table("Streams", [
    { name: "Stream", text: (r) => r.account + "/" + r.name, cell: (r) => el("button", { onclick: () => { chosen = r.key; draw(); details.focus(); } }, r.account + "/" + r.name), mark: (r) => r.key },
    { name: "Subjects", text: (r) => (r.subjects || []).join(", ") },
    { name: "Messages", num: true, text: (r) => number(r.messages), sort: (r) => r.messages }, { name: "Stored", num: true, text: (r) => size(r.bytes), sort: (r) => r.bytes },
    { name: "Comes in", num: true, text: (r) => rate(r.rate, "m"), sort: (r) => r.rate }, { name: "Newest", num: true, text: (r) => (r.last > 0 ? since(r.last, live.now()) : "–"), sort: (r) => r.last },
    { name: "Readers", num: true, text: (r) => number(r.consumers), sort: (r) => r.consumers },
    { name: "Reader lag", num: true, text: (r) => number(r.lag), sort: (r) => r.lag },
    { name: "Copies", num: true, text: (r) => `${1 + (r.copies || []).filter((c) => c.current).length} of ${r.replicas}`, sort: (r) => 1 + (r.copies || []).filter((c) => c.current).length - r.replicas },
    { name: "Copy lag", num: true, text: (r) => number(r.behind), sort: (r) => r.behind }, { name: "Leader", text: (r) => r.leader || "–" },
  ], { key: (r) => r.key, order: 7, down: true });
  const slow = table("Slowest consumers", [
    { name: "Consumer", text: (r) => r.name }, { name: "Stream", text: (r) => r.stream }, { name: "Waits for it", num: true, text: (r) => number(r.pending), sort: (r) => r.pending },
    { name: "Not acknowledged", num: true, text: (r) => number(r.ack_pending), sort: (r) => r.ack_pending }, { name: "Sent again", num: true, text: (r) => number(r.redelivered), sort: (r) => r.redelivered },
    { name: "Last read", num: true, text: (r) => (r.active ? since(Date.parse(r.active), live.now()) : "never"), sort: (r) => Date.parse(r.active || 0) || 0 },
  ], { key: (r) => r.key, order: 2, down: true, empty: "Nobody reads a stream." });
  const note = el("p", { class: "note" }), details = el("section", { class: "panel", tabindex: "-1", hidden: true, "aria-label": "A stream" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Streams and consumers")), note, details, el("div", { class: "panel" }, t.box), el("section", { class: "panel" }, el("h2", {}, "Slowest consumers"), slow.box));

  async function peek(name, box) {
    box.replaceChildren(el("p", { class: "note" }, "Reading…"));
    try {
      const all = await call("ask/peek?stream=" + encodeURIComponent(name));
      box.replaceChildren(...(all.length ? all.map((m) => el("article", {}, el("h2", { dir: "auto" }, `${m.sequence} · ${m.subject} · ${size(m.size)}`), el("pre", { dir: "auto", tabindex: "0" }, m.text + (m.cut ? " …" : "")))) : [el("p", { class: "note" }, "It is empty.")]));
    } catch (e) { box.replaceChildren(el("p", { class: "banner bad" }, e.message, e.fix ? ". " + e.fix : "")); }
  }

  function drawDetails() {
    const s = live.row("streams", chosen);
    details.hidden = !s;
    if (!s || details.dataset.key === chosen + JSON.stringify(s.copies)) return;
    details.dataset.key = chosen + JSON.stringify(s.copies);
    const box = el("div", {});
    details.replaceChildren(el("h2", { dir: "auto" }, s.name), el("ul", {}, el("li", {}, `leader: ${s.leader || "none"}`), (s.copies || []).map((c) => el("li", {}, `copy at ${c.node}: ${c.offline ? "away" : c.current ? "current" : "catching up"}${c.lag ? ", " + number(c.lag) + " behind" : ""}`))),
      own ? el("button", { onclick: () => peek(s.name, box) }, "Show the ten newest messages, a kilobyte of each") : el("p", { class: "note" }, "An administrator sees how a stream stands, and not what is in it."), box);
  }

  function draw() {
    const all = live.rows("streams", "stream:"), meta = live.row("streams", "meta");
    say(note, !meta ? "Asking the nodes…" : plural(all.length + meta.more, "stream") + (meta.more ? `; the ${number(all.length)} largest are shown` : "") + (meta.missing?.length ? `; no answer from ${meta.missing.join(", ")}` : ""));
    t.update(all);
    slow.update(all.flatMap((s) => (s.readers || []).map((c) => ({ ...c, stream: s.account + "/" + s.name, key: s.key + "\0" + c.name }))));
    drawDetails();
  }
  return { root, feeds: ["streams"], draw };
}
