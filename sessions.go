package fleetbus

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/broker"
)

// A Session is the right of one principal to use the bus, and, once it is open, a
// connection to the engine that is bound to that principal: the engine enforces its
// permissions. The session is over when the principal expires, is denied or may do
// something else than before. Close it when the client is gone.
//
// Before Open it has no connection, and costs next to nothing: clients that only
// listen may be served by a connection of their account, see Account. What such a
// client may hear is for the Protocol to judge, by identity.Rule.Allows.
type Session struct {
	Principal identity.Principal
	// Conn is nil before Open.
	*nats.Conn

	server   *Server
	id       uint64
	raw      net.Conn // instead of Conn, after Raw
	listener string   // "" if a Protocol did not let it in
	remote   string
	started  time.Time
	counted  bool // among those that rest; their lock is held

	mu       sync.Mutex
	over     bool
	told     bool // that it began
	onClosed nats.ConnHandler
	expiry   *time.Timer
}

// Open connects the session to the engine, if it is not connected yet; opts are
// added to those of the server. It is not for several goroutines at once, and none
// may use Conn before.
func (s *Session) Open(opts ...nats.Option) error {
	if s.Conn != nil {
		return nil
	}
	nc, err := s.server.connect(s.Principal, append(opts, nats.ClosedHandler(func(nc *nats.Conn) { s.end(closedBy(nc)) }))...)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.Conn = nc
	over := s.over
	s.mu.Unlock()
	s.server.fleet.resting.wake(s)
	if over {
		nc.Close()
		return nats.ErrConnectionClosed
	}
	return nil
}

// leastRoom is how many bytes of disk are some room.
const leastRoom = 1 << 20

// Room reports whether this node's disk takes anything at all. While it does not, the engine
// must not be asked to remove messages from a stream: it cannot note that they are gone, and
// waits for itself until the node is started anew. It is safe for concurrent use.
func (s *Session) Room() bool {
	if s.server == nil {
		return true
	}
	free, ok := s.server.disk.Free()
	return !ok || free >= leastRoom
}

// SetClosedHandler has handler called when the session is over, with its
// connection, which may be nil, in a goroutine of its own. It is not called for
// what was over before: see IsClosed.
func (s *Session) SetClosedHandler(handler nats.ConnHandler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onClosed = handler
}

// IsClosed reports whether the session is over.
func (s *Session) IsClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// Close ends the session. It may be called again, by any goroutine.
func (s *Session) Close() { s.end(endedByClient) }

// Why a session is over, in the engine's words for its own connections.
const (
	endedByClient = "Client Closed"
	endedExpired  = "Authentication Expired"
	endedRevoked  = "Credentials Revoked"
	endedByEngine = "Kicked"
)

// closedBy is why a session's connection was closed, by all that it knows.
func closedBy(nc *nats.Conn) string {
	switch err := nc.LastError(); {
	case errors.Is(err, nats.ErrAuthExpired):
		return endedExpired
	case errors.Is(err, nats.ErrAuthRevoked):
		return endedRevoked
	}
	return endedByEngine
}

// tellConnect tells of a session that begins, unless it is over already.
func (s *Session) tellConnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.told = true
	s.server.events.Tell(admin.Event{
		Kind: admin.EventConnect, Account: s.Principal.Account, Principal: s.Principal.String(), Listener: s.listener, Address: s.remote,
	})
}

// tellDisconnect tells of the end of a session, with what the engine carried for it.
func (s *Session) tellDisconnect(reason string, nc *nats.Conn) {
	ev := admin.Event{
		Kind: admin.EventDisconnect, Account: s.Principal.Account, Principal: s.Principal.String(), Listener: s.listener, Address: s.remote,
		Reason: reason, Duration: time.Since(s.started),
	}
	if nc != nil {
		n := nc.Stats()
		ev.InMsgs, ev.InBytes = int64(n.OutMsgs), int64(n.OutBytes)
		ev.OutMsgs, ev.OutBytes = int64(n.InMsgs), int64(n.InBytes)
	}
	s.server.events.Tell(ev)
}

// end reports whether the session was not over before.
func (s *Session) end(reason string) bool {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		return false
	}
	s.over = true
	nc, raw, handler, told := s.Conn, s.raw, s.onClosed, s.told
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.mu.Unlock()
	if s.listener != "" {
		s.server.fleet.resting.remove(s)
	}
	if nc != nil {
		nc.Close()
	}
	if raw != nil {
		raw.Close()
		s.server.meter.Closed(s.Principal.Account)
	}
	if told {
		s.tellDisconnect(reason, nc)
	}
	if handler != nil {
		go handler(nc)
	}
	return true
}

// rests reports whether the engine does not know the session.
func (s *Session) rests() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Conn == nil && s.raw == nil && !s.over
}

// resting are the sessions that a Protocol let in. What the engine does with its
// connections when a right ends is done here with those that have none.
type resting struct {
	last atomic.Uint64
	mu   sync.Mutex
	all  map[*Session]struct{}
	// counts are how many rest, by account: the engine counts the others. users are how
	// many there are, resting or not, by account/name.
	counts, users map[string]int
}

// add watches over s from now on, unless most sessions of its account rest
// already.
func (r *resting) add(s *Session, most int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all, r.counts, r.users = map[*Session]struct{}{}, map[string]int{}, map[string]int{}
	}
	if r.counts[s.Principal.Account] >= most {
		return fmt.Errorf("letting in %q: %w", s.Principal, identity.ErrTooManyConnections)
	}
	s.id = r.last.Add(1)
	if !s.Principal.Expires.IsZero() {
		s.expiry = time.AfterFunc(time.Until(s.Principal.Expires), func() { s.end(endedExpired) })
	}
	r.all[s] = struct{}{}
	r.users[s.Principal.String()]++
	r.counts[s.Principal.Account]++
	s.counted = true
	return nil
}

// wake notes that the engine knows s, and counts it.
func (r *resting) wake(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uncount(s)
}

func (r *resting) remove(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.all[s]; ok {
		delete(r.all, s)
		full := s.Principal.String()
		if r.users[full]--; r.users[full] == 0 {
			delete(r.users, full)
		}
	}
	r.uncount(s)
}

// ofUsers counts the sessions of users of an account, by name.
func (r *resting) ofUsers(account string, names []string) map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	for _, name := range names {
		if n := r.users[account+"/"+name]; n > 0 {
			counts[name] = n
		}
	}
	return counts
}

// uncount counts s no more; mu is held.
func (r *resting) uncount(s *Session) {
	if !s.counted {
		return
	}
	s.counted = false
	if r.counts[s.Principal.Account]--; r.counts[s.Principal.Account] == 0 {
		delete(r.counts, s.Principal.Account)
	}
}

// perAccount counts those that rest, by account.
func (r *resting) perAccount() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.counts)
}

// count is how many of an account rest, or of all accounts if account is empty.
func (r *resting) count(account string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if account != "" {
		return r.counts[account]
	}
	n := 0
	for _, c := range r.counts {
		n += c
	}
	return n
}

// of lists those of an account that rest, or of all accounts if account is empty.
func (r *resting) of(account string) (some []*Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.all {
		if (account == "" || s.Principal.Account == account) && s.rests() {
			some = append(some, s)
		}
	}
	return some
}

// end ends those of an account whose names are wanted, and counts them.
func (r *resting) end(account string, wanted func(name string) bool) (closed int) {
	for _, s := range r.of(account) {
		if wanted(s.Principal.Name) && s.end(endedRevoked) {
			closed++
		}
	}
	return closed
}

// connection is how s is listed, beside those of the engine.
func (s *Session) connection(public string) broker.Connection {
	return broker.Connection{
		ID: s.id, Account: public, Name: s.Principal.Name, Session: true, Kind: s.listener, Remote: s.remote, Started: s.started,
	}
}
