package queue

import (
	"errors"
	"slices"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// Reason is why a message is a dead letter.
type Reason string

// The reasons.
const (
	Rejected      Reason = "rejected"
	Expired       Reason = "expired"
	MaxLength     Reason = "maxlen"
	DeliveryLimit Reason = "delivery_limit"
)

var errRetry = errors.New("the log could not be read; it is tried again in a second")

// The headers of dead letters.
const (
	deaths      = "x-death"
	carbonCopy  = "CC"
	blindCopy   = "BCC"
	firstReason = "x-first-death-reason"
	firstQueue  = "x-first-death-queue"
	firstFrom   = "x-first-death-exchange"
)

// A Dead is a message on its way out of a queue.
type Dead struct {
	// Message is to be published to the exchange and the key that it has.
	Message *Message
	// Headers are those that it has, among them CC.
	Headers frame.Table

	reason Reason
	q      *Queue
	seq    uint64
}

// Reason is why.
func (d *Dead) Reason() Reason { return d.reason }

// Settled says that the dead letter is where it goes, or goes nowhere: only then the log of
// its queue is without the message.
func (d *Dead) Settled() {
	if d.seq == 0 {
		return
	}
	d.q.mu.Lock()
	defer d.q.unlock()
	if d.q.d != nil {
		d.q.d.note.Done = append(d.q.d.note.Done, d.seq)
	}
}

// Cycles reports whether a queue had the message before, and nobody has rejected it since:
// it would be turned for ever, and is not to be sent there.
func (d *Dead) Cycles(queue string) bool {
	all, _ := d.Headers[deaths].([]any)
	for _, one := range all {
		death, _ := one.(frame.Table)
		if death["reason"] == string(Rejected) {
			return false
		}
		if death["queue"] == queue {
			return true
		}
	}
	return false
}

// deadLetter has a message leave.
func (q *Queue) deadLetter(n *news) {
	if n.dead != nil {
		q.sendDead(n.dead, n.seq, n.reason)
		return
	}
	seq, reason := n.seq, n.reason
	q.mu.Lock()
	d := q.d
	q.mu.Unlock()
	if d == nil {
		return
	}
	d.log.Read([]uint64{seq}, func(all []*Message, err error) {
		// One that cannot be read stays in the log, and comes when that is opened
		// again.
		if err == nil && len(all) == 1 && all[0] != nil {
			q.sendDead(all[0], seq, reason)
		}
	})
}

func (q *Queue) sendDead(m *Message, seq uint64, why Reason) {
	d := q.died(m, why)
	if d == nil {
		(&Dead{q: q, seq: seq}).Settled()
		return
	}
	d.seq = seq
	q.env.Outlet.DeadLetter(d)
}

// died is m as a dead letter; nil if its properties cannot be read.
func (q *Queue) died(m *Message, why Reason) *Dead {
	var p frame.Properties
	if len(m.Properties) > 0 && p.Decode(m.Properties) != nil {
		return nil
	}
	if p.Headers == nil {
		p.Headers = frame.Table{}
	}
	h := p.Headers
	keys := []any{m.Key}
	if cc, ok := h[carbonCopy].([]any); ok {
		for _, key := range cc {
			if key, ok := key.(string); ok {
				keys = append(keys, key)
			}
		}
	}
	death := frame.Table{
		"count": int64(1), "reason": string(why), "queue": q.s.Name, "exchange": m.Exchange, "routing-keys": keys,
		"time": frame.Timestamp(q.env.Timers.now() / 1000),
	}
	if p.Flags&frame.HasExpiration != 0 {
		death["original-expiration"] = p.Expiration
	}
	p.Drop(frame.HasExpiration)
	h[deaths] = withDeath(h[deaths], death)
	if _, ok := h[firstReason]; !ok {
		h[firstReason], h[firstQueue], h[firstFrom] = string(why), q.s.Name, m.Exchange
	}
	delete(h, blindCopy)
	key := m.Key
	if q.s.hasDeadLetterKey {
		key = q.s.DeadLetterKey
		delete(h, carbonCopy)
	}
	properties, err := p.Append(nil)
	if err != nil {
		return nil
	}
	of, err := NewMessage(q.s.DeadLetterExchange, key, properties, m.Body)
	if err != nil {
		return nil
	}
	return &Dead{Message: of, Headers: h, reason: why, q: q}
}

// withDeath adds a death to those that there are. The same queue and reason is one, that
// counts.
func withDeath(before any, death frame.Table) []any {
	old, _ := before.([]any)
	all := slices.Clone(old)
	for i, one := range all {
		was, _ := one.(frame.Table)
		if was["queue"] != death["queue"] || was["reason"] != death["reason"] {
			continue
		}
		if n, ok := whole(was["count"]); ok && n > 0 {
			death["count"] = n + 1
		}
		all = slices.Delete(all, i, i+1)
		break
	}
	return slices.Insert(all, 0, any(death))
}
