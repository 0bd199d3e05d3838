// Where everything is on the picture. The same fleet always has the same picture:
// places follow from names alone, so that nothing jumps when a state changes.

export const NODE = 27, SATELLITE = 20;

// around puts n things on a circle, the first at the top.
function around(x, y, radius, n, i) {
  const a = -Math.PI / 2 + (2 * Math.PI * i) / n;
  return { x: x + radius * Math.cos(a), y: y + radius * Math.sin(a), angle: a };
}

// onArcs puts n things on the upper and the lower arc of a circle: to its left and right
// are the lines to other clusters.
function onArcs(x, y, radius, n, i) {
  const above = Math.ceil(n / 2), top = i < above;
  const k = top ? i : i - above, of = top ? above : n - above, free = 0.42;
  const a = (top ? -Math.PI : 0) + free + ((Math.PI - 2 * free) * (k + 0.5)) / of;
  return { x: x + radius * Math.cos(a), y: y + radius * Math.sin(a), angle: a };
}

// layout places clusters, each {name, nodes, satellites}, and hubs. It returns places
// by id, hulls, and the box around all of it.
export function layout(clusters, hubs) {
  const sized = clusters.map((c) => {
    const n = c.nodes.length, m = c.satellites.length;
    const ring = n <= 1 ? 0 : Math.max(n === 2 ? 105 : 135, (n * 96) / (2 * Math.PI));
    const orbit = m ? Math.max(ring + 195, (m * 150) / (2 * Math.PI)) : 0;
    return { ...c, ring, orbit, half: Math.max(ring + 130, orbit ? orbit + 95 : 0, 150) };
  });
  const places = new Map(), hulls = [];
  const columns = sized.length <= 3 ? sized.length : Math.ceil(Math.sqrt(sized.length));
  let y = 0, width = 0, i = 0;
  while (i < sized.length) {
    const row = sized.slice(i, i + columns);
    const tall = Math.max(...row.map((c) => c.half));
    let x = 0;
    for (const c of row) {
      const cx = x + c.half, cy = y + tall;
      hulls.push({ id: "cluster:" + c.name, name: c.name, x: cx, y: cy, r: c.ring + (c.nodes.length > 1 ? 108 : 84), orbit: c.orbit });
      c.nodes.forEach((id, k) => places.set(id, c.nodes.length === 1 ? { x: cx, y: cy, angle: Math.PI / 2 } : around(cx, cy, c.ring, c.nodes.length, k)));
      c.satellites.forEach((id, k) => places.set(id, onArcs(cx, cy, c.orbit, c.satellites.length, k)));
      x += 2 * c.half + 110;
    }
    width = Math.max(width, x - 110);
    y += 2 * tall + 70;
    i += columns;
  }
  y -= 70;
  hubs.forEach((id, k) => {
    places.set(id, { x: (width * (k + 1)) / (hubs.length + 1), y: y + 80 });
    width = Math.max(width, 260 * hubs.length);
  });
  if (hubs.length) y += 140;
  // What is small is in the middle, and not drawn larger than it is.
  const wide = Math.max(width, 760), tall = Math.max(y, 420);
  for (const p of [...places.values(), ...hulls]) { p.x += (wide - width) / 2; p.y += (tall - y) / 2; }
  return { places, hulls, width: wide, height: tall };
}

// outward is where the words of a thing are: away from the middle, where no lines are.
export function outward(angle, r, lines) {
  const x = Math.cos(angle), y = Math.sin(angle);
  if (Math.abs(x) < 0.55) return { anchor: "middle", x: 0, y: y < 0 ? -r - 8 - 15 * (lines - 1) : r + 18 };
  return { anchor: x < 0 ? "end" : "start", x: (r + 8) * Math.sign(x), y: 5 - 7.5 * (lines - 1) + y * 10 };
}

// edgeBetween is the line between two places that leaves their shapes free.
export function edgeBetween(a, b, ra, rb) {
  const dx = b.x - a.x, dy = b.y - a.y, d = Math.hypot(dx, dy) || 1;
  return { x1: a.x + (dx / d) * ra, y1: a.y + (dy / d) * ra, x2: b.x - (dx / d) * rb, y2: b.y - (dy / d) * rb };
}

// nearest is the place that lies in a direction, for arrow keys.
export function nearest(places, from, dx, dy) {
  let best = null, least = Infinity;
  for (const [id, p] of places) {
    const x = p.x - from.x, y = p.y - from.y;
    const along = x * dx + y * dy, across = Math.abs(x * dy - y * dx);
    if (along < 4) continue;
    const cost = along + 2 * across;
    if (cost < least) { least = cost; best = id; }
  }
  return best;
}
