import { el, say, call, prefs, announce, when } from "./dom.js";
import { Live } from "./live.js";
import { screen as topology } from "./topology.js";

const names = { topology: "Topology", nodes: "Nodes", connections: "Connections", accounts: "Accounts", streams: "Streams", certificates: "Certificates", changes: "Changes", hub: "Hub", audit: "Audit", doctor: "Doctor" };
const main = document.getElementById("main"), pill = document.getElementById("pill"), bar = document.getElementById("bar");
let me = null, current = null, name = "", where = "", alive = null;

const live = new Live(onchange, onstate, onover);
if (prefs.get("theme", "")) document.documentElement.dataset.theme = prefs.get("theme", "");

const app = {
  param(key) { return new URLSearchParams(location.hash.split("?")[1] || "").get(key) || ""; },
  setParam(key, value) {
    const [path, query] = location.hash.split("?");
    const p = new URLSearchParams(query || "");
    if (value) p.set(key, value); else p.delete(key);
    history.replaceState(null, "", (path || "#/topology") + (p.size ? "?" + p : ""));
  },
  can: (what) => me?.can.includes(what) || false,
  look: (feeds) => live.look(feeds),
  get me() { return me; },
};

function onchange() {
  if (!current) return;
  const fleet = live.row("fleet", "fleet");
  if (fleet) where = `${fleet.fleet} · at ${fleet.node}`;
  say(document.getElementById("where"), where || me?.account || "");
  drawFailure();
  current.draw();
}

// drawFailure says which feed is silent, since when.
function drawFailure() {
  const failed = current.feeds.map((f) => live.failed(f)).filter(Boolean);
  let box = document.getElementById("failed");
  if (!failed.length) { box?.remove(); return; }
  if (!box) main.prepend((box = el("div", { id: "failed", class: "banner bad", role: "status" })));
  const text = failed.map((f) => `No news of ${f.feed} since ${when(Date.parse(f.since))}: ${f.error}. What you see is older.${f.fix ? " Fix: " + f.fix : ""}`).join(" ");
  say(box, text);
}

function onstate(state, age) {
  const tone = { live: "ok", stale: "bad", reconnecting: "warn", connecting: "warn" }[state];
  pill.className = "pill " + tone;
  say(pill, state === "live" ? "● live" : state === "stale" ? `▲ stale, ${Math.round(age / 1000)} s old` : "◌ " + state + (age > 0 ? `, ${Math.round(age / 1000)} s old` : ""));
  main.classList.toggle("stale", state !== "live" && state !== "connecting");
}

function onover(why) { leave(why); }

live.onlost = async () => {
  try {
    enter(await call("me"));
    live.open();
  } catch (e) {
    if (e.status === 401) leave("Your session is over: log in again.");
    else live.onlostLater = setTimeout(live.onlost, 700);
  }
};

function leave(why) {
  live.stop();
  current?.end?.();
  current = null;
  me = null;
  where = "";
  clearInterval(alive);
  login(why);
}

function enter(who) {
  const first = !me || me.principal !== who.principal;
  me = who;
  bar.hidden = false;
  clearInterval(alive);
  alive = setInterval(() => call("me").catch(() => {}), 4 * 60 * 1000);
  if (first) { menu(); nav(); }
}

function nav() {
  document.getElementById("nav").replaceChildren(...me.screens.map((s) => el("a", { href: "#/" + s, "data-screen": s }, names[s] || s)));
}

function menu() {
  document.querySelector("#me summary").textContent = me.principal;
  const theme = el("select", { onchange: (e) => { prefs.set("theme", e.target.value); document.documentElement.dataset.theme = e.target.value; } }, [["", "as the system"], ["light", "light"], ["dark", "dark"]].map(([v, t]) => el("option", { value: v, selected: prefs.get("theme", "") === v }, t)));
  const clock = el("select", { onchange: (e) => { prefs.set("utc", e.target.value); current?.draw(); } }, [["", "local time"], ["yes", "UTC"]].map(([v, t]) => el("option", { value: v, selected: prefs.get("utc", "") === v }, t)));
  document.getElementById("menu").replaceChildren(
    el("span", {}, "Role ", el("b", {}, me.role || "none"), " in account ", el("b", {}, me.account)), el("span", { class: "note" }, "until " + when(me.ends)),
    el("label", {}, "Colors ", theme), el("label", {}, "Times ", clock),
    el("button", { onclick: async () => { await call("logout", {}).catch(() => {}); leave("You are logged out."); } }, "Log out"));
}

const modules = {
  topology: async () => topology,
  nodes: async () => (await import("./nodes.js")).screen,
  doctor: async () => (await import("./doctor.js")).screen,
  connections: async () => (await import("./connections.js")).screen,
  accounts: async () => (await import("./accounts.js")).screen,
  streams: async () => (await import("./streams.js")).screen,
  certificates: async () => (await import("./certificates.js")).screen,
  changes: async () => (await import("./changes.js")).screen,
  hub: async () => (await import("./hub.js")).screen,
  audit: async () => (await import("./audit.js")).screen,
};

async function route() {
  if (!me) return;
  let next = location.hash.replace(/^#\//, "").split("?")[0];
  if (!me.screens.includes(next)) next = me.screens[0];
  if (!next) {
    live.stop();
    main.replaceChildren(el("div", { class: "panel" }, el("h1", {}, "There is nothing here for you"), el("p", {}, `You are ${me.principal}, with role ${me.role || "none"}. No screen shows anything that this role may see.`)));
    return;
  }
  if (next === name && current) { current.draw(); return; }
  let make;
  try { make = await modules[next](); } catch { main.replaceChildren(el("p", { class: "banner bad" }, "This screen could not be loaded. Load the page again.")); return; }
  current?.end?.();
  name = next;
  current = make(live, app);
  main.replaceChildren(current.root);
  document.title = (names[next] || next) + " – fleetbus";
  for (const a of document.querySelectorAll("#nav a")) {
    if (a.dataset.screen === next) { a.setAttribute("aria-current", "page"); a.scrollIntoView({ block: "nearest", inline: "nearest" }); } else a.removeAttribute("aria-current");
  }
  document.getElementById("me").removeAttribute("open");
  live.look(current.feeds);
  onchange();
}

function login(why) {
  bar.hidden = true;
  name = "";
  document.title = "Log in – fleetbus";
  const said = el("p", { role: "alert", class: "bad" }, why || "");
  const user = el("input", { name: "user", autocomplete: "username", autocapitalize: "none", spellcheck: "false", placeholder: "account/name", required: true });
  const password = el("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
  const go = async (what) => {
    say(said, "");
    try {
      enter(await call("login", what));
      await route();
    } catch (e) {
      password.value = "";
      say(said, e.message + (e.fix ? ": " + e.fix : ""));
    }
  };
  main.replaceChildren(el("div", { class: "panel login" }, el("h1", {}, "Log in to fleetbus"), said,
    el("form", { onsubmit: (e) => { e.preventDefault(); go({ user: user.value.trim(), password: password.value }); } },
      el("label", {}, "User", user), el("label", {}, "Password", password), el("button", { class: "primary" }, "Log in")),
    el("button", { onclick: () => go({}) }, "Log in with my client certificate"),
    el("p", { class: "note" }, "On a machine with administrator’s credentials, this prints a link that lets you in once: "), el("p", {}, el("code", {}, "fleetbus console login"))));
  main.dataset.login = "yes";
}

async function begin() {
  const link = /^#login=([\w-]+)$/.exec(location.hash)?.[1];
  try {
    if (link) {
      history.replaceState(null, "", location.pathname + "#/topology");
      enter(await call("login", { link }));
    } else {
      enter(await call("me"));
    }
    await route();
  } catch (e) {
    login(e.status === 401 && !link ? "" : e.message + (e.fix ? ": " + e.fix : ""));
  }
}

addEventListener("hashchange", () => (/^#login=/.test(location.hash) ? begin() : route()));
addEventListener("visibilitychange", () => { if (!document.hidden && current) onchange(); });
begin();
