package mqtt

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// liveQueue is how many messages of the engine wait until a node has handed them
// to its clients. What is more is dropped, as QoS 0 may be.
const liveQueue = 64 << 10

// live hands what the engine delivers to the account's connection to the sessions
// on this node. The engine is asked once for each filter, however many clients
// have it, and delivers a message once for all of them.
type live struct {
	msgs chan *nats.Msg

	mu        sync.Mutex
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
func (a *account) want(s *session, key, filter, group string) error {
	l := &a.live
	l.mu.Lock()
	defer l.mu.Unlock()
	place := s.place(key)
	i := l.interests[place]
	if i == nil {
		i = &interest{filter: filter, key: key}
		for _, subject := range subjectsOf(filter) {
			var sub *nats.Subscription
			var err error
			if group == "" {
				sub, err = a.conn.ChanSubscribe(subject, l.msgs)
			} else {
				sub, err = a.conn.ChanQueueSubscribe(subject, "mqtt."+digest(group, filter), l.msgs)
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
	if err := a.conn.FlushWithContext(ctx); err != nil {
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
