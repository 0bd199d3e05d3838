package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// view is how a link stands, for people.
type view struct {
	server server
	since  time.Time // connected; zero: it is not
	err    error     // why it is not, or why the hub takes nothing
	ended  time.Time // when the hub ended the last connection without a word
	taken  []time.Time
	queued uint64
	full   bool

	sent, received, dropped, repeats, tooLarge, lost uint64

	run *run
}

// takenOver is how often, within takenWithin, somebody else has to take the session
// over before it is a finding. Some brokers do not say so, and end the connection; who
// is back within takenSoon and finds the session there was taken over.
const (
	takenOver   = 3
	takenWithin = 5 * time.Minute
	takenSoon   = 10 * time.Second
)

func (v *view) takeOver() {
	v.taken = append(slices.DeleteFunc(v.taken, func(t time.Time) bool { return time.Since(t) > takenWithin }), time.Now())
}

func (l *Link) count(change func(*view)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.view)
}

func (r *run) connected(server server, c *conn) {
	r.count(func(v *view) {
		v.server, v.since, v.err, v.run = server, time.Now(), nil, r
		if c.connack.SessionPresent && time.Since(v.ended) < takenSoon {
			v.takeOver()
		}
	})
}

// disconnected notes and tells why there is no connection.
func (r *run) disconnected(err error) {
	var e *Error
	r.mu.Lock()
	r.since = time.Time{}
	r.mu.Unlock()
	r.Link.mu.Lock()
	before, was := r.view.err, !r.view.since.IsZero()
	r.view.since, r.view.run = time.Time{}, r
	if err != nil {
		r.view.err = err
	}
	if errors.As(err, &e) && e.Code == packet.SessionTakenOver {
		r.view.takeOver()
	} else if was && errors.Is(err, io.EOF) {
		r.view.ended = time.Now()
	}
	r.Link.mu.Unlock()
	if err != nil && (was || before == nil || before.Error() != err.Error()) {
		r.log.Warn("hub is not connected", "error", err)
	}
}

// refused notes and tells that the hub takes nothing.
func (s *session) refused(err *Error) {
	s.log.Warn("hub refuses a message, which is offered again", "error", err)
	s.count(func(v *view) { v.err = err })
}

// accepted notes that the hub takes messages again.
func (s *session) accepted() {
	s.count(func(v *view) {
		if e, ok := v.err.(*Error); ok && e.Step == StepPublish {
			v.err = nil
		}
	})
}

func (r *run) queued(state jetstream.StreamState, done uint64) {
	r.count(func(v *view) {
		v.queued = state.LastSeq - min(done, state.LastSeq)
		v.full = state.Bytes > uint64(r.o.Queue)/10*9
	})
}

// Hub is how the link stands.
func (l *Link) Hub() admin.Hub {
	l.mu.Lock()
	v := l.view
	l.mu.Unlock()
	h := admin.Hub{
		Account: l.o.Account, Prefix: l.o.Prefix, Server: v.server.url, State: admin.HubNotConnected, Since: v.since, Peers: []admin.HubPeer{},
		Queued: v.queued, Sent: v.sent, Received: v.received, Dropped: v.dropped, Repeats: v.repeats, Lost: v.lost,
	}
	if h.Server == "" {
		h.Server = l.o.Servers[0]
	}
	if v.err != nil {
		h.Error = v.err.Error()
	}
	if !v.since.IsZero() {
		h.State = admin.HubConnected
	}
	if v.run == nil {
		return h
	}
	v.run.mu.Lock()
	defer v.run.mu.Unlock()
	for origin, p := range v.run.record.Peers {
		peer := admin.HubPeer{Node: nodeOf(origin), State: admin.HubNotConnected, Heard: p.Heard}
		switch {
		case v.since.IsZero() || time.Since(v.since) < gone && time.Since(p.Heard) > gone:
			peer.State = admin.HubUnknown // who is deaf cannot tell
		case time.Since(p.Heard) < gone:
			peer.State = admin.HubConnected
		}
		h.Peers = append(h.Peers, peer)
	}
	slices.SortFunc(h.Peers, func(a, b admin.HubPeer) int { return strings.Compare(a.Node, b.Node) })
	return h
}

// Check lists what is wrong with the link.
func (l *Link) Check(context.Context) []doctor.Finding {
	l.mu.Lock()
	v := l.view
	l.mu.Unlock()
	var all []doctor.Finding
	add := func(code string, severity doctor.Severity, fix, format string, args ...any) {
		all = append(all, doctor.Finding{Code: code, Severity: severity, Subject: "hub " + l.o.Account, Text: fmt.Sprintf(format, args...), Fix: fix})
	}
	var e *Error
	fix := "look at the log of this node and of the hub"
	if errors.As(v.err, &e) {
		fix = e.Fix
	}
	switch {
	case v.since.IsZero() && v.err != nil:
		add("HUB-NOT-CONNECTED", doctor.Problem, fix, "the hub is not connected, and %d messages wait: %v", v.queued, v.err)
	case v.err != nil:
		add("HUB-REFUSES", doctor.Problem, fix, "%v; %d messages wait", v.err, v.queued)
	}
	taken := slices.DeleteFunc(slices.Clone(v.taken), func(t time.Time) bool { return time.Since(t) > takenWithin })
	if len(taken) >= takenOver {
		add("HUB-CLIENT-ID-TWICE", doctor.Problem, "give every node a name of its own, or set hub.client_id", "another client of the hub seems to have the identifier %q, too: the two disconnect each other", l.o.ClientID)
	}
	if v.full {
		add("HUB-QUEUE-FULL", doctor.Problem, "bring the hub back, or raise hub.queue", "nine tenths of the hub's queue are full: what is published will be refused")
	}
	if v.lost > 0 {
		add("HUB-LOST", doctor.Warning, "raise hub.session_expiry and hub.queue on the other nodes", "%d times messages were gone before this node had them", v.lost)
	}
	if v.tooLarge > 0 {
		add("HUB-TOO-LARGE", doctor.Warning, "raise the hub's limit of a packet, or limits.payload", "%d messages were larger than the hub or this node takes", v.tooLarge)
	}
	for _, s := range l.servers {
		if !s.tls && !isLoopback(s.host) {
			add("HUB-PLAINTEXT", doctor.Warning, "use mqtts:// in hub.servers", "the way to the hub at %s is without TLS", s.addr)
			break
		}
	}
	return all
}
