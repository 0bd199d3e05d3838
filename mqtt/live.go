package mqtt

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/internal/wire"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// liveQueue is how many bytes of the engine's messages wait until a node has handed
	// them to its clients. What is more is dropped, as QoS 0 may be.
	liveQueue = 16 << 20
	// maxNamed is how many subjects have their topics remembered, of longNamed bytes at
	// most.
	maxNamed, longNamed = 1024, 256
)

// live hands what the engine delivers to the account's connection to the sessions
// on this node. The engine is asked once for each filter, however many clients
// have it, and delivers a message once for all of them.
type live struct {
	// conn hears for all of them. It does not hear what it publishes.
	conn *fleetbus.Session
	wire *wire.Conn // over which it does

	// Of the goroutine that hands messages on.
	named map[string]named // by subject
	batch batch
	m     message
	p     packet.Publish // of m

	mu        sync.Mutex
	low       tree[*session] // who hears at QoS 0, and that is also what is stored
	interests map[string]*interest
	subs      map[uint64]*interest
}

// named is what a subject is to MQTT clients.
type named struct {
	subject, topic string
	wire           []byte // the topic
	hidden         bool   // it is no topic, or not for them
}

// interest is that of the sessions on this node in what one filter takes, or, of a
// shared subscription, that of one session.
type interest struct {
	filter   string
	key      string     // what the sessions call it
	subs     []uint64   // the engine's
	known    bool       // to the engine
	sessions []*session // replaced, never changed
}

func (l *live) init() {
	l.interests, l.subs, l.named = map[string]*interest{}, map[uint64]*interest{}, map[string]named{}
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
		queue := ""
		if group != "" {
			queue = "mqtt." + digest(group, filter)
		}
		for _, subject := range mapping.Subjects(filter) {
			sub, err := l.wire.Subscribe(subject, queue)
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
		_ = l.wire.Unsubscribe(sub)
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

// route sets over what p is published for those who are there. As long as a client
// publishes at QoS 1 only, and nobody on this node hears that at QoS 0, it is the
// connection that hears for its clients: what it publishes itself does not come to it,
// who would hear it for nothing. It is of the goroutine that reads.
func (s *session) route(topic string, p *packet.Publish) {
	l, before := &s.a.live, s.calm
	if p.QoS == 1 && !l.atZero(topic) {
		s.calm = min(s.calm+1, calm)
	} else {
		s.calm = 0
	}
	if from := s.login; (before == calm) != (s.calm == calm) { // the order is kept
		if before == calm {
			from = l.conn
		}
		s.flush()
		_ = from.Flush()
	}
	s.over = s.wire
	if s.calm == calm {
		s.over = l.wire
	}
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

// hand hands messages on until the account is closed. Who is sent some is told when
// all are handed on that there are.
func (a *account) hand() {
	l := &a.live
	for {
		messages, dropped, ok := l.wire.Receive()
		if !ok {
			return
		}
		a.p.dropped.Add(uint64(dropped))
		for len(messages) > 0 {
			var w wire.Message
			w, messages = wire.Next(messages)
			a.deliver(&w)
		}
		l.batch.tell()
		l.m, l.p = message{}, packet.Publish{} // what is handed on is not held
	}
}

// name is what subject is to MQTT clients.
func (l *live) name(subject []byte) named {
	n, ok := l.named[string(subject)]
	if ok {
		return n
	}
	n.subject = string(subject)
	if n.topic, ok = mapping.Topic(n.subject); !ok || !isName(n.topic) || reserved(n.topic) {
		n.hidden = true
	}
	n.wire = []byte(n.topic)
	if len(l.named) >= maxNamed {
		clear(l.named)
	}
	if len(subject) <= longNamed {
		l.named[n.subject] = n
	}
	return n
}

// deliver hands one message to those who want it.
func (a *account) deliver(w *wire.Message) {
	l := &a.live
	l.mu.Lock()
	var sessions []*session
	i := l.subs[w.ID]
	if i != nil {
		sessions = i.sessions
	}
	l.mu.Unlock()
	if len(sessions) == 0 {
		return
	}
	n := l.name(w.Subject)
	if n.hidden || hidden(i.filter, n.topic) {
		return
	}
	m := &l.m
	*m = message{topic: n.topic, subject: n.subject, name: n.wire, payload: w.Payload, batch: &l.batch}
	if len(w.Header)+len(w.Reply) > 0 {
		var header nats.Header
		if len(w.Header) > 0 {
			header, _ = nats.DecodeHeadersMsg(w.Header) // a broken one is none
		}
		m.read(string(w.Reply), header)
		if m.expired() {
			return
		}
	}
	if len(sessions) > 1 {
		m.wires = wires{}
	}
	for _, s := range sessions {
		s.hear(i.key, m, &l.p)
	}
}

// hear takes a message of the engine because of its subscription key. It may use p.
func (s *session) hear(key string, m *message, p *packet.Publish) {
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
	*p = packet.Publish{SubscriptionIDs: g.ids, Message: packet.Message{Retain: g.retain}}
	s.send(m, p)
}

// mayHear reports whether the client's permissions allow m, of which they allowed
// the filter that takes it.
func (s *session) mayHear(m *message) bool {
	return !s.judged || s.login.Principal.Permissions.Subscribe.Allows(m.subject)
}
