package mqtt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// answer is a PUBACK or PUBREC that is owed. It has no texts. [MQTT-3.1.2-29]
type answer struct {
	packet.Ack
	waits int // for so many parts
}

// published takes a PUBLISH.
func (s *session) published(p *packet.Publish) error {
	if err := s.unalias(p); err != nil {
		return err
	}
	topic := string(p.Topic)
	subject := subjectOf(topic)
	refusal := packet.Success
	switch {
	case len(subject) > maxSubject:
		refusal = packet.TopicNameInvalid
	case !s.mayPublish(topic, subject) && !s.takeOwed(topic):
		refusal = packet.NotAuthorized
	}
	if refusal != packet.Success && (p.QoS == 0 || s.v == packet.V311) {
		// There is no packet that says so. [MQTT311-3.3.5-2]
		s.log("MQTT client may not publish", "subject", clip(subject), "code", refusal.String())
	}
	if refusal == packet.Success {
		// A client that only listens has no connection of its own to the engine.
		if err := s.login.Open(); err != nil {
			return fmt.Errorf("opening a session: %w", err)
		}
	}
	switch {
	case p.QoS == 0 && refusal != packet.Success:
		return nil
	case refusal == packet.TopicNameInvalid && s.v == packet.V311:
		// It is not for want of a right: to acknowledge it would be to lose it.
		return fault(refusal, "MQTT311-4.8.0-2", "PUBLISH with a topic that is too long") // [MQTT311-4.8.0-2]
	case p.QoS == 0:
		s.publishLive(subject, p)
		if p.Retain {
			s.a.retain(subject, s.mark(true), s.keeps(p), func(err error) {
				if err != nil {
					s.log("a message was not retained", "error", err)
				}
			})
		}
		return nil
	}
	return s.take12(subject, p, refusal)
}

// maxSubject is the longest subject that the engine takes with room for the rest
// of the line, in bytes.
const maxSubject = 3072

// headRoom is what of that line a reply subject may take beside the longest
// subject, in bytes.
const headRoom = 512

// mayPublish reports whether the client's permissions allow a topic.
func (s *session) mayPublish(topic, subject string) bool {
	return s.login.Principal.Permissions.Publish.Allows(subject) && (!reserved(topic) || strings.HasPrefix(subject, "_INBOX."))
}

// unalias puts the topic for an alias, or remembers it. [MQTT-3.3.2-7]
func (s *session) unalias(p *packet.Publish) error {
	if p.TopicAlias == 0 {
		return nil
	}
	if p.TopicAlias > s.p.topicAliases() { // [MQTT-3.3.2-9] [MQTT-3.3.2-12]
		return fault(packet.TopicAliasInvalid, "MQTT-3.3.2-9", "PUBLISH with a Topic Alias above the maximum")
	}
	if len(p.Topic) > 0 {
		s.aliases[p.TopicAlias] = string(p.Topic)
		return nil
	}
	topic, ok := s.aliases[p.TopicAlias]
	if !ok {
		return fault(packet.ProtocolError, "MQTT-4.13.1-1", "PUBLISH with an unknown Topic Alias")
	}
	p.Topic = []byte(topic)
	return nil
}

// keeps is a copy of p's message: the reader's is good until the next packet.
func (s *session) keeps(p *packet.Publish) *packet.Message {
	m := p.Message
	for _, b := range []*[]byte{&m.Topic, &m.Payload, &m.ContentType, &m.ResponseTopic, &m.CorrelationData} {
		*b = bytes.Clone(*b)
	}
	m.UserProperties = slices.Clone(m.UserProperties)
	for i, pair := range m.UserProperties {
		m.UserProperties[i] = packet.Pair{Name: bytes.Clone(pair.Name), Value: bytes.Clone(pair.Value)}
	}
	return &m
}

// mark is what tells who published: nobody asks, but for a subscription of its own
// with No Local, if the message is not stored.
func (s *session) mark(stored bool) string {
	if stored || s.local.Load() {
		return s.key
	}
	return ""
}

// publishLive publishes p to those who are there.
func (s *session) publishLive(subject string, p *packet.Publish) {
	msg := encode(subject, s.mark(p.QoS > 0), &p.Message, time.Now())
	if p.ResponseTopic != nil {
		s.expectReply(msg, p)
	}
	conn := s.login
	if !s.login.Principal.Permissions.Publish.Allows(subject) {
		conn = s.a.conn // it owes it as an answer, of which the engine does not know
	}
	if err := conn.PublishMsg(msg); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		s.log("a message was not published", "error", err)
	}
}

// take12 takes a PUBLISH of QoS 1 or 2: it is the engine's before it is
// acknowledged. [MQTT-4.3.2-4] [MQTT-4.3.3-8]
func (s *session) take12(subject string, p *packet.Publish, refusal packet.Code) error {
	reply := &answer{Ack: packet.Ack{Kind: packet.PUBACK, ID: p.ID}} // [MQTT-3.3.4-1] [MQTT-4.3.2-5]
	if p.QoS == 2 {
		reply.Kind = packet.PUBREC
	}
	s.mu.Lock()
	if s.v == packet.V5 && !s.in[p.ID] && s.underWay() >= int(s.p.receiveMaximum()) { // [MQTT-3.3.4-7]
		s.mu.Unlock()
		return fault(packet.ReceiveMaximumExceeded, "MQTT-3.3.4-7", "PUBLISH beyond the Receive Maximum")
	}
	// A client of 3.1.1 is not told how many may be under way: it waits.
	for len(s.pending) >= int(s.p.receiveMaximum()) && !s.closed {
		s.mu.Unlock()
		select {
		case <-s.space:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		s.mu.Lock()
	}
	s.pending = append(s.pending, reply)
	again := p.QoS == 2 && s.in[p.ID]
	switch {
	case again: // [MQTT-4.3.3-10]
	case refusal != packet.Success:
		if s.v == packet.V5 { // [MQTT-4.3.3-9]
			reply.Code = refusal
		} else if p.QoS == 2 {
			s.in[p.ID] = true
		}
	default:
		reply.waits = 1
		if p.QoS == 2 {
			s.in[p.ID] = true
			reply.waits++
			s.persist(func() { s.settled(reply, nil) })
		}
		if p.Retain {
			reply.waits++
		}
	}
	if reply.waits == 0 {
		s.flushAnswers()
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()

	m := s.keeps(p)
	stored := encode(messagePrefix+subject, s.mark(true), m, time.Now())
	done := func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settled(reply, err)
	}
	if p.QoS == 2 {
		// Should the node die before it is stored that this identifier is in use, the
		// same message comes again with it.
		stored.Header.Set(jetstream.MsgIDHeader, s.turn(p.ID))
		live := packet.Publish{Message: *m}
		s.a.storeMore(&s.a.messages, stored, func(_ uint64, again bool, err error) {
			if err == nil && !again {
				s.publishLive(subject, &live)
			}
			done(err)
		})
	} else {
		s.publishLive(subject, p)
		s.a.storeMore(&s.a.messages, stored, func(_ uint64, _ bool, err error) { done(err) })
	}
	if p.Retain {
		s.a.retain(subject, s.key, m, done)
	}
	return nil
}

// underWay is how many PUBLISH packets of the client are not finished; mu is held.
func (s *session) underWay() int {
	n := len(s.in)
	if n+len(s.pending) < int(s.p.receiveMaximum()) {
		return n
	}
	for _, reply := range s.pending {
		if reply.Kind == packet.PUBACK {
			n++
		}
	}
	return n
}

// turn names this use of a packet identifier with QoS 2.
func (s *session) turn(id uint16) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%s.%s.%d.%d", s.key, s.rec.Born, id, s.rec.Turns[id])
}

// maxTurns is of how many identifiers the uses are counted.
const maxTurns = 512

// turned says that the next message with this identifier is another one; mu is held.
func (s *session) turned(id uint16) {
	if s.rec.Turns == nil {
		s.rec.Turns = map[uint16]uint64{}
	}
	s.rec.Turns[id]++
	// What is under way is noted in the record that is written next.
	if len(s.rec.Turns) > maxTurns {
		s.rec.Born, s.rec.Turns = rand.Text()[:8], nil
	}
}

// settled is told of one part of what an answer waits for; mu is held.
func (s *session) settled(reply *answer, err error) {
	reply.waits--
	if err != nil {
		reply.Code = packet.UnspecifiedError
		if errors.Is(err, errFull) || refused(err, noStorage, noResources) {
			reply.Code = packet.QuotaExceeded
		}
		delete(s.in, reply.ID)
		s.turned(reply.ID) // [MQTT-4.3.3-9]
		if !s.closed {
			s.log("a message was not stored, and its publisher is told", "error", err)
		}
	}
	s.flushAnswers()
}

// flushAnswers sends what is settled, in the order of the PUBLISH packets.
// [MQTT-4.6.0-2] [MQTT-4.6.0-3]
func (s *session) flushAnswers() {
	for len(s.pending) > 0 && s.pending[0].waits <= 0 {
		reply := s.pending[0]
		s.pending = s.pending[1:]
		if reply.Code.Failed() && s.v == packet.V311 {
			// It has no refusal. [MQTT311-4.8.0-2]
			s.expel(reply.Code, "")
			return
		}
		s.out.send(&reply.Ack)
		select {
		case s.space <- struct{}{}:
		default:
		}
	}
}

// released takes a PUBREL. [MQTT-4.3.3-11]
func (s *session) released(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := packet.Ack{Kind: packet.PUBCOMP, ID: id}
	if !s.in[id] {
		done.Code = packet.PacketIdentifierNotFound
		s.out.send(&done)
		return
	}
	delete(s.in, id) // [MQTT-4.3.3-12]
	s.turned(id)
	s.persist(func() { s.out.send(&done) })
}
