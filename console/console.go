// Package console is the web console, one more protocol: HTTPS, on a TLS listener
// that it did not open. Its pages are plain files of this package, and what they
// show comes from the fleet by way of the session of whoever is logged in. So
// nobody can do or see by it what the engine would refuse them over NATS.
//
//	GET  /                the page
//	GET  /ui/...          what belongs to it
//	POST /api/login       log in: by a login link, as account/name with a password, or by certificate
//	POST /api/logout      log out
//	GET  /api/me          who is logged in, and which screens there are for them
//	GET  /api/live        server-sent events of what they look at
//	GET  /api/ask/NAME    one question
//	POST /api/do/NAME     one change
//
// A program that has a web server of its own mounts a Handler in it.
package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

const (
	// headerTimeout bounds the wait for a request, maxHeader its headers in bytes.
	headerTimeout, maxHeader = 10 * time.Second, 8 << 10
	// maxBody bounds what is posted, in bytes, and maxLogin what is by somebody whom nobody
	// knows.
	maxBody, maxLogin = 64 << 10, 4 << 10
	// streamsAtOnce is how many requests a browser has on one connection, and upload and
	// uploadAll what is read of one, and of all of them, before somebody asks for it. The
	// library would take 250 and a mebibyte, and frames of that size.
	streamsAtOnce, upload, uploadAll, maxFrame = 64, 32 << 10, 64 << 10, 16 << 10
	// strangersAtOnce is how many connections there are on which nobody is logged in: a stranger
	// holds 177 KiB by one of HTTP/2.
	strangersAtOnce = 256
	// idleTimeout ends a connection on which nothing is asked.
	idleTimeout = 2 * time.Minute
)

// Options are the settings of a Handler, and of a Protocol. The zero value of each
// field but Login is good.
type Options struct {
	// Login makes sessions. A Protocol has it from its listener, whatever is set here.
	Login fleetbus.Login
	// Prefix is the path that the handler is mounted under. Default: "/".
	Prefix string
	// VerifiedTLS says that whoever terminates TLS verified client certificates by the
	// authorities of the fleet, so that they log in. A Protocol's listener does.
	VerifiedTLS bool
	// Life is how long somebody stays logged in at most, and Idle how long without
	// looking. Default: 12h and 30m.
	Life, Idle time.Duration
	// Logger receives what an operator must know. Default: silent.
	Logger *slog.Logger
}

func (o *Options) complete() {
	if !strings.HasPrefix(o.Prefix, "/") {
		o.Prefix = "/" + o.Prefix
	}
	if !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	if o.Life <= 0 {
		o.Life = 12 * time.Hour
	}
	if o.Idle <= 0 {
		o.Idle = 30 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Protocol is the console as a protocol; it implements fleetbus.Protocol. The zero
// value is ready. It is safe for concurrent use.
type Protocol struct {
	// Options of the console. They must not change once Serve was called.
	Options Options

	made func(*Handler) // for tests
}

// ALPN are the application protocols that the listener is to offer: a browser has all
// of its streams on one connection of HTTP/2, and six at most in all else.
func (*Protocol) ALPN() []string { return []string{"h2", "http/1.1"} }

// LoginURL is the login link with that secret, to the console at addr. The secret is
// behind a #, which browsers send to nobody.
func (*Protocol) LoginURL(addr, secret string) string {
	return "https://" + addr + "/#login=" + secret
}

// Serve serves the browsers of ln until ctx is done.
func (p *Protocol) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	o := p.Options
	o.Login, o.VerifiedTLS, o.Prefix = login, true, "/"
	h := New(ctx, o)
	defer h.Close()
	h.room = strangers.For(ln, strangersAtOnce)
	if p.made != nil {
		p.made(h)
	}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: streamsAtOnce, MaxReceiveBufferPerStream: upload, MaxReceiveBufferPerConnection: uploadAll, MaxReadFrameSize: maxFrame,
		},
		BaseContext: func(net.Listener) context.Context { return ctx }, ConnState: h.room.Watch,
		// What the library says of strangers is said by the listener.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(ln)
	_ = srv.Close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serving the console: %w", err)
}

// A Handler is the console as a handler of HTTP requests: make one with New, mount it
// with http.ServeMux.Handle under Options.Prefix, and close it. It serves over TLS, or
// to browsers on the same machine. It is safe for concurrent use.
type Handler struct {
	opts   Options
	mux    *http.ServeMux
	guard  *http.CrossOriginProtection
	assets assets
	epoch  string // of this handler, which no other has

	visitors visitors
	guesses  guesses
	knocking knockers
	room     *strangers.Room // nil if the listener is not ours
	// returning is held while somebody is let in by a ticket.
	returning sync.Mutex
	feeds     feeds
	sources   map[string]source // by the name of the feed
	running   sync.WaitGroup
	ctx       context.Context
	stop      context.CancelFunc
}

// New returns a Handler, which ends with ctx. It opens nothing.
func New(ctx context.Context, o Options) *Handler {
	o.complete()
	h := &Handler{opts: o, mux: http.NewServeMux(), guard: http.NewCrossOriginProtection(), epoch: randomText(6)}
	h.ctx, h.stop = context.WithCancel(ctx)
	h.assets.load()
	h.sources = allSources()
	handle := func(pattern string, serve http.HandlerFunc) {
		method, path, _ := strings.Cut(pattern, " ")
		h.mux.Handle(method+" "+o.Prefix+path, serve)
	}
	handle("GET {$}", h.page)
	handle("GET ui/{file...}", h.asset)
	handle("POST api/login", h.logIn)
	handle("POST api/logout", h.with(h.logOut))
	handle("GET api/me", h.with(h.me))
	handle("GET api/live", h.with(h.live))
	handle("GET api/ask/{name}", h.with(h.ask))
	handle("POST api/do/{name}", h.with(h.do))
	h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "there is nothing here", "open "+o.Prefix)
	})
	return h
}

// Close ends all sessions, and returns when nothing of the handler runs any more.
func (h *Handler) Close() {
	h.stop()
	h.visitors.close("the node stops")
	h.running.Wait()
}

// policy is the content security policy: everything is of this origin, nothing is
// evaluated, and no text becomes markup.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// ServeHTTP serves one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	header.Set("Cache-Control", "no-store")
	if len(r.TransferEncoding) > 0 {
		// The library takes a length beside it away. Whoever is in between may have gone by
		// that, so that what comes behind is nobody's request (RFC 9112, 6.3).
		header.Set("Connection", "close")
	}
	if r.TLS != nil {
		header.Set("Strict-Transport-Security", "max-age=31536000")
	} else if !loopback(r) {
		refuse(w, http.StatusForbidden, "the console is not served in plain text", "open it over https")
		return
	}
	if err := h.guard.Check(r); err != nil || foreign(r) {
		refuse(w, http.StatusForbidden, "requests of other web pages are not taken", "open the console itself")
		return
	}
	h.mux.ServeHTTP(w, r)
}

// foreign reports whether a page of another origin asks for something of the API: it
// would be without a cookie, and need not learn even that.
func foreign(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return strings.Contains(r.URL.Path, "/api/") && site != "" && site != "same-origin" && site != "none"
}

func loopback(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// errNotHere says that there is no such question, or no such change.
var errNotHere = errors.New("there is no such thing to ask for")
