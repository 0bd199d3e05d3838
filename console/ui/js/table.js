import { el, say, announce } from "./dom.js";

// table makes a table whose rows keep their place in the document while they change:
// columns are {name, text, sort, num, cell, wide}. Of very many rows a part is drawn.
export function table(caption, columns, { key, order = 0, down = false, page = 100, filter = true, empty = "There are none.", chosen } = {}) {
  const body = el("tbody", { role: "rowgroup" });
  const count = el("span", { class: "note", role: "status" });
  const more = el("button", { hidden: true, onclick: () => { limit += 500; draw(); } }, "Show more");
  const search = el("input", { type: "search", placeholder: "Filter", "aria-label": "Filter " + caption, oninput: () => { limit = page; draw(); } });
  let rows = [], limit = page, by = order, falling = down;
  const drawn = new Map();
  const heads = columns.map((c, i) => el("th", { scope: "col", role: "columnheader", class: c.num ? "num" : "" },
    el("button", { onclick: () => { falling = by === i ? !falling : !!c.num; by = i; draw(); announce("sorted by " + c.name + (falling ? ", falling" : ", rising")); } },
      c.name, el("span", { class: "arrow", "aria-hidden": "true" }))));
  const t = el("table", { role: "table" }, el("caption", { class: "vh" }, caption), el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads)), body);
  const box = el("div", {}, filter ? el("div", { class: "head noprint" }, search, el("span", { class: "grow" }), count) : null,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, t), more);

  const value = (c, r) => (c.sort ? c.sort(r) : c.text ? c.text(r) : "");
  const compare = (a, b) => {
    const x = value(columns[by], a), y = value(columns[by], b);
    const n = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return (falling ? -n : n) || (key(a) < key(b) ? -1 : 1);
  };

  function cells(r) {
    return columns.map((c, i) => {
      const td = i === 0 ? el("th", { scope: "row", role: "rowheader" }) : el("td", { role: "cell", "data-label": c.name });
      if (c.num) td.className = "num";
      else if (c.tight) td.className = "tight";
      return td;
    });
  }

  function draw() {
    const words = search.value.trim().toLowerCase();
    let shown = words ? rows.filter((r) => columns.some((c) => c.text && String(c.text(r)).toLowerCase().includes(words))) : rows.slice();
    shown.sort(compare);
    const all = shown.length;
    shown = shown.slice(0, limit);
    say(count, all === rows.length && all <= limit ? all.toLocaleString("en-US") + (all === 1 ? " row" : " rows")
      : `showing ${shown.length.toLocaleString("en-US")} of ${all.toLocaleString("en-US")}` + (all < rows.length ? ` that match, of ${rows.length.toLocaleString("en-US")}` : ""));
    more.hidden = all <= limit;
    heads.forEach((h, i) => {
      h.setAttribute("aria-sort", i === by ? (falling ? "descending" : "ascending") : "none");
      say(h.querySelector(".arrow"), i === by ? (falling ? " ▼" : " ▲") : "");
    });
    const keep = new Set();
    let place = body.firstChild;
    for (const r of shown) {
      const k = key(r);
      keep.add(k);
      let d = drawn.get(k);
      if (!d) {
        const tds = cells(r);
        d = { tr: el("tr", { role: "row" }, tds), tds, texts: [] };
        drawn.set(k, d);
      }
      columns.forEach((c, i) => {
        const text = c.text ? String(c.text(r) ?? "") : "";
        const mark = c.cell ? JSON.stringify([text, c.mark ? c.mark(r) : r]) : text;
        if (d.texts[i] === mark) return;
        d.texts[i] = mark;
        d.tds[i].classList.toggle("none", !!c.text && text === "");
        if (c.cell) d.tds[i].replaceChildren(...[c.cell(r)].flat().filter(Boolean));
        else if (text.length > 120) d.tds[i].replaceChildren(el("span", { class: "long", title: text.slice(0, 1000) }, text));
        else say(d.tds[i], text);
      });
      d.tr.className = chosen && chosen(r) ? "chosen" : "";
      if (place === d.tr) place = place.nextSibling;
      else body.insertBefore(d.tr, place);
    }
    for (const [k, d] of drawn) if (!keep.has(k)) { d.tr.remove(); drawn.delete(k); }
    if (shown.length === 0) {
      const text = words ? "Nothing matches." : empty;
      const row = el("tr", { role: "row" }, el("td", { role: "cell", colspan: columns.length, class: "mute" }, text));
      drawn.set("\0empty", { tr: row, tds: [], texts: [] });
      body.append(row);
    }
  }
  return { box, update(next) { rows = next; draw(); } };
}
