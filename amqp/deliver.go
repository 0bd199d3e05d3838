package amqp

import (
	"cmp"
	"slices"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// subscriber is a consumer of a channel. Its fields are under the lock of the channel.
type subscriber struct {
	ch       *channel
	tag      string
	noAck    bool
	prefetch int // 0: any number
	has      int // messages that are not acknowledged
	sub      subscription
	stopped  bool // it was offered something and did not take it
	lost     bool // its queue is gone
	deliver  frame.BasicDeliver
}

// start has messages come, once the client knows of the consumer.
func (s *subscriber) start(sub subscription) {
	s.ch.mu.Lock()
	s.sub = sub
	stopped := s.stopped
	s.stopped = false
	lost := s.lost
	s.ch.mu.Unlock()
	switch {
	case lost:
		s.tell()
	case stopped:
		sub.resume()
	}
}

// cancel ends it; it is not among those of its channel any more.
func (s *subscriber) cancel() {
	s.ch.mu.Lock()
	sub := s.sub
	s.ch.mu.Unlock()
	if sub != nil {
		sub.cancel()
	}
}

// offer implements consumer.
func (s *subscriber) offer(d *delivery) bool {
	ch := s.ch
	ch.mu.Lock()
	defer ch.mu.Unlock()
	switch {
	case ch.ended || ch.consumers[s.tag] != s:
		return false
	case s.sub == nil,
		!s.noAck && s.prefetch > 0 && s.has >= s.prefetch,
		!s.noAck && ch.prefetch > 0 && ch.unacked.consumed >= ch.prefetch,
		!ch.c.out.room():
		s.stopped = true
		return false
	}
	tag := ch.tagged(d, s, s.noAck)
	s.deliver = frame.BasicDeliver{ConsumerTag: s.tag, DeliveryTag: tag, Redelivered: d.redelivered, Exchange: d.exchange, RoutingKey: d.key}
	if err := ch.c.out.message(ch.id, &s.deliver, d.properties, d.body); err != nil {
		ch.c.p.log().Error("an AMQP message could not be written", "error", err)
	}
	return true
}

// via implements consumer.
func (s *subscriber) via() uint16 { return s.ch.id }

// gone implements consumer.
func (s *subscriber) gone() {
	s.ch.mu.Lock()
	s.lost = true
	started := s.sub != nil
	s.ch.mu.Unlock()
	if started {
		s.tell()
	}
}

// tell tells the client that its consumer is no more, if it wants to know.
func (s *subscriber) tell() {
	s.ch.mu.Lock()
	mine := s.ch.consumers[s.tag] == s
	if mine {
		delete(s.ch.consumers, s.tag)
	}
	s.ch.mu.Unlock()
	if mine && s.ch.c.client.can("consumer_cancel_notify") {
		_ = s.ch.c.out.send(s.ch.id, &frame.BasicCancel{ConsumerTag: s.tag, NoWait: true})
	}
}

// tagged is the tag of d, which is handed out to s, or to nobody's consumer; mu of the
// channel is held.
func (ch *channel) tagged(d *delivery, s *subscriber, noAck bool) uint64 {
	ch.next++
	if !noAck {
		ch.unacked.add(given{tag: ch.next, from: d.from, id: d.id, to: s})
	}
	return ch.next
}

// given is a message that was handed out and is not settled.
type given struct {
	tag  uint64
	from settler
	id   uint64
	to   *subscriber // nil: it was got
	done bool        // it is settled, and still among the unacked
}

func byTag(a, b given) int { return cmp.Compare(a.tag, b.tag) }

// unacked are the messages of a channel that are not settled, by their tags.
type unacked struct {
	all      []given
	settled  int // of all
	consumed int // those that consumers have
}

func (u *unacked) add(g given) {
	u.all = append(u.all, g)
	u.count(g, 1)
}

func (u *unacked) count(g given, n int) {
	if g.to != nil {
		g.to.has += n
		u.consumed += n
	}
}

func (u *unacked) countAll(all []given, n int) {
	for _, g := range all {
		u.count(g, n)
	}
}

// take removes the message of a tag, or all up to it; tag 0 is then the last. It reports
// false if there is none of this tag.
func (u *unacked) take(tag uint64, multiple bool) ([]given, bool) {
	if multiple && tag == 0 {
		return u.takeAll(), true
	}
	i, found := slices.BinarySearchFunc(u.all, given{tag: tag}, byTag)
	if !found || u.all[i].done {
		return nil, false
	}
	if multiple {
		return u.cut(i + 1), true
	}
	g := u.all[i]
	u.count(g, -1)
	u.all[i] = given{tag: tag, done: true}
	u.settled++
	u.tidy()
	return []given{g}, true
}

// tidy forgets what is settled: at the front, and everywhere if it is half.
func (u *unacked) tidy() {
	n := 0
	for n < len(u.all) && u.all[n].done {
		n++
	}
	u.all, u.settled = u.all[n:], u.settled-n
	if u.settled > 16 && u.settled > len(u.all)/2 {
		u.all = slices.DeleteFunc(u.all, func(g given) bool { return g.done })
		u.settled = 0
	}
	if len(u.all) == 0 {
		u.all = nil
	}
}

// cut removes the first n.
func (u *unacked) cut(n int) (taken []given) {
	for _, g := range u.all[:n] {
		if g.done {
			u.settled--
			continue
		}
		u.count(g, -1)
		taken = append(taken, g)
	}
	u.all = u.all[n:]
	u.tidy()
	return taken
}

func (u *unacked) takeAll() []given { return u.cut(len(u.all)) }

// putBack is for what was taken and is not settled after all; it is counted.
func (u *unacked) putBack(all []given) {
	u.all = slices.DeleteFunc(u.all, func(g given) bool { return g.done })
	u.settled = 0
	u.all = append(u.all, all...)
	slices.SortFunc(u.all, byTag)
}

// settled tells the queues what became of messages, each once for all that are next to
// one another.
func settled(all []given, how settlement) {
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].from == all[0].from {
			n++
		}
		ids := make([]uint64, n)
		for i := range ids {
			ids[i] = all[i].id
		}
		all[0].from.settle(ids, how)
		all = all[n:]
	}
}
