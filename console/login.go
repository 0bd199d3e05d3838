package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

const (
	// visitorsAll and visitorsEach bound who is logged in, on a node and of one
	// principal. One more ends the one that looked least lately.
	visitorsAll, visitorsEach = 4096, 256
	// loginTimeout bounds one login.
	loginTimeout = 10 * time.Second
	// sweepEvery is how often those are looked for who are idle.
	sweepEvery = 5 * time.Second
	// ticketLife is how long a ticket is good at most.
	ticketLife = 15 * time.Minute
)

func randomText(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // it never fails
	return base64.RawURLEncoding.EncodeToString(b)
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

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// decode reads what was posted.
func decode(w http.ResponseWriter, r *http.Request, most int64, in any) error {
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); kind != "application/json" {
		return errors.New("the body is not JSON")
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, most))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil {
		return fmt.Errorf("the body cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the body")
	}
	return nil
}

// A visitor is somebody who is logged in, in one browser.
type visitor struct {
	*fleetbus.Session
	rights  string // equal for those who may do the same
	created time.Time
	ends    time.Time
	over    chan struct{} // closed at the end, when why is set

	mu      sync.Mutex
	seen    time.Time
	streams int
	why     string
	ended   bool
}

// end ends the visitor's session; only the first reason counts.
func (v *visitor) end(why string) {
	v.mu.Lock()
	first := !v.ended
	if first {
		v.ended, v.why = true, why
		close(v.over)
	}
	v.mu.Unlock()
	if first {
		v.Close()
	}
}

// look counts a stream that the visitor looks at, by 1 or -1.
func (v *visitor) look(change int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.streams += change
	v.seen = time.Now()
}

func (v *visitor) touch() { v.look(0) }

// idle is since when the visitor has not looked; false if it does.
func (v *visitor) idle() (since time.Time, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.seen, v.streams == 0
}

// visitors are those who are logged in, by the hash of what their cookie holds.
type visitors struct {
	mu     sync.Mutex
	all    map[[sha256.Size]byte]*visitor
	closed bool
	sweep  bool // is running
	// ended are those whose ticket is good for nothing any more, until when: who was
	// logged out does not come back by it.
	ended map[[sha256.Size]byte]time.Time
}

func (s *visitors) find(token string) *visitor {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.all[sha256.Sum256([]byte(token))]
	if v == nil || v.IsClosed() || !time.Now().Before(v.ends) {
		return nil
	}
	return v
}

// add lets v in, whose cookie holds token; false if all is over.
func (s *visitors) add(v *visitor, token string) bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	if s.all == nil {
		s.all = map[[sha256.Size]byte]*visitor{}
	}
	who, same := v.Principal.String(), 0
	for _, other := range s.all {
		if other.Principal.String() == who {
			same++
		}
	}
	var longest *visitor
	if mine := same >= visitorsEach; mine || len(s.all) >= visitorsAll {
		var since time.Time
		for _, other := range s.all {
			if mine && other.Principal.String() != who {
				continue
			}
			if at, _ := other.idle(); longest == nil || at.Before(since) {
				longest, since = other, at
			}
		}
	}
	s.all[sha256.Sum256([]byte(token))] = v
	s.mu.Unlock()
	if longest != nil {
		longest.end("somebody else logged in, and there were too many")
	}
	return true
}

func (s *visitors) remove(v *visitor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for key, until := range s.ended {
		if now.After(until) {
			delete(s.ended, key)
		}
	}
	for key, other := range s.all {
		if other == v {
			delete(s.all, key)
			if s.ended == nil {
				s.ended = map[[sha256.Size]byte]time.Time{}
			}
			s.ended[key] = now.Add(ticketLife)
		}
	}
}

// returns reports whether a ticket beside that token may still be good.
func (s *visitors) returns(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ended := s.ended[sha256.Sum256([]byte(token))]
	return !ended && !s.closed
}

func (s *visitors) each() []*visitor {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*visitor, 0, len(s.all))
	for _, v := range s.all {
		all = append(all, v)
	}
	return all
}

func (s *visitors) close(why string) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, v := range s.each() {
		v.end(why)
	}
}

// sweepIdle ends who is idle or has been here long enough, until nobody is here.
func (h *Handler) sweepIdle() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case now := <-tick.C:
			for _, v := range h.visitors.each() {
				since, idle := v.idle()
				switch {
				case !now.Before(v.ends):
					v.end("your time is over: log in again")
				case idle && now.Sub(since) > h.opts.Idle:
					v.end("you did not look for " + h.opts.Idle.String() + ": log in again")
				}
			}
		}
		h.visitors.mu.Lock()
		if len(h.visitors.all) == 0 {
			h.visitors.sweep = false
			h.visitors.mu.Unlock()
			return
		}
		h.visitors.mu.Unlock()
	}
}

// cookieName is the name of the cookie: browsers keep those of all ports of a host
// together, and several nodes may be on one.
func (h *Handler) cookieName(r *http.Request) string {
	prefix := "__Secure-"
	if h.opts.Prefix == "/" {
		prefix = "__Host-"
	}
	_, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		port = "443"
	}
	return prefix + "fleetbus-" + port
}

func (h *Handler) cookie(r *http.Request, value string, age time.Duration) *http.Cookie {
	c := &http.Cookie{
		Name: h.cookieName(r), Value: value, Path: h.opts.Prefix, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		MaxAge: int(age / time.Second),
	}
	if age <= 0 {
		c.MaxAge = -1
	}
	return c
}

// with finds who asks, and calls do.
func (h *Handler) with(do func(http.ResponseWriter, *http.Request, *visitor)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var v *visitor
		if c, err := r.Cookie(h.cookieName(r)); err == nil {
			if v = h.visitors.find(tokenOf(c.Value)); v == nil {
				v = h.again(r, c.Value)
			}
		}
		if v == nil {
			refuse(w, http.StatusUnauthorized, "you are not logged in", "log in")
			return
		}
		v.touch()
		defer h.room.Known(r.RemoteAddr)()
		do(w, r, v)
	}
}

// loginRequest is what a browser presents; nothing is a client certificate.
type loginRequest struct {
	Link     string `json:"link"`
	User     string `json:"user"`
	Password string `json:"password"`
}

func (h *Handler) logIn(w http.ResponseWriter, r *http.Request) {
	leave, ok := h.knocking.enter(r.RemoteAddr)
	if !ok {
		refuse(w, http.StatusTooManyRequests, "too many log in at once", "try again")
		return
	}
	defer leave()
	var in loginRequest
	if err := decode(w, r, maxLogin, &in); err != nil {
		refuse(w, http.StatusBadRequest, err.Error(), "use the page")
		return
	}
	c := identity.Credentials{Username: in.User, Password: in.Password, Link: in.Link, Remote: r.RemoteAddr}
	if h.opts.VerifiedTLS && in.User == "" && in.Link == "" {
		c.TLS = r.TLS
	}
	wait, tell, done := h.guesses.begin(r.RemoteAddr, in.User, time.Now())
	if tell {
		h.opts.Logger.Warn("too many logins to the console failed", "remote", strangers.Network(r.RemoteAddr), "principal", in.User[:min(len(in.User), 100)])
	}
	if wait > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(wait/time.Second)+1))
		refuse(w, http.StatusTooManyRequests, "too many logins failed", fmt.Sprintf("try again in %d s, or use a login link: fleetbus console login", int(wait/time.Second)+1))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), loginTimeout)
	defer cancel()
	v, err := h.enter(ctx, c)
	done(errors.Is(err, identity.ErrUnauthorized))
	switch {
	case errors.Is(err, identity.ErrUnauthorized):
		refuse(w, http.StatusUnauthorized, "you were not let in", "use a login link that is new, a client certificate, or account/name and its password; the node's log says why")
		return
	case errors.Is(err, identity.ErrTooManyConnections):
		refuse(w, http.StatusServiceUnavailable, identity.ErrTooManyConnections.Error(), "try again later, or raise the limit of connections")
		return
	case err != nil:
		h.opts.Logger.Warn("somebody could not be logged in", "remote", r.RemoteAddr, "error", err)
		refuse(w, http.StatusServiceUnavailable, "there is no session for you now", "try again, or another node")
		return
	}
	defer h.room.Known(r.RemoteAddr)()
	token := randomText(32)
	if !h.visitors.add(v, token) {
		v.end("the node stops")
		refuse(w, http.StatusServiceUnavailable, "the node stops", "try another node")
		return
	}
	h.watchOver(v)
	if old, err := r.Cookie(h.cookieName(r)); err == nil {
		// Who logs in again is somebody else from now on.
		if before := h.visitors.find(tokenOf(old.Value)); before != nil {
			before.end("you logged in again")
		}
	}
	h.setCookie(w, r, v, token)
	answer(w, h.describe(v))
}

// setCookie gives a browser what it logs in with from now on: a token that this
// handler knows, and a ticket for the one that follows when the node is started anew.
func (h *Handler) setCookie(w http.ResponseWriter, r *http.Request, v *visitor, token string) {
	http.SetCookie(w, h.cookie(r, token+"."+v.Ticket(v.ends), time.Until(v.ends)))
}

func tokenOf(cookie string) string {
	token, _, _ := strings.Cut(cookie, ".")
	return token
}

// again finds who has a token that is not known here, by the ticket beside it.
func (h *Handler) again(r *http.Request, cookie string) *visitor {
	token, ticket, ok := strings.Cut(cookie, ".")
	if !ok || ticket == "" || len(token) < 40 || !h.visitors.returns(token) {
		return nil
	}
	// A page asks for several things at once, and is one visitor.
	h.returning.Lock()
	defer h.returning.Unlock()
	if v := h.visitors.find(token); v != nil {
		return v
	}
	wait, _, done := h.guesses.begin(r.RemoteAddr, "", time.Now())
	if wait > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), loginTimeout)
	defer cancel()
	v, err := h.enter(ctx, identity.Credentials{Link: ticket, Remote: r.RemoteAddr})
	done(errors.Is(err, identity.ErrUnauthorized))
	if err != nil {
		return nil
	}
	if !h.visitors.add(v, token) {
		v.end("the node stops")
		return nil
	}
	h.watchOver(v)
	return v
}

// enter makes the session of who presented c.
func (h *Handler) enter(ctx context.Context, c identity.Credentials) (*visitor, error) {
	session, err := h.opts.Login(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := session.Open(); err != nil {
		session.Close()
		return nil, err
	}
	now := time.Now()
	v := &visitor{Session: session, rights: rightsOf(session.Principal), created: now, seen: now, ends: now.Add(h.opts.Life), over: make(chan struct{})}
	if e := session.Principal.Expires; !e.IsZero() && e.Before(v.ends) {
		v.ends = e
	}
	return v, nil
}

// watchOver ends the visitor with the session, whoever ends it.
func (h *Handler) watchOver(v *visitor) {
	ended := make(chan struct{})
	var once sync.Once
	v.SetClosedHandler(func(*nats.Conn) { once.Do(func() { close(ended) }) })
	if v.IsClosed() {
		once.Do(func() { close(ended) })
	}
	h.visitors.mu.Lock()
	sweep := !h.visitors.sweep && !h.visitors.closed
	h.visitors.sweep = h.visitors.sweep || sweep
	h.visitors.mu.Unlock()
	if sweep {
		h.running.Go(h.sweepIdle)
	}
	h.running.Go(func() {
		select {
		case <-ended:
			why := "your session was ended: your rights were taken away or changed, or the node stops"
			if !v.Principal.Expires.IsZero() && !time.Now().Before(v.Principal.Expires) {
				why = "your credentials have expired: log in again"
			}
			v.end(why)
		case <-v.over:
		}
		h.visitors.remove(v)
	})
}

func (h *Handler) logOut(w http.ResponseWriter, r *http.Request, v *visitor) {
	v.end("you logged out")
	http.SetCookie(w, h.cookie(r, "", 0))
	w.WriteHeader(http.StatusNoContent)
}

// knockersAll and knockersEach are how many requests to log in may be under way, and on one
// connection: they are strangers', who may be slow, and each has headers and a goroutine.
const (
	knockersAll, knockersEach = 256, 2
)

// knockers are those who are logging in, by where they come from.
type knockers struct {
	mu   sync.Mutex
	all  int
	each map[string]int
}

// enter counts one more, until leave; false if there are too many.
func (k *knockers) enter(remote string) (leave func(), ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all >= knockersAll || k.each[remote] >= knockersEach {
		return nil, false
	}
	if k.each == nil {
		k.each = map[string]int{}
	}
	k.all++
	k.each[remote]++
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.all--
		if k.each[remote]--; k.each[remote] == 0 {
			delete(k.each, remote)
		}
	}, true
}

// guesses bounds how often somebody may guess. Who succeeds has not guessed.
type guesses struct {
	mu  sync.Mutex
	all map[string]*guesser
}

// A guesser is one network, or one user as seen from one network.
type guesser struct {
	failed float64 // less one each guessRest
	at     time.Time
	told   time.Time // when the operator was told of it
}

const (
	// guessesFree is how many logins of a network, or of a user from it, may fail
	// before others have to wait, and guessRest how long until there is one more.
	guessesFree, guessRest = 8, 15 * time.Second
	// guessersMost bounds who is remembered.
	guessersMost = 8192
	// guessTold is how often the operator is told of one who goes on.
	guessTold = time.Minute
)

// begin says how long whoever logs in has to wait, and whether the operator is to be told
// of it; if it is 0, done has to be told
// whether the login failed. A login that is under way counts as failed, so that none
// gain by many at once.
func (g *guesses) begin(remote, user string, now time.Time) (wait time.Duration, tell bool, done func(failed bool)) {
	keys := []string{strangers.Network(remote)}
	if user != "" {
		keys = append(keys, keys[0]+" "+user)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == nil {
		g.all = map[string]*guesser{}
	}
	for _, key := range keys {
		one := g.all[key]
		if one == nil {
			continue
		}
		one.failed = max(0, one.failed-float64(now.Sub(one.at))/float64(guessRest))
		one.at = now
		if one.failed > guessesFree-1 {
			tell = tell || now.Sub(one.told) >= guessTold
			if tell {
				one.told = now
			}
			wait = max(wait, time.Duration((one.failed-guessesFree+1)*float64(guessRest)))
		}
	}
	if wait > 0 {
		return wait, tell, nil
	}
	for _, key := range keys {
		if g.all[key] == nil {
			g.forget(now)
			g.all[key] = &guesser{at: now}
		}
		g.all[key].failed++
	}
	return 0, false, func(failed bool) {
		if failed {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, key := range keys {
			if one := g.all[key]; one != nil {
				one.failed = max(0, one.failed-1)
			}
		}
	}
}

// forget makes room for one more.
func (g *guesses) forget(now time.Time) {
	if len(g.all) < guessersMost {
		return
	}
	for key, one := range g.all {
		if one.failed-float64(now.Sub(one.at))/float64(guessRest) <= 0 {
			delete(g.all, key)
		}
	}
	for key := range g.all {
		if len(g.all) < guessersMost {
			return
		}
		delete(g.all, key)
	}
}
