// What the node tells as it happens: one stream, of the feeds that the screen looks at.

export class Live {
  constructor(onchange, onstate, onover) {
    this.feeds = new Map();
    this.wanted = "";
    this.onchange = onchange;
    this.onstate = onstate;
    this.onover = onover;
    this.state = "connecting";
    this.epoch = "";
    this.tries = 0;
    this.drawn = 0;
    this.skew = 0; // the node's clock less ours, in milliseconds
    this.watch = setInterval(() => this.check(), 1000);
  }

  // look opens the stream of these feeds, if it is not open.
  look(names) {
    const wanted = [...new Set(names)].sort().join(",");
    if (wanted === this.wanted && this.source) return;
    this.wanted = wanted;
    for (const name of this.feeds.keys()) if (!names.includes(name)) this.feeds.delete(name);
    this.open();
  }

  open() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.later);
    if (!this.wanted) return;
    const s = new EventSource("api/live?feeds=" + encodeURIComponent(this.wanted));
    this.source = s;
    this.opened = performance.now();
    s.addEventListener("hello", (e) => {
      const hello = JSON.parse(e.data);
      this.restarted = this.epoch !== "" && this.epoch !== hello.epoch;
      this.epoch = hello.epoch;
      this.skew = hello.at - Date.now();
      this.missing = hello.missing;
      this.tries = 0;
      this.say("live");
    });
    for (const kind of ["full", "delta", "silent"]) s.addEventListener(kind, (e) => this.take(kind, e));
    s.addEventListener("over", (e) => { this.stop(); this.onover(JSON.parse(e.data).why); });
    s.onerror = () => {
      this.say("reconnecting");
      if (s.readyState === EventSource.CLOSED && this.source === s) {
        this.tries++;
        this.later = setTimeout(() => this.onlost(), Math.min(5000, 300 * this.tries));
      }
    };
  }

  stop() {
    this.source?.close();
    this.source = null;
    this.wanted = "";
    clearTimeout(this.later);
  }

  take(kind, e) {
    // What an earlier life of the node said is not mixed with what this one says.
    if (!e.lastEventId.startsWith(this.epoch + ".")) return;
    const d = JSON.parse(e.data);
    let f = this.feeds.get(d.feed);
    if (!f) this.feeds.set(d.feed, (f = { name: d.feed, rows: new Map(), at: 0, seen: 0, failed: null }));
    if (kind === "silent") {
      f.failed = d;
    } else {
      if (kind === "full") f.rows = new Map();
      for (const [key, row] of Object.entries(d.set || {})) f.rows.set(key, row);
      for (const key of d.gone || []) f.rows.delete(key);
      f.at = d.at;
      f.seen = performance.now();
      const failed = f.failed;
      f.failed = null;
      const changed = kind === "full" || Object.keys(d.set || {}).length > 0 || (d.gone || []).length > 0;
      if (!changed && !failed && performance.now() - this.drawn < this.rest()) { this.say("live"); return; }
    }
    this.say("live");
    this.schedule();
  }

  // schedule draws what has come, once for all of it, and not while nobody sees it.
  schedule() {
    if (this.drawing) return;
    this.drawing = true;
    const draw = () => { this.drawing = false; this.drawn = performance.now(); this.onchange(); };
    if (document.hidden) setTimeout(draw, 1000);
    else requestAnimationFrame(draw);
  }

  // rest is how long what is drawn may stay while nothing but the time has changed.
  rest() {
    let rows = 0;
    for (const f of this.feeds.values()) rows += f.rows.size;
    return rows > 2000 ? 10000 : 900;
  }

  check() {
    if (this.state === "live" && [...this.feeds.values()].some((f) => f.seen && performance.now() - f.seen > this.patience(f))) this.say("stale");
    if (this.source && this.feeds.size === 0 && performance.now() - this.opened > 5000 && this.state === "live") this.say("stale");
    this.onstate(this.state, this.age());
  }

  // patience is how long a feed may be silent before what is shown is called old.
  patience(f) { return f.failed ? 0 : f.name === "certs" ? 25000 : 5000; }

  age() {
    let oldest = 0;
    for (const f of this.feeds.values()) if (f.seen) oldest = Math.max(oldest, performance.now() - f.seen);
    return oldest;
  }

  say(state) {
    const old = state === "live" && [...this.feeds.values()].some((f) => f.failed);
    this.state = old ? "stale" : state;
    this.onstate(this.state, this.age());
  }

  // rows are those of a feed whose key begins with prefix, sorted by key.
  rows(feed, prefix) {
    const f = this.feeds.get(feed);
    if (!f) return [];
    return [...f.rows].filter(([k]) => k.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)).map(([key, row]) => ({ key, ...row }));
  }

  row(feed, key) { return this.feeds.get(feed)?.rows.get(key); }
  failed(feed) { return this.feeds.get(feed)?.failed; }
  here(feed) { return (this.feeds.get(feed)?.at || 0) > 0; }
  now() { return Date.now() + this.skew; }
}
