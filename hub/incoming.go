package hub

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// incoming is what comes from the hub: in the order of its arrival it is given to the
// engine, and acknowledged when the engine has it.
type incoming struct {
	arrivals chan arrival
	// have is what was given to the engine, by origin. It belongs to the goroutine
	// that reads, and the record to what the engine has confirmed.
	have map[string]uint64
}

// arrival is a message of the hub's on its way into the engine.
type arrival struct {
	id     uint16 // 0: it has QoS 0
	mark   mark
	stored []jetstream.PubAckFuture
}

func (in *incoming) init(r *run) {
	in.arrivals = make(chan arrival, receiveMaximum)
	r.mu.Lock()
	defer r.mu.Unlock()
	in.have = maps.Clone(r.record.Have)
}

// receive takes a message of the hub's.
func (s *session) receive(p *packet.Publish) error {
	a := arrival{id: p.ID}
	switch topic := string(p.Topic); {
	case topic == s.o.base()+controlTopic:
		s.hear(p.Payload)
	default:
		if subject, ok := s.o.subject(topic); ok {
			if err := s.hand(subject, p, &a); err != nil {
				return err
			}
		}
	}
	s.in.arrivals <- a
	return nil
}

// hand gives a message to the engine, unless it is known.
func (s *session) hand(subject string, p *packet.Publish, a *arrival) error {
	msg, m := s.o.message(subject, p, time.Now())
	if !s.news(m) {
		s.count(func(v *view) { v.dropped++ })
		return nil
	}
	future, err := s.q.js.PublishMsgAsync(msg)
	if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject) || errors.Is(err, nats.ErrBadHeaderMsg) {
		s.log.Warn("a message of the hub's is none that the engine takes", "subject", subject, "size", len(msg.Data), "error", err)
		s.count(func(v *view) { v.tooLarge++ })
		return nil
	}
	if err != nil {
		return fmt.Errorf("storing a message of the hub's: %w", err)
	}
	a.mark, a.stored = m, append(a.stored, future)
	if matches(change.Heard, subject) {
		s.know(subject)
		// A watcher makes a Resync of one that is no notice.
		if kept, err := change.KeptAt(subject, msg.Data); err == nil {
			future, err := s.q.js.PublishMsgAsync(&nats.Msg{Subject: kept, Data: msg.Data, Header: nats.Header{OriginHeader: msg.Header[OriginHeader]}})
			if err != nil {
				return fmt.Errorf("recording a change that came from the hub: %w", err)
			}
			a.stored = append(a.stored, future)
		}
	}
	s.count(func(v *view) { v.received++ })
	return nil
}

// news reports whether a message is to be handed on: it is not this node's own, it is
// not known, and nothing is missing before it.
func (s *session) news(m mark) bool {
	if m.origin == "" {
		return true // of a foreign client
	}
	if m.origin == s.q.origin {
		return false
	}
	have, met := s.in.have[m.origin]
	switch {
	case met && m.number <= have:
		return false
	case met && m.known && m.before > have:
		s.ask(m.origin, have)
		return false // it comes again, behind what is missing
	case met && !m.known:
		if err := s.lost(m.origin); err != nil {
			s.log.Warn("watchers could not be told to look again", "error", err)
		}
	case !met && len(s.in.have) >= maxOrigins:
		return true
	}
	s.in.have[m.origin] = m.number
	return true
}

// know remembers the source of a change.
func (s *session) know(subject string) {
	_, rest, _ := strings.Cut(subject, ".")
	source, _, _ := strings.Cut(rest, ".")
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	if !s.record.Sources[source] && len(s.record.Sources) < maxOrigins && identity.CheckName(source) == nil {
		s.record.Sources[source], s.dirty = true, true
	}
}

// lost tells that messages of an origin are gone for good. Changes may have been among
// them: watchers look again.
func (s *session) lost(origin string) (err error) {
	s.log.Warn("messages may be lost: the node that sent them does not have them any more", "node", nodeOf(origin))
	s.count(func(v *view) { v.lost++ })
	s.run.mu.Lock()
	sources := slices.Collect(maps.Keys(s.record.Sources))
	s.run.mu.Unlock()
	for _, source := range sources {
		heard, kept, payload := change.ResyncAt(source)
		for _, subject := range []string{heard, kept} {
			_, e := s.q.js.PublishMsgAsync(&nats.Msg{Subject: subject, Data: payload, Header: nats.Header{OriginHeader: {foreignOrigin}}})
			err = errors.Join(err, e)
		}
	}
	return err
}

// settle notes and acknowledges what the engine has, in the order of its arrival,
// until arrivals is closed. An error ends the session; what came behind it comes
// again.
func (s *session) settle(end context.CancelCauseFunc) {
	failed := false
	for a := range s.in.arrivals {
		err := wait(a.stored)
		if failed {
			continue
		}
		if err != nil {
			failed = true
			end(&Error{Step: StepSubscribe, Err: fmt.Errorf("storing what came from the hub: %w", err), Fix: "look at the streams of this account, their limits and the disk"})
			continue
		}
		if a.mark.origin != "" {
			s.run.mu.Lock()
			s.record.Have[a.mark.origin] = max(s.record.Have[a.mark.origin], a.mark.number)
			s.dirty = true
			s.run.mu.Unlock()
		}
		if a.id != 0 {
			// An error is the connection's, which reading finds.
			_ = s.c.send(&packet.Ack{Kind: packet.PUBACK, ID: a.id})
		}
	}
}

// wait waits until the engine has stored all, or says that it cannot.
func wait(stored []jetstream.PubAckFuture) (err error) {
	for _, one := range stored {
		select {
		case e := <-one.Err():
			err = errors.Join(err, e)
		case <-one.Ok():
		}
	}
	return err
}
