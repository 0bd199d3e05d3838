package mqtt

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// liveQueue is how many messages of the engine wait until a node has handed them
// to its clients. What is more is dropped, as QoS 0 may be.
const liveQueue = 64 << 10

// live hands what the engine delivers to the account's connection to the sessions
// on this node. The engine is asked once for each filter, however many clients
// have it, and delivers a message once for all of them.
type live struct {
	// conn hears for all of them. It does not hear what it publishes.
	conn *fleetbus.Session
	msgs chan *nats.Msg

	mu        sync.Mutex
	low       tree[*session] // who hears at QoS 0, and that is also what is stored
	interests map[string]*interest
	subs      map[*nats.Subscription]*interest
}

// interest is that of the sessions on this node in what one filter takes, or, of a
// shared subscription, that of one session.
type interest struct {
	filter   string
	key      string // what the sessions call it
	subs     []*nats.Subscription
	known    bool       // to the engine
	sessions []*session // replaced, never changed
}

func (l *live) init() {
	l.msgs = make(chan *nats.Msg, liveQueue)
	l.interests, l.subs = map[string]*interest{}, map[*nats.Subscription]*interest{}
}

// place is where an interest is found: a shared subscription is each session's own,
// so that the engine can choose among them.
func (s *session) place(key string) string {
	if strings.HasPrefix(key, "$share/") {
		return s.key + " " + key
	}
	return key
}

// want has s hear what filter takes, under the name key. The engine knows of it
// after listen.
func (a *account) want(s *session, key, filter string, wanted *subscription) error {
	l, group := &a.live, wanted.Group
	l.mu.Lock()
	defer l.mu.Unlock()
	if group == "" && wanted.QoS == 0 {
		l.low.add(filter, s)
	} else {
		l.low.remove(key, s)
	}
	place := s.place(key)
	i := l.interests[place]
	if i == nil {
		i = &interest{filter: filter, key: key}
		for _, subject := range subjectsOf(filter) {
			var sub *nats.Subscription
			var err error
			if group == "" {
				sub, err = l.conn.ChanSubscribe(subject, l.msgs)
			} else {
				sub, err = l.conn.ChanQueueSubscribe(subject, "mqtt."+digest(group, filter), l.msgs)
			}
			if err != nil {
				l.end(i)
				return err
			}
			i.subs = append(i.subs, sub)
			l.subs[sub] = i
		}
		l.interests[place] = i
	}
	if !slices.Contains(i.sessions, s) {
		i.sessions = append(slices.Clip(i.sessions), s)
	}
	return nil
}

// end has the engine forget i; mu is held.
func (l *live) end(i *interest) {
	for _, sub := range i.subs {
		delete(l.subs, sub)
		_ = sub.Unsubscribe()
	}
}

// leave undoes want.
func (a *account) leave(s *session, key string) {
	l := &a.live
	l.mu.Lock()
	defer l.mu.Unlock()
	l.low.remove(key, s)
	place := s.place(key)
	i := l.interests[place]
	if i == nil {
		return
	}
	i.sessions = slices.DeleteFunc(slices.Clone(i.sessions), func(other *session) bool { return other == s })
	if len(i.sessions) == 0 {
		l.end(i)
		delete(l.interests, place)
	}
}

// calm is how many messages of QoS 1 a client publishes, and none of QoS 0, until they
// take the shorter way.
const calm = 16

// way is the connection that p is published over for those who are there. As long as
// a client publishes at QoS 1 only, and nobody on this node hears that at QoS 0, it
// is the one that hears for its clients: what it publishes itself does not come to it,
// who would hear it for nothing. It is of the goroutine that reads.
func (s *session) way(topic string, p *packet.Publish) *fleetbus.Session {
	l, before := &s.a.live, s.calm
	if p.QoS == 1 && !l.atZero(topic) {
		s.calm = min(s.calm+1, calm)
	} else {
		s.calm = 0
	}
	from, to := s.login, s.login
	if before == calm {
		from = l.conn
	}
	if s.calm == calm {
		to = l.conn
	}
	if from != to { // the order is kept
		_ = from.Flush()
	}
	return to
}

// atZero reports whether somebody hears topic at QoS 0.
func (l *live) atZero(topic string) (found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.low.match(topic, func(*session) { found = true })
	return found
}

// listen returns when the engine knows what s wants under those names.
func (a *account) listen(ctx context.Context, s *session, keys ...string) error {
	l := &a.live
	var unknown []*interest
	l.mu.Lock()
	for _, key := range keys {
		if i := l.interests[s.place(key)]; i != nil && !i.known {
			unknown = append(unknown, i)
		}
	}
	l.mu.Unlock()
	if len(unknown) == 0 {
		return nil
	}
	if err := l.conn.FlushWithContext(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range unknown {
		i.known = true
	}
	return nil
}

// hand hands messages on until the account is closed.
func (a *account) hand() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case msg := <-a.live.msgs:
			a.deliver(msg)
		}
		// Nobody else takes from it: what is there need not be selected.
		for range len(a.live.msgs) {
			a.deliver(<-a.live.msgs)
		}
	}
}

// deliver hands one message to those who want it.
func (a *account) deliver(msg *nats.Msg) {
	l := &a.live
	l.mu.Lock()
	var sessions []*session
	i := l.subs[msg.Sub]
	if i != nil {
		sessions = i.sessions
	}
	l.mu.Unlock()
	if len(sessions) == 0 {
		return
	}
	m, ok := decode(msg.Subject, msg)
	if !ok || reserved(m.topic) || hidden(i.filter, m.topic) || m.expired() {
		return
	}
	if len(sessions) > 1 {
		m.wires = wires{}
	}
	for _, s := range sessions {
		s.hear(i.key, &m)
	}
}

// hear takes a message of the engine because of its subscription key.
func (s *session) hear(key string, m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub, ok := s.rec.Subs[key]
	if !ok || s.closed {
		return
	}
	var g granted
	if sub.Group != "" {
		if m.noted || !s.mayHear(m) {
			return // what is stored comes out of the stream, to one of the group
		}
		g = granted{any: true, retain: sub.Retain && m.retain}
		if sub.ID > 0 {
			g.ids = []uint32{sub.ID}
		}
	} else if g = s.grant(m); g.first != key {
		return // the copy of the first subscription counts
	}
	if !g.any || m.noted && g.qos > 0 {
		return
	}
	s.send(m, &packet.Publish{SubscriptionIDs: g.ids, Message: packet.Message{Retain: g.retain}})
}

// mayHear reports whether the client's permissions allow m, of which they allowed
// the filter that takes it.
func (s *session) mayHear(m *message) bool {
	return !s.judged || s.login.Principal.Permissions.Subscribe.Allows(m.subject)
}
