// Package probe is the protocol by which a node is watched: HTTP, for Prometheus and for
// whoever restarts what does not answer.
//
//	GET /metrics    what the node counts and measures, in the text format of Prometheus
//	GET /livez      200 while the process answers, whatever else is wrong
//	GET /readyz     200 while the node can serve its listeners, else 503; ?verbose says why, ?exclude=NAME leaves a condition out
//	GET /startupz   200 once the node has started and knows what the fleet agrees on
//	GET /healthz    another name of /readyz
//
// The last four need no credentials and tell nothing of the fleet. Metrics need those of
// a user of the role metrics, or of an administrator: a client certificate, account/name
// with a password, or a bearer token. Without TLS, which is for loopback alone, they need
// none. A user of the role metrics of the fleet's own account sees everything, one of
// another account what is told of that.
package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
	"github.com/fleetbus/fleetbus/metrics"
)

const (
	// headerTimeout bounds the wait for a request, maxHeader its headers in bytes.
	headerTimeout, maxHeader = 5 * time.Second, 16 << 10
	// writeTimeout bounds a whole answer, and gatherTimeout what is gathered for it.
	writeTimeout, gatherTimeout = 15 * time.Second, 8 * time.Second
	// scrapesAtOnce bounds those under way: each may have a password to verify.
	scrapesAtOnce = 4
)

// Protocol is the protocol; it implements fleetbus.Protocol. The zero value is ready, for
// one server. It is safe for concurrent use.
type Protocol struct {
	node     atomic.Pointer[metrics.Node]
	busy     atomic.Int32
	failed   atomic.Bool // the last reload
	reloaded atomic.Int64
}

// Watch says which node is watched, before Serve.
func (p *Protocol) Watch(node metrics.Node) { p.node.Store(&node) }

// Reloaded notes a load of the node's configuration, for its metrics.
func (p *Protocol) Reloaded(at time.Time, err error) {
	p.failed.Store(err != nil)
	if err == nil {
		p.reloaded.Store(at.UnixMilli())
	}
}

// Loaded tells the protocols of o's listeners that its configuration was loaded now, or
// why it was not.
func Loaded(o fleetbus.Options, err error) {
	for _, l := range o.Listeners {
		if p, ok := l.Protocol.(*Protocol); ok {
			p.Reloaded(time.Now(), err)
		}
	}
}

// Metrics implements metrics.Source: the process, and the loads of its configuration.
func (p *Protocol) Metrics(context.Context) []metrics.Sample {
	all := process()
	if at := p.reloaded.Load(); at != 0 {
		successful := 1.0
		if p.failed.Load() {
			successful = 0
		}
		all = append(all, metrics.Of("fleetbus_config_last_reload_successful", successful),
			metrics.Of("fleetbus_config_last_reload_success_timestamp_seconds", float64(at)/1000))
	}
	return all
}

// Serve serves the clients of ln until ctx is done.
func (p *Protocol) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	node := p.node.Load()
	if node == nil {
		return errors.New("serving probes: nobody said of which node")
	}
	h := &handler{Protocol: p, node: *node, login: login, room: strangers.For(ln, strangers.Most)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", h.metrics)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", h.ready(nil))
	mux.HandleFunc("GET /healthz", h.ready(nil))
	mux.HandleFunc("GET /startupz", h.ready([]string{"started", "state"}))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusNotFound, "there is nothing here: GET /metrics, /livez, /readyz or /startupz\n")
	})
	srv := &http.Server{
		Handler: alone(mux), ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader,
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
	return fmt.Errorf("serving probes: %w", err)
}

type handler struct {
	*Protocol
	node  metrics.Node
	login fleetbus.Login
	room  *strangers.Room
}

// alone ends a connection after a request in chunks. The library takes a length beside them
// away; whoever is in between may have gone by that, so that what comes behind is nobody's
// request (RFC 9112, 6.3).
func alone(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, code int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text) // who asked may be gone
}

// ready answers with the conditions of those names, or with all that count.
func (h *handler) ready(names []string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		code, word := http.StatusOK, "ok"
		var lines strings.Builder
		for _, c := range h.node.Conditions() {
			matters := c.Counts && !slices.Contains(query["exclude"], c.Name) && (names == nil || slices.Contains(names, c.Name))
			mark := "ok  "
			switch {
			case c.Holds:
			case matters:
				mark = "FAIL"
				code, word = http.StatusServiceUnavailable, "not ready"
			default:
				mark = "note"
			}
			fmt.Fprintf(&lines, "%s %s", mark, c.Name)
			if c.Why != "" {
				fmt.Fprintf(&lines, ": %s", c.Why)
			}
			lines.WriteByte('\n')
		}
		text := word + "\n"
		if query.Has("verbose") {
			text = lines.String() + text
		}
		answer(w, code, text)
	}
}

func (h *handler) metrics(w http.ResponseWriter, r *http.Request) {
	if h.busy.Add(1) > scrapesAtOnce {
		h.busy.Add(-1)
		answer(w, http.StatusServiceUnavailable, "too many ask for metrics at once\n")
		return
	}
	defer h.busy.Add(-1)
	ctx, cancel := context.WithTimeout(r.Context(), gatherTimeout)
	defer cancel()
	account, ok := h.sees(ctx, w, r)
	if !ok {
		return
	}
	defer h.room.Known(r.RemoteAddr)()
	samples := h.node.Metrics(ctx)
	if account != "" {
		samples = Of(account, samples)
	}
	var text bytes.Buffer
	if err := metrics.Write(&text, samples); err != nil {
		answer(w, http.StatusInternalServerError, err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", metrics.ContentType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(text.Bytes()) // who asked may be gone
}

// sees says of which account whoever asks sees the metrics, all if it is empty, or
// answers that it sees none.
func (h *handler) sees(ctx context.Context, w http.ResponseWriter, r *http.Request) (account string, ok bool) {
	if r.TLS == nil {
		return "", true // the listener is on loopback
	}
	user, password, _ := r.BasicAuth()
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !identity.IsBearer(bearer) {
		bearer = ""
	}
	session, err := h.login(ctx, identity.Credentials{TLS: r.TLS, Username: user, Password: password, Bearer: bearer, Remote: r.RemoteAddr})
	if errors.Is(err, identity.ErrUnauthorized) {
		w.Header().Set("WWW-Authenticate", `Basic realm="fleetbus"`)
		answer(w, http.StatusUnauthorized, err.Error()+": show a client certificate or a bearer token, or log in as account/name with a password\n")
		return "", false
	}
	if err != nil {
		answer(w, http.StatusServiceUnavailable, "nobody can log in now: try again\n")
		return "", false
	}
	defer session.Close()
	switch p := session.Principal; {
	case p.Account == identity.FleetName && (p.Role == identity.RoleAdmin || p.Role == identity.RoleMetrics):
		return "", true
	case p.Role == identity.RoleMetrics:
		return p.Account, true
	}
	answer(w, http.StatusForbidden, "metrics are for users of the role metrics: fleetbus user add ACCOUNT/NAME --role metrics\n")
	return "", false
}

// Of are those of samples that are of an account, and of no other.
func Of(account string, samples []metrics.Sample) []metrics.Sample {
	at := map[string]int{}
	for _, f := range metrics.Families() {
		at[f.Name] = slices.Index(f.Labels, "account")
	}
	return slices.DeleteFunc(samples, func(s metrics.Sample) bool {
		i, known := at[s.Name]
		return !known || i < 0 || i >= len(s.Labels) || s.Labels[i] != account
	})
}
