// Package sse is the protocol by which anything that speaks HTTPS hears of
// changes, as server-sent events, and announces them.
//
//	GET  /changes/SOURCE?pattern=PATTERN   a stream of notices
//	POST /changes/SOURCE                   announce one: {"key":"customers.42","kind":"update","version":7}
//
// A client is known by its certificate, or by user (account/name) and password.
// It may hear and announce what its permissions allow over NATS: to hear, it
// subscribes to change.SOURCE and below, and to announce, it publishes there and
// to announced.SOURCE and below; both ask the stream CHANGES.
//
// The first event of every stream is a resync, so that a client that comes back
// needs no Last-Event-ID. A reader that is slow is told of fewer, later changes.
package sse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

const (
	// headerTimeout bounds the wait for a request, maxHeader its headers in bytes.
	headerTimeout, maxHeader = 10 * time.Second, 16 << 10
	// maxBody bounds what is posted, in bytes.
	maxBody = 1 << 10
	// beat is how often a silent stream shows that it is alive, and writeTimeout
	// how long a client may take to read.
	beat, writeTimeout = 15 * time.Second, 30 * time.Second
	// setupTimeout bounds the login and the first look at the history.
	setupTimeout = 10 * time.Second
	// streamsEach is how many streams a principal may have on a node.
	streamsEach = 256
)

// Protocol is the protocol; it implements fleetbus.Protocol. The zero value is
// ready. It is safe for concurrent use.
type Protocol struct {
	mu      sync.Mutex
	streams map[string]int
}

// Serve serves the clients of ln until ctx is done.
func (p *Protocol) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	h := &handler{Protocol: p, login: login, room: strangers.For(ln, strangers.Most)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /changes/{source}", h.with(h.watch))
	mux.HandleFunc("POST /changes/{source}", h.with(h.announce))
	// The library takes HEAD for GET, and would hold a stream that nobody reads.
	for _, others := range []string{"HEAD /changes/{source}", "/changes/{source}"} {
		mux.HandleFunc(others, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", "GET, POST")
			refuse(w, http.StatusMethodNotAllowed, "the method is not known here", "GET or POST /changes/SOURCE")
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "there is nothing here", "GET or POST /changes/SOURCE")
	})
	srv := &http.Server{
		Handler: guarded(mux), ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: maxHeader,
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
	return fmt.Errorf("serving server-sent events: %w", err)
}

type handler struct {
	*Protocol
	login fleetbus.Login
	room  *strangers.Room
}

// guarded has every answer of next tell a browser that it is no page.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		if len(r.TransferEncoding) > 0 {
			// The library takes a length beside it away. Whoever is in between may have gone
			// by that, so that what comes behind is nobody's request (RFC 9112, 6.3).
			header.Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// refusal is the body of every answer that is none.
type refusal struct {
	Error string `json:"error"`
	Fix   string `json:"fix,omitempty"`
}

func refuse(w http.ResponseWriter, code int, what, fix string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(refusal{what, fix})
}

// with logs the client of a request in, and calls do with its session.
func (h *handler) with(do func(http.ResponseWriter, *http.Request, *fleetbus.Session)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if origin := r.Header.Get("Origin"); origin != "" && r.Method != http.MethodGet {
			// A browser sends a page's request with the user's certificate.
			refuse(w, http.StatusForbidden, "requests of web pages are not taken", "announce from a program")
			return
		}
		user, password, _ := r.BasicAuth()
		ctx, cancel := context.WithTimeout(r.Context(), setupTimeout)
		defer cancel()
		bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !identity.IsBearer(bearer) {
			bearer = ""
		}
		session, err := h.login(ctx, identity.Credentials{TLS: r.TLS, Username: user, Password: password, Bearer: bearer, Remote: r.RemoteAddr})
		if errors.Is(err, identity.ErrUnauthorized) {
			w.Header().Set("WWW-Authenticate", `Basic realm="fleetbus"`)
			refuse(w, http.StatusUnauthorized, err.Error(), "show a client certificate or a bearer token, or log in as account/name with a password")
			return
		}
		if errors.Is(err, identity.ErrTooManyConnections) {
			refuse(w, http.StatusServiceUnavailable, identity.ErrTooManyConnections.Error(), "try again later, or raise the account's limit of connections")
			return
		}
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, "there is no session for you now", "try again, or another node")
			return
		}
		defer session.Close()
		defer h.room.Known(r.RemoteAddr)()
		if err := session.Open(); err != nil {
			refuse(w, http.StatusServiceUnavailable, "there is no session for you now", "try again, or another node")
			return
		}
		do(w, r, session)
	}
}

// event is a notice as clients get it.
type event struct {
	Source  string        `json:"source"`
	Key     string        `json:"key"`
	Kind    change.Kind   `json:"kind"`
	Version uint64        `json:"version,omitempty"`
	Epoch   string        `json:"epoch,omitempty"`
	Origin  string        `json:"origin,omitempty"`
	Time    time.Time     `json:"time,omitzero"`
	Reason  change.Reason `json:"reason,omitempty"`
}

// enter counts a stream of a principal; false if it has too many.
func (p *Protocol) enter(who string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams == nil {
		p.streams = map[string]int{}
	}
	if p.streams[who] >= streamsEach {
		return false
	}
	p.streams[who]++
	return true
}

func (p *Protocol) leave(who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams[who]--; p.streams[who] == 0 {
		delete(p.streams, who)
	}
}

func (h *handler) watch(w http.ResponseWriter, r *http.Request, session *fleetbus.Session) {
	who := session.Principal.String()
	if !h.enter(who) {
		refuse(w, http.StatusTooManyRequests, fmt.Sprintf("you have %d streams on this node", streamsEach), "close some, or watch a wider pattern")
		return
	}
	defer h.leave(who)
	setup, cancel := until(r.Context(), session)
	watcher, err := change.NewWatcher(setup, session.Conn, r.PathValue("source"), r.URL.Query().Get("pattern"), change.WatcherOptions{})
	cancel()
	if err == nil && denied(session.Conn) {
		watcher.Close()
		err = nats.ErrPermissionViolation
	}
	if err != nil {
		h.failed(w, session, err)
		return
	}
	defer watcher.Close()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	for {
		ctx, cancel := context.WithTimeout(r.Context(), beat)
		n, err := watcher.Next(ctx)
		silent := ctx.Err() != nil && r.Context().Err() == nil
		cancel()
		var text []byte
		switch {
		case err == nil:
			text = format(n)
		case silent:
			text = []byte(": still here\n\n")
		default:
			return
		}
		if control.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
			return
		}
		if _, err := w.Write(text); err != nil || control.Flush() != nil {
			return
		}
	}
}

func format(n change.Notice) []byte {
	data, err := json.Marshal(event{n.Source, n.Key.String(), n.Kind, n.Version, n.Epoch, n.Origin, n.Time, n.Reason})
	if err != nil {
		return nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\nid: %s/%d\ndata: %s\n\n", n.Kind, n.Epoch, n.Version, data)
	return b.Bytes()
}

// until is ctx for the time that a session's first requests may take. It ends at
// once when the engine refuses something to the session, which else is a silence.
func until(ctx context.Context, session *fleetbus.Session) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	before := session.ErrorHandler()
	session.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if errors.Is(err, nats.ErrPermissionViolation) {
			cancel()
		}
		if before != nil {
			before(nc, sub, err)
		}
	})
	return ctx, cancel
}

// denied reports whether the engine refused something to the session.
func denied(nc *nats.Conn) bool { return errors.Is(nc.LastError(), nats.ErrPermissionViolation) }

// failed tells why there is no stream, or no announcement.
func (h *handler) failed(w http.ResponseWriter, session *fleetbus.Session, err error) {
	switch {
	case denied(session.Conn) || errors.Is(err, nats.ErrPermissionViolation):
		refuse(w, http.StatusForbidden, "your permissions do not allow it", "ask for a role that may use change.SOURCE, announced.SOURCE and the stream "+change.History)
	case errors.Is(err, change.ErrSecret), errors.Is(err, change.ErrInvalid), errors.Is(err, change.ErrPattern):
		refuse(w, http.StatusBadRequest, err.Error(), "see the documentation of changes")
	default:
		refuse(w, http.StatusServiceUnavailable, "the history of changes does not answer", "try again, or another node")
	}
}

// posted is what is announced.
type posted struct {
	Key     string      `json:"key"`
	Kind    change.Kind `json:"kind"`
	Version uint64      `json:"version"`
	Epoch   string      `json:"epoch"`
}

// decode reads the body of a POST.
func decode(body io.Reader) (change.Notice, error) {
	data, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var in posted
	err = errors.Join(err, d.Decode(&in))
	if _, after := d.Token(); err != nil || len(data) > maxBody || after != io.EOF {
		return change.Notice{}, fmt.Errorf("%w: the body is not JSON of key, kind, version and epoch, in %d bytes at most", change.ErrInvalid, maxBody)
	}
	key, err := change.ParseKey(in.Key)
	if err != nil {
		return change.Notice{}, fmt.Errorf("%w: %w", change.ErrInvalid, err)
	}
	return change.Notice{Key: key, Kind: change.Kind(strings.ToLower(string(in.Kind))), Version: in.Version, Epoch: in.Epoch}, nil
}

func (h *handler) announce(w http.ResponseWriter, r *http.Request, session *fleetbus.Session) {
	n, err := decode(r.Body)
	if err == nil {
		ctx, cancel := until(r.Context(), session)
		defer cancel()
		err = change.Announce(ctx, session.Conn, r.PathValue("source"), n)
	}
	if err != nil {
		h.failed(w, session, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
