import { el, fix, say } from "./dom.js";

// How urgent a finding is, by the word that it has for that.
const tones = {
  problem: ["bad", "✕", "problem"], fail: ["bad", "✕", "problem"], warning: ["warn", "!", "warning"], warn: ["warn", "!", "warning"],
  info: ["mute", "i", "info"], unknown: ["mute", "?", "not known"], skipped: ["mute", "–", "skipped"], ok: ["ok", "✓", "well"],
};
const order = ["bad", "warn", "mute", "ok"];
const tone = (f) => tones[f.state || f.severity] || tones.problem;
const text = (x) => (Array.isArray(x) ? x.map(text).join("; ") : x && typeof x === "object" ? Object.entries(x).map(([k, v]) => `${k} ${text(v)}`).join(", ") : String(x ?? ""));

export function screen(live) {
  const list = el("div", {}), sum = el("p", { class: "note", role: "status" });
  const root = el("div", {}, el("div", { class: "head" }, el("h1", {}, "Doctor")), sum, list, el("p", { class: "note noprint" }, "The same in a terminal, of a node that does not start, too: ", el("code", {}, "fleetbus doctor")));
  let mark = "";
  return {
    root, feeds: ["fleet"],
    draw() {
      const all = live.rows("fleet", "finding:").map((f, i) => [order.indexOf(tone(f)[0]), i, f]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((x) => x[2]);
      const next = JSON.stringify(all) + live.here("fleet");
      if (next === mark) return;
      mark = next;
      const count = (t) => all.filter((f) => tone(f)[0] === t).length;
      say(sum, !live.here("fleet") ? "Asking the nodes…" : all.length ? `${count("bad")} to mend now, ${count("warn")} to mend soon, ${count("mute")} worth knowing.` : "The nodes found nothing that is wrong.");
      list.replaceChildren(...all.slice(0, 500).map((f) => {
        const [color, glyph, word] = tone(f);
        return el("article", { class: "panel finding " + color }, el("h2", {}, el("span", { class: "state " + color }, el("span", { class: "glyph", "aria-hidden": "true" }, glyph), " " + word), f.group ? el("span", { class: "mute" }, f.group) : null, el("span", { dir: "auto" }, f.subject), el("code", {}, f.code)),
          el("p", { dir: "auto" }, text(f.text)), f.evidence ? el("p", { class: "why", dir: "auto" }, text(f.evidence)) : null, f.fix ? el("p", {}, fix(f.fix)) : null, f.because?.length ? el("p", { class: "note" }, "Explained by " + f.because.join(", ")) : null);
      }), all.length > 500 ? el("p", { class: "note" }, `and ${all.length - 500} more`) : "");
    },
  };
}
