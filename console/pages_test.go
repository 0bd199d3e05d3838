package console

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
)

// TestPages looks at every screen in a real browser: one, and one node, for all of it.
func TestPages(t *testing.T) {
	browser := chromium(t)
	on := newStage(crowded(12))
	s := start(t, on)
	b := newTab(t, browser)
	b.enter(s, "FLEET/admin")
	for _, part := range []struct {
		name string
		test func(*testing.T, *tab, *stage)
	}{{"screens", testScreens}, {"topology", testTopology}, {"none", testNone}, {"ten thousand", testThousands}} {
		t.Run(part.name, func(t *testing.T) {
			b.t = t
			part.test(t, b, on)
			b.clean(part.name)
		})
	}
	t.Run("cold", func(t *testing.T) { testCold(t, newTab(t, browser)) })
	t.Run("account", func(t *testing.T) { testAccount(t, newTab(t, browser), s) })
	t.Run("restart", func(t *testing.T) {
		b.t = t
		on.show(crowded(0))
		testNodeGoes(t, b, s)
	})
}

// screens are all but the topology, which has a test of its own.
func screens() []string {
	return []string{"nodes", "connections", "accounts", "streams", "certificates", "changes", "hub", "audit", "doctor"}
}

func testScreens(t *testing.T, b *tab, _ *stage) {
	for _, name := range screens() {
		ready := `document.querySelectorAll("main tbody tr:not(:has(td.mute))").length>1`
		if name == "doctor" {
			ready = `document.querySelectorAll("main article").length>1`
		}
		b.open(name, ready)
		for _, l := range looks() {
			b.look(l)
			b.shoot(name + "-" + l.name)
			if l.media == "screen" {
				b.axe(name+" "+l.name, l.rules()...)
			}
			b.clean(name + " " + l.name)
		}
		b.look(looks()[0])
		if n := eval[int](b, `document.querySelectorAll("main script, main img, main [onload]").length`); n > 0 {
			t.Errorf("%s: a name became markup", name)
		}
	}
	// A screen can be of one thing, and the address says so.
	b.open("accounts?account=acme", `document.querySelector("section[aria-label='Account acme']")!==null`)
	b.shoot("accounts-one")
}

func testTopology(t *testing.T, b *tab, on *stage) {
	const ready = `document.querySelectorAll(".map .thing").length>8`
	on.fleet(everything())
	for _, l := range looks() {
		// The phone begins with the table.
		b.open("nodes", "true")
		b.look(l)
		if l.name == "phone" {
			b.open("topology", `document.querySelectorAll("main tbody tr").length>10`)
		} else {
			b.open("topology", ready)
		}
		b.shoot("topology-" + l.name)
		if l.media == "screen" {
			b.axe("topology "+l.name, l.rules()...)
		}
		b.clean("topology " + l.name)
	}
	b.open("nodes", "true")
	b.look(looks()[0])
	b.open("topology", ready)
	// Nothing jumps when a state changes.
	const places = `JSON.stringify([document.querySelector(".map svg").getAttribute("viewBox"),...[...document.querySelectorAll(".map .thing")].map(e=>e.dataset.id+" "+e.getAttribute("transform")).sort()])`
	before := eval[string](b, places)
	healed := everything()
	healed.Nodes = fleetOf(5).Nodes
	on.fleet(healed)
	b.until(`!document.querySelector('.thing[data-id="node:eu-05"]').classList.contains("bad")`)
	if after := eval[string](b, places); after != before {
		t.Errorf("something jumped:\n%s\n%s", before, after)
	}
	on.fleet(everything())
	b.until(`document.querySelector('.thing[data-id="node:eu-05"]').classList.contains("bad")`)
	// By keyboard.
	b.do(chromedp.Evaluate(`document.querySelector('.thing[data-id="node:eu-01"]').focus()`, nil), chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.Enter))
	b.until(`document.activeElement.matches("aside")`)
	b.click(`.edge[data-id*="eu-01"][data-id*="eu-04"]`)
	b.until(`document.querySelector("aside").innerText.includes("From both ends")`)
	b.shoot("topology-link")
	b.click(`.thing[data-id="node:eu-05"]`)
	b.until(`document.querySelector("aside h2").innerText.includes("eu-05")`)
	b.shoot("topology-node")
	b.axe("topology, a node")
	for _, one := range []struct {
		name   string
		status admin.Status
		node   string
	}{{"one", fleetOf(1), "eu-01"}, {"two", fleetOf(2), "eu-02"}, {"three", fleetOf(3), "eu-03"}, {"deaf", deafFleet(), "eu-04"}} {
		on.fleet(one.status)
		b.until(`document.querySelector('.thing[data-id="node:` + one.node + `"]')!==null&&document.querySelectorAll(".map .thing").length===` + one.node[4:])
		b.shoot("topology-" + one.name)
	}
	on.fleet(many())
	b.until(`document.querySelector("main").innerText.includes("Collapsed: ")`)
	b.shoot("topology-many")
	if n := eval[int](b, `document.querySelectorAll(".map .thing").length`); n > 60 {
		t.Errorf("a picture of a thousand nodes has %d things", n)
	}
}

func testNone(t *testing.T, b *tab, on *stage) {
	on.show(crowded(0))
	for _, name := range append(screens(), "topology") {
		b.open(name, `document.querySelectorAll("main td.mute, main article, main [role=status], main .thing").length>0&&!document.querySelector("main").innerText.includes("thing-0")`)
		b.shoot(name + "-none")
	}
}

func testThousands(t *testing.T, b *tab, on *stage) {
	on.show(crowded(10_000))
	for _, name := range append(screens(), "topology") {
		ready := `document.querySelectorAll("main tbody tr:not(:has(td.mute)), main article, main .thing").length>1`
		switch name {
		case "connections", "accounts", "streams", "certificates":
			ready = `/of 10,00/.test(document.querySelector("main").innerText)`
		case "changes", "hub":
			ready = `/of 2,000/.test(document.querySelector("main").innerText)`
		}
		b.open(name, ready)
		if rows := eval[int](b, `document.querySelectorAll("main tbody tr").length`); rows > 400 {
			t.Errorf("%s of ten thousand draws %d rows", name, rows)
		}
		b.shoot(name + "-thousands")
		b.clean(name + " of ten thousand")
	}
	on.show(crowded(0)) // to leave it takes the page a while, else
}

const (
	// coldBytes and coldAsked are what the first screen may take over the wire.
	coldBytes, coldAsked = 100_000, 20
	// coldTime is how long a busy machine may take for what is to take 300 ms on a free one.
	coldTime = 20 * time.Second
)

// testCold opens the console of a node that the browser has never seen.
func testCold(t *testing.T, b *tab) {
	s := start(t, nil)
	b.enter(s, "FLEET/admin")
	b.until(`!!window.__first`)
	first := time.Duration(eval[float64](b, `window.__first`) * float64(time.Millisecond))
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := 0.0
	for _, n := range b.bytes {
		sum += n
	}
	t.Logf("the first screen, cold: %d requests, %.0f bytes, live data after %v", b.asked, sum, first.Round(time.Millisecond))
	if b.asked > coldAsked || sum > coldBytes || sum < 10_000 || first > coldTime {
		t.Errorf("the first screen takes %d requests, %.0f bytes and %v", b.asked, sum, first)
	}
}

// testAccount has a user of an account look at its streams and changes, and the login
// page be usable.
func testAccount(t *testing.T, b *tab, s *fleetbustest.Server) {
	nc := s.Dial("acme", "alice")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "orders.new", []byte("<b>three pears</b>")); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Navigate(strings.Split(loginURL(t, s, "acme/alice"), "#")[0]))
	b.do(chromedp.Evaluate(`fetch("api/logout",{method:"POST",headers:{"Content-Type":"application/json"},body:"{}"}).then(r=>r.status)`, nil,
		func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }), chromedp.Reload())
	b.until(`document.querySelector("main form")!==null`)
	for _, l := range looks()[:3] {
		b.look(l)
		b.shoot("login-" + l.name)
		b.axe("login "+l.name, l.rules()...)
		b.clean("login "+l.name, "401")
	}
	b.look(looks()[0])
	b.enter(s, "acme/alice")
	b.open("streams", `document.body.innerText.includes("acme/ORDERS")`)
	if nav := eval[string](b, `[...document.querySelectorAll("#nav a")].map(a=>a.dataset.screen).join()`); nav != "streams,changes" {
		t.Errorf("a user of an account has the screens %s", nav)
	}
	b.click("main tbody button")
	b.until(`document.querySelector("section[aria-label='A stream'] button")!==null`)
	b.click("section[aria-label='A stream'] button")
	b.until(`document.querySelector("main pre")?.innerText==="<b>three pears</b>"`)
	b.shoot("streams-account")
	b.axe("a stream")
	b.open("changes", `document.body.innerText.includes("Nothing has changed")`)
	if err := nc.Publish("change.shop.customers.42", nil); err != nil {
		t.Fatal(err)
	}
	b.until(`[...document.querySelectorAll("main tbody tr")].some(r=>r.innerText.includes("customers.42"))`)
	b.shoot("changes-account")
	// Whose rights are taken away is gone at once.
	if _, err := s.Admin().DenyUser(ctx, "acme/alice"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.until(`document.querySelector("main form")!==null&&document.body.innerText.includes("rights")`)
	t.Logf("gone %v after the denial", time.Since(began).Round(time.Millisecond))
	b.clean("a user's own account", "401", "403") // the browser logs who asks without a login
}

// testNodeGoes has the page open while its node is started anew.
func testNodeGoes(t *testing.T, b *tab, s *fleetbustest.Server) {
	b.enter(s, "FLEET/admin")
	const live = `document.getElementById("pill").className.includes("ok")`
	b.open("topology", `document.querySelectorAll(".map .thing").length===1&&`+live)
	b.do(chromedp.Evaluate(`window.__here=1`, nil))
	s.Stop()
	b.until("!" + live)
	if text := eval[string](b, `document.getElementById("pill").innerText`); strings.Contains(text, "live") {
		t.Errorf("what is old is called %q", text)
	}
	b.shoot("topology-away")
	again := s.Restart()
	began := time.Now()
	b.until(live)
	took := time.Since(began)
	t.Logf("live again %v after the node was ready", took.Round(time.Millisecond))
	if eval[int](b, `window.__here||0`) != 1 {
		t.Error("the page was loaded anew")
	}
	again.Stop()
}
