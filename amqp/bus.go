package amqp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/semaphore"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/right"
	"github.com/fleetbus/fleetbus/amqp/route"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/wire"
)

const (
	// busQueue is how many bytes of the engine's messages wait until they are in their
	// queues, and busPending how many are in no log yet. What is more is dropped.
	busQueue, busPending = 16 << 20, 16 << 20
	// busAnswer begins the names by which who had a message of the bus answers it.
	busAnswer = "amq.bus."
	// lostEvery is how often it is told that messages were dropped.
	lostEvery = time.Second
)

// bus is amq.topic of an account as others on the bus have it: what is published there goes
// to the subject of its routing key, and what others publish goes to the queues that are
// bound to it.
type bus struct {
	a     *account
	owner *fleetbus.Session   // by which others are asked
	conn  *fleetbus.Session   // does not hear what it publishes
	wire  *wire.Conn          // over which it hears
	inbox string              // of answers, with its dot
	key   []byte              // of names of answers
	lost  atomic.Uint64       // messages, since it was told
	room  *semaphore.Weighted // bytes that are in no log yet
	life  context.Context
	stop  context.CancelFunc
	ended sync.WaitGroup

	mu      sync.Mutex
	last    uint64
	keys    map[string]*interest // by the key of bindings
	subs    map[uint64]*interest // by what the engine calls it
	names   map[string]*interest // as all calls them
	all     *route.Table         // which interests want a key
	inbound uint64               // the subscription of inbox
}

// interest is that of bindings with one key.
type interest struct {
	order uint64 // the first of those that want a message is the one that counts
	name  string // of order
	subs  []uint64
}

// openBus opens the bus for a, which has its table.
func openBus(ctx context.Context, conn *fleetbus.Session, a *account) (*bus, error) {
	b := &bus{
		a: a, owner: conn, key: make([]byte, sha256.Size), keys: map[string]*interest{}, subs: map[uint64]*interest{}, names: map[string]*interest{},
		all: route.NewTable(a.name), wire: wire.NewListener(busQueue), room: semaphore.NewWeighted(busPending), inbox: "_INBOX.amqp-" + rand.Text()[:16] + ".",
	}
	_, _ = rand.Read(b.key) // it does not fail
	b.life, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	every := identity.Rule{Allow: []string{">"}}
	var err error
	if b.conn, err = conn.Account("amqp", identity.Permissions{Publish: every, Subscribe: every}, nats.NoEcho(), b.wire.Option()); err != nil {
		b.stop()
		return nil, err
	}
	if b.inbound, err = b.wire.Subscribe(b.inbox+"*.*.*", ""); err != nil {
		b.close()
		return nil, err
	}
	b.conn.SetClosedHandler(func(*nats.Conn) { a.fail(nats.ErrConnectionClosed) })
	a.table.Watch(topicExchange, b.want)
	if err := b.conn.Flush(); err != nil {
		b.close()
		return nil, fmt.Errorf("listening to the bus: %w", err)
	}
	b.ended.Go(b.hear)
	b.ended.Go(b.tell)
	return b, nil
}

func (b *bus) close() {
	b.stop()
	b.conn.Close()
	b.ended.Wait()
}

// known returns when the engine knows of all bindings.
func (b *bus) known(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := b.conn.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("asking the bus for what is bound: %w", err)
	}
	return nil
}

// want is what the table calls when a key has its first binding or has none any more.
func (b *bus) want(key string, is bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	binding := route.Binding{Source: topicExchange, Key: key}
	if i := b.keys[key]; i != nil {
		binding.Destination = i.name
		_, _ = b.all.Unbind(binding) // it is there
		delete(b.keys, key)
		delete(b.names, i.name)
		for _, sub := range i.subs {
			delete(b.subs, sub)
			_ = b.wire.Unsubscribe(sub) // or the connection is gone, and the account with it
		}
	}
	if !is {
		return
	}
	b.last++
	i := &interest{order: b.last, name: strconv.FormatUint(b.last, 36)}
	for _, subject := range patterns(key) {
		sub, err := b.wire.Subscribe(subject, "")
		if err != nil {
			b.a.fail(fmt.Errorf("listening to the bus: %w", err))
			return
		}
		i.subs = append(i.subs, sub)
		b.subs[sub] = i
	}
	b.keys[key], b.names[i.name] = i, i
	binding.Destination = i.name
	_, _ = b.all.Bind(binding) // to what is always there
}

// counts reports whether the copy of a message that came because of sub is the one that
// counts: the engine sends one for each interest that may want it.
func (b *bus) counts(sub uint64, key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := b.subs[sub]
	if mine == nil {
		return false
	}
	names, err := b.all.Route(nil, &route.Message{Exchange: topicExchange, Key: key})
	if err != nil {
		return false
	}
	wanted := false
	for _, name := range names {
		i := b.names[name]
		if i != nil && i.order < mine.order {
			return false
		}
		wanted = wanted || i == mine
	}
	return wanted
}

// hear hands messages to queues until the connection is closed.
func (b *bus) hear() {
	for {
		messages, dropped, ok := b.wire.Receive()
		if !ok {
			return
		}
		b.lost.Add(uint64(dropped))
		for len(messages) > 0 {
			var w wire.Message
			w, messages = wire.Next(messages)
			if w.ID == b.inbound {
				b.answered(&w)
			} else {
				b.take(&w)
			}
		}
	}
}

// tell tells the operator of what was dropped.
func (b *bus) tell() {
	tick := time.NewTicker(lostEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.life.Done():
			return
		case <-tick.C:
			if n := b.lost.Swap(0); n > 0 {
				b.a.log.Warn("messages of the bus did not reach their AMQP queues: they came faster than they are stored, or memory is full", "account", b.a.name, "lost", n)
			}
		}
	}
}

// take takes a message that somebody published.
func (b *bus) take(w *wire.Message) {
	subject := string(w.Subject)
	if engines(subject) {
		return
	}
	key := keyOfSubject(subject)
	if !b.counts(w.ID, key) {
		return
	}
	if len(key) > maxShort {
		b.lost.Add(1)
		return
	}
	p, over := properties(w)
	if over {
		return
	}
	if len(w.Reply) > 0 {
		p.ReplyTo = b.nameOf(string(w.Reply))
	}
	b.put(topicExchange, key, &p, w.Payload)
}

// properties are those of a message of the bus. over says that it has expired.
func properties(w *wire.Message) (p frame.Properties, over bool) {
	if len(w.Header) == 0 {
		return p, false
	}
	header, _ := nats.DecodeHeadersMsg(w.Header) // a broken one is none
	return inward(header, time.Now())
}

// put publishes what came over the bus.
func (b *bus) put(exchange, key string, p *frame.Properties, payload []byte) {
	if b.a.full() {
		b.lost.Add(1)
		return
	}
	m, queues, err := b.made(exchange, key, p, payload)
	if err != nil {
		b.lost.Add(1)
		b.a.log.Debug("a message of the bus cannot be one of AMQP", "account", b.a.name, "error", err)
		return
	}
	size := min(int64(len(m.Body)+len(m.Properties)), busPending)
	if b.room.Acquire(b.life, size) != nil { // the account is about to be elsewhere
		return
	}
	b.a.put(m, queues, func(bool) { b.room.Release(size) })
}

// made is a message of AMQP of what came over the bus, and where it goes.
func (b *bus) made(exchange, key string, p *frame.Properties, payload []byte) (*queue.Message, []*queue.Queue, error) {
	encoded, err := p.Append(nil)
	if err != nil {
		return nil, nil, err
	}
	m, err := queue.NewMessage(exchange, key, encoded, append([]byte(nil), payload...))
	if err != nil {
		return nil, nil, err
	}
	names, err := b.a.table.Publish(nil, &route.Message{Exchange: exchange, Key: key, Headers: func() frame.Table { return p.Headers }})
	if err != nil {
		return nil, nil, err
	}
	queues := b.a.find(nil, names)
	return m, queues, b.a.fits(m, queues)
}

// forBus reads what goes to the bus, and refuses what is too large for it. what is where it
// goes, for who is refused.
func (h *attached) forBus(q *queue.Message, what string) (*outgoing, error) {
	if size := len(q.Body) + len(q.Properties); size > h.largest {
		return nil, frame.ChannelError(frame.PreconditionFailed, "message size %d is larger than configured max size %d of %s", size, h.largest, what)
	}
	o := &outgoing{}
	if err := o.p.Decode(q.Properties); err != nil {
		return nil, frame.ConnectionError(frame.SyntaxError, "properties that cannot be read")
	}
	return o, nil
}

// judgeTopic says where on the bus a message goes that is published to amq.topic, or
// refuses it.
func (h *attached) judgeTopic(q *queue.Message, to *route.Message) (*outgoing, error) {
	o, err := h.forBus(q, "exchange '"+topicExchange+"'")
	if err != nil {
		return nil, err
	}
	for _, key := range append([]string{to.Key}, to.Copies...) {
		subject := subjectOfKey(key)
		switch {
		case engines(subject):
			return nil, frame.ChannelError(frame.AccessRefused, "write access to topic '%s' in exchange '%s' refused: it belongs to the engine", frame.Clip(key), topicExchange)
		case !h.who.principal.Permissions.Publish.Allows(subject):
			return nil, h.refusesTopic(write, key)
		}
		o.subjects = append(o.subjects, subject)
	}
	switch to := o.p.ReplyTo; {
	case to == "":
	case strings.HasPrefix(to, busAnswer):
		o.reply, _ = h.bus.subjectOfName(to)
	case strings.HasPrefix(to, replyTo+"."), h.mayQueue(read, to) == nil: // or somebody else would be answered
		o.reply = h.bus.subjectFor(to, o.p.CorrelationID)
	}
	return o, nil
}

// judgeAnswer says where an answer goes to a question that came over the bus. Of one that
// was not asked it says nothing, and it is not routed.
func (h *attached) judgeAnswer(q *queue.Message) (*outgoing, error) {
	subject, ok := h.bus.subjectOfName(q.Key)
	if !ok {
		return nil, nil
	}
	o, err := h.forBus(q, "an answer over the bus")
	if err != nil {
		return nil, err
	}
	o.subjects, o.answers = []string{subject}, true
	return o, nil
}

// toBus publishes q where o says.
func (h *attached) toBus(q *queue.Message, o *outgoing) {
	if o == nil {
		return
	}
	header := outward(&o.p, time.Now())
	for _, subject := range o.subjects {
		err := h.bus.conn.PublishMsg(&nats.Msg{Subject: subject, Reply: o.reply, Header: header, Data: q.Body})
		if err != nil {
			h.log.Warn("a message of AMQP did not reach the bus", "account", h.account.name, "error", err)
		}
	}
}

func (h *attached) refusesTopic(r right.Right, key string) error {
	return frame.ChannelError(frame.AccessRefused, "%s access to topic '%s' in exchange '%s' in vhost '%s' refused for user '%s'", r, frame.Clip(key), topicExchange, h.who.vhost, h.who.principal.Name)
}

// mayHear refuses bindings to amq.topic with keys of which a principal may not subscribe to
// all subjects: what is in a queue is not judged again.
func (h *attached) mayHear(b *route.Binding) error {
	if b.Source != topicExchange {
		return nil
	}
	may := &h.who.principal.Permissions.Subscribe
	for _, subject := range patterns(b.Key) {
		denied := func(pattern string) bool { return identity.Overlap(pattern, subject) }
		if !may.Allows(subject) || slices.ContainsFunc(may.Deny, denied) {
			return h.refusesTopic(read, b.Key)
		}
	}
	return nil
}

// An answer over the bus comes to the queue that the question named, with its correlation:
// both are in the subject, and nobody can make one up.

var inSubject = base64.RawURLEncoding

// seal is what shows that parts are the account's own.
func (b *bus) seal(parts ...string) string {
	h := hmac.New(sha256.New, b.key)
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return inSubject.EncodeToString(h.Sum(nil)[:16])
}

// subjectFor is where answers for a queue are published.
func (b *bus) subjectFor(queue, correlation string) string {
	token := func(s string) string { return "-" + inSubject.EncodeToString([]byte(s)) }
	return b.inbox + b.seal(queue, correlation) + "." + token(queue) + "." + token(correlation)
}

// answered takes an answer.
func (b *bus) answered(w *wire.Message) {
	parts := strings.Split(strings.TrimPrefix(string(w.Subject), b.inbox), ".")
	if len(parts) != 3 {
		return
	}
	var said [2]string
	for i, part := range parts[1:] {
		text, err := inSubject.DecodeString(strings.TrimPrefix(part, "-"))
		if err != nil {
			return
		}
		said[i] = string(text)
	}
	if !hmac.Equal([]byte(parts[0]), []byte(b.seal(said[0], said[1]))) {
		b.a.log.Warn("an answer over the bus is for a question that was not asked", "account", b.a.name)
		return
	}
	p, over := properties(w)
	if over {
		return
	}
	if p.CorrelationID == "" {
		p.CorrelationID = said[1]
	}
	b.put("", said[0], &p, w.Payload)
}

// nameOf is the name by which a client answers to a subject, empty if it is too long.
func (b *bus) nameOf(subject string) string {
	name := busAnswer + b.seal(subject) + "." + subject
	if len(name) > maxShort {
		return ""
	}
	return name
}

// subjectOfName is the subject that a client answers to by a name; ok is false if the
// account gave nobody that name.
func (b *bus) subjectOfName(name string) (subject string, ok bool) {
	seal, subject, ok := strings.Cut(strings.TrimPrefix(name, busAnswer), ".")
	return subject, ok && hmac.Equal([]byte(seal), []byte(b.seal(subject)))
}
