package console

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	ports "github.com/fleetbus/fleetbus/internal/loopback"
)

// shots is a directory where the pictures of all screens are kept, if it is set: for
// people to look at.
var shots = os.Getenv("FLEETBUS_TEST_SHOTS")

// A tab is a page of a real browser, in which everything is noted that must not be.
type tab struct {
	context.Context
	t     testing.TB
	mu    sync.Mutex
	wrong []string
	bytes map[network.RequestID]float64
	asked int
}

// chromium starts one browser for a test, and skips where there is none.
func chromium(t testing.TB) context.Context {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		t.Skip("there is no chromium here: apt-get install chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.Flag("ignore-certificate-errors", true), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WSURLReadTimeout(2*time.Minute))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	ctx, leave := chromedp.NewContext(ctx, chromedp.WithErrorf(func(string, ...any) {}))
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx)
		leave()
		stop()
		cancel()
	})
	return ctx
}

// newTab opens a tab, as people have it on a screen.
func newTab(t testing.TB, browser context.Context) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel) // a tab that nobody looks at would go on drawing
	b := &tab{Context: ctx, t: t, bytes: map[network.RequestID]float64{}}
	if err := chromedp.Run(ctx); err != nil { // the tab lives as long as the context of its first run
		t.Fatalf("opening a tab: %v", err)
	}
	chromedp.ListenTarget(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch ev := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.wrong = append(b.wrong, "exception: "+ev.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if ev.Type == runtime.APITypeError || ev.Type == runtime.APITypeWarning {
				text, _ := json.Marshal(ev.Args)
				b.wrong = append(b.wrong, "console: "+string(text))
			}
		case *log.EventEntryAdded:
			if ev.Entry.Level == log.LevelError || ev.Entry.Level == log.LevelWarning {
				b.wrong = append(b.wrong, "log: "+ev.Entry.Text+" "+ev.Entry.URL)
			}
		case *network.EventLoadingFinished:
			b.bytes[ev.RequestID] = ev.EncodedDataLength
		case *network.EventDataReceived: // what has no end yet
			b.bytes[ev.RequestID] += float64(ev.EncodedDataLength)
		case *network.EventRequestWillBeSent:
			b.asked++
			if !strings.HasPrefix(ev.Request.URL, "https://127.0.0.1:") {
				b.wrong = append(b.wrong, "asked elsewhere: "+ev.Request.URL)
			}
		}
	})
	b.do(log.Enable(), network.Enable(), runtime.Enable(),
		chromedp.ActionFunc(func(ctx context.Context) error {
			_, err := page.AddScriptToEvaluateOnNewDocument(`window.__bad=[];document.addEventListener("securitypolicyviolation",e=>window.__bad.push(e.violatedDirective+" "+e.blockedURI+" "+e.sourceFile+":"+e.lineNumber));` +
				`new MutationObserver(()=>{if(!window.__first&&document.querySelector(".map .thing"))window.__first=performance.now();}).observe(document,{childList:true,subtree:true});`).Do(ctx)
			return err
		}))
	b.look(looks()[0])
	return b
}

// A look is how a page is looked at.
type look struct {
	name, media, scheme string
	wide, tall          int64
}

func looks() []look {
	return []look{{"light", "screen", "light", 1360, 900}, {"dark", "screen", "dark", 1360, 900}, {"phone", "screen", "light", 360, 780}, {"print", "print", "light", 1030, 720}}
}

// rules are those that have something new to find in a look, after the first; all if
// there are none.
func (l look) rules() []string {
	if l.name == "dark" {
		return []string{"color-contrast"}
	}
	return nil
}

// look has the page be looked at in another way.
func (b *tab) look(l look) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(l.wide, l.tall),
		emulation.SetEmulatedMedia().WithMedia(l.media).WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}))
}

func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.Context, 90*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		b.t.Fatalf("%v; noted so far: %q; the page: %.900q", err, b.noted(), b.text())
	}
}

// noted is what was noted since it was asked for the last time.
func (b *tab) noted() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	noted := b.wrong
	b.wrong = nil
	return noted
}

// text is what the page says.
func (b *tab) text() (text string) {
	ctx, cancel := context.WithTimeout(b.Context, 10*time.Second)
	defer cancel()
	_ = chromedp.Run(ctx, chromedp.Evaluate(`document.body?document.body.innerText:""`, &text))
	return text
}

// until waits until the page says that expression is true.
func (b *tab) until(expression string) {
	b.t.Helper()
	b.do(chromedp.Poll(expression, nil, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(80*time.Second)))
}

// eval is what an expression is in the page.
func eval[T any](b *tab, expression string) (out T) {
	b.t.Helper()
	b.do(chromedp.Evaluate(expression, &out))
	return out
}

// axe lists what is hard to use for some, by the rules of WCAG 2.2 and more, or by some of
// them.
func (b *tab) axe(what string, rules ...string) {
	b.t.Helper()
	if !eval[bool](b, "!!window.axe") {
		source, err := os.ReadFile(filepath.Join("..", ".tools", "node_modules", "axe-core", "axe.min.js"))
		if err != nil {
			b.t.Skipf("axe-core is not here: npm install --prefix .tools axe-core@4.14.1 (%v)", err)
		}
		b.do(chromedp.Evaluate(string(source), nil))
	}
	options := map[string]any{"resultTypes": []string{"violations"}}
	if len(rules) > 0 {
		options["runOnly"] = rules
	}
	text, err := json.Marshal(options)
	if err != nil {
		b.t.Fatal(err)
	}
	var found []string
	b.do(chromedp.Evaluate(
		`axe.run(document,`+string(text)+`).then(r=>r.violations.map(v=>v.id+" ("+v.impact+"): "+v.help+": "+v.nodes.slice(0,3).map(n=>n.target.join(" ")+" "+n.html.slice(0,160)+" "+(n.failureSummary||"").slice(0,300)).join(" | ")))`,
		&found, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	for _, f := range found {
		b.t.Errorf("%s: axe: %s", what, f)
	}
}

// clean fails if anything was noted that must not be.
func (b *tab) clean(what string, but ...string) {
	b.t.Helper()
	for _, w := range append(b.noted(), eval[[]string](b, "window.__bad||[]")...) {
		allowed := false
		for _, known := range but {
			allowed = allowed || strings.Contains(w, known)
		}
		if !allowed {
			b.t.Errorf("%s: %s", what, w)
		}
	}
	if over := eval[int](b, "document.documentElement.scrollWidth-document.documentElement.clientWidth"); over > 0 {
		b.t.Errorf("%s: the page is %d pixels wider than the window", what, over)
	}
}

// shoot keeps a picture.
func (b *tab) shoot(name string) {
	if shots == "" {
		return
	}
	var png []byte
	b.do(chromedp.CaptureScreenshot(&png))
	if err := os.WriteFile(filepath.Join(shots, name+".png"), png, 0o600); err != nil {
		b.t.Error(err)
	}
}

// start starts a node whose console shows administrators what is on the stage, or, if
// there is none, what there is.
func start(t testing.TB, on *stage) *fleetbustest.Server {
	t.Helper()
	return fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "console", Addr: ports.Addr(t), Protocol: &Protocol{made: func(h *Handler) {
			for name, s := range h.sources {
				if s.poll != nil && on != nil {
					s.poll, s.every = on.poll(name), 20*time.Millisecond
					h.sources[name] = s
				}
			}
		}}})
	})
}

// loginURL is a login link for user.
func loginURL(t testing.TB, s *fleetbustest.Server, user string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	made, err := s.Admin().LoginLink(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	return made.URL
}

// enter logs in by a link.
func (b *tab) enter(s *fleetbustest.Server, user string) {
	b.t.Helper()
	b.do(chromedp.Navigate(loginURL(b.t, s, user)))
	b.until(`!document.getElementById("bar").hidden&&document.querySelector("#nav a[aria-current]")!==null`)
}

// open opens a screen and waits until it is there.
func (b *tab) open(screen, ready string) {
	b.t.Helper()
	b.do(chromedp.Evaluate(fmt.Sprintf(`location.hash="#/%s"`, screen), nil))
	name, _, _ := strings.Cut(screen, "?")
	b.until(`document.querySelector('#nav a[aria-current]')?.dataset.screen==="` + name + `"&&` + ready)
}

// click has somebody click what a selector finds.
func (b *tab) click(selector string) {
	b.t.Helper()
	b.do(chromedp.Evaluate(fmt.Sprintf(`document.querySelector(%q).dispatchEvent(new MouseEvent("click",{bubbles:true}))`, selector), nil))
}
