package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/wire"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// answer is a PUBACK or PUBREC that is owed. It has a text if the client wants one.
type answer struct {
	packet.Ack
	waits int   // for so many parts
	err   error // of one that failed
	ready bool
}

// published takes a PUBLISH.
func (s *session) published(p *packet.Publish) error {
	if err := s.unalias(p); err != nil {
		return err
	}
	to := s.address(p.Topic)
	refusal := to.refusal
	if refusal == packet.NotAuthorized && s.takeOwed(to.topic) {
		refusal = packet.Success
	}
	if refusal != packet.Success && (p.QoS == 0 || s.v == packet.V311) {
		// There is no packet that says so. [MQTT311-3.3.5-2]
		s.log("MQTT client may not publish", "subject", clip(to.subject), "code", refusal.String())
	}
	s.why = ""
	if refusal == packet.Success && s.mustSign(to.subject) {
		to.allowed = false // the engine knows of no signature: it is the account that publishes
		if refusal = s.verified(to, p); refusal != packet.Success && s.v == packet.V311 {
			return fault(packet.NotAuthorized, "MQTT311-4.8.0-2", "PUBLISH without a good signature, which its account requires and MQTT 3.1.1 has no place for")
		}
	}
	if refusal == packet.Success {
		if err := s.speak(); err != nil {
			return err
		}
	}
	if s.p.Passed != nil && len(p.UserProperties) > 0 {
		began := time.Now()
		defer func() { s.came(p, to.topic, began, refusal != packet.Success) }()
	}
	switch {
	case p.QoS == 0 && refusal != packet.Success:
		return nil
	case refusal == packet.TopicNameInvalid && s.v == packet.V311:
		// It is not for want of a right: to acknowledge it would be to lose it.
		return fault(refusal, "MQTT311-4.8.0-2", "PUBLISH with a topic that is too long") // [MQTT311-4.8.0-2]
	case p.QoS == 0:
		s.publishLive(to, p)
		if p.Retain {
			s.a.retain(to.subject, s.mark(true), s.keeps(p), s, func(err error) {
				if err != nil {
					s.log("a message was not retained", "error", err)
				}
			})
		}
		return nil
	}
	return s.take12(to, p, refusal)
}

// speak connects to the engine, as whom the client is: one that only listens has no
// connection of its own.
func (s *session) speak() error {
	if s.wire != nil {
		return nil
	}
	w := wire.New()
	if err := s.login.Open(w.Option()); err != nil {
		return fmt.Errorf("opening a session: %w", err)
	}
	s.wire, s.largest = w, int(s.login.MaxPayload())
	return nil
}

// address is what a topic is to the client that publishes to it.
type address struct {
	topic, subject string
	allowed        bool // by the permissions
	refusal        packet.Code
}

// maxKnown is how many topics a client's addresses are remembered of, of longKnown bytes
// at most.
const maxKnown, longKnown = 64, 256

// address is that of a topic.
func (s *session) address(topic []byte) address {
	to, ok := s.known[string(topic)]
	if ok {
		return to
	}
	to.topic = string(topic)
	to.subject = mapping.Subject(to.topic)
	to.allowed = s.login.Principal.Permissions.Publish.Allows(to.subject)
	switch {
	case len(to.subject) > maxSubject:
		to.refusal = packet.TopicNameInvalid
	case !s.mayPublish(to.topic, to.subject):
		to.refusal = packet.NotAuthorized
	}
	if len(topic) > longKnown {
		return to
	}
	if s.known == nil {
		s.known = map[string]address{}
	}
	if len(s.known) >= maxKnown {
		clear(s.known)
	}
	s.known[to.topic] = to
	return to
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
func (s *session) publishLive(to address, p *packet.Publish) {
	reply := ""
	if p.ResponseTopic != nil {
		reply = s.expectReply(to.subject, p)
	}
	header := headers(s.mark(p.QoS > 0), &p.Message)
	var err error
	switch {
	case !to.allowed: // it owes it as an answer, of which the engine does not know
		err = s.a.conn.PublishMsg(&nats.Msg{Subject: to.subject, Reply: reply, Header: header, Data: p.Payload})
	case p.QoS == 2: // it was stored, and this is not the goroutine that reads
		err = s.login.PublishMsg(&nats.Msg{Subject: to.subject, Reply: reply, Header: header, Data: p.Payload})
	default:
		err = s.put(to, reply, header, p)
	}
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		s.log("a message was not published", "error", err)
	}
}

// put publishes p with the next flush. It is of the goroutine that reads.
func (s *session) put(to address, reply string, header nats.Header, p *packet.Publish) error {
	head := wire.Header(header)
	if len(head)+len(p.Payload) > s.largest {
		return nats.ErrMaxPayload
	}
	s.route(to.topic, p)
	if s.lines == nil {
		s.lines = s.p.buffers.large()
	}
	if s.lines = wire.AppendPublish(s.lines, to.subject, reply, head, p.Payload); len(s.lines) >= largeSize-readBuffer {
		s.flush()
	}
	return nil
}

// flush gives the engine what the client published. It is of the goroutine that reads,
// and done before it waits for more.
func (s *session) flush() {
	if len(s.lines) == 0 {
		return
	}
	_ = s.over.Send(s.lines) // what it was for is over, and who that concerns was told
	s.p.buffers.put(s.lines)
	s.lines = nil
}

// arrival is a message of QoS 2 that the client has not released.
type arrival struct {
	// number is what the stream knows it by: should the node die, the client sends
	// it again, and it may be stored or not.
	number uint64
	busy   bool // it is being stored
	stored bool
}

// take12 takes a PUBLISH of QoS 1 or 2: it is the engine's before it is
// acknowledged. [MQTT-4.3.2-4] [MQTT-4.3.3-8]
func (s *session) take12(to address, p *packet.Publish, refusal packet.Code) error {
	keep, err := s.accept(to, p, refusal)
	if keep != nil {
		keep()
	}
	return err
}

// accept notes that a PUBLISH is to be answered. keep, unless it is nil, stores the
// message.
func (s *session) accept(to address, p *packet.Publish, refusal packet.Code) (keep func(), err error) {
	reply := &answer{Ack: packet.Ack{Kind: packet.PUBACK, ID: p.ID}} // [MQTT-3.3.4-1] [MQTT-4.3.2-5]
	s.mu.Lock()
	defer s.mu.Unlock()
	var arrived *arrival
	if p.QoS == 2 {
		reply.Kind = packet.PUBREC
		arrived = s.in[p.ID]
	}
	if s.v == packet.V5 && arrived == nil && s.underWay() >= int(s.p.receiveMaximum()) { // [MQTT-3.3.4-7]
		return nil, fault(packet.ReceiveMaximumExceeded, "MQTT-3.3.4-7", "PUBLISH beyond the Receive Maximum")
	}
	// A client of 3.1.1 is not told how many may be under way: it waits.
	for len(s.pending) >= int(s.p.receiveMaximum()) && !s.closed {
		s.mu.Unlock()
		s.flush()
		select {
		case <-s.space:
		case <-s.ctx.Done():
		}
		s.mu.Lock()
		if s.ctx.Err() != nil {
			return nil, s.ctx.Err()
		}
	}
	if arrived != nil && arrived.busy {
		return nil, nil // it is answered when it is stored
	}
	s.pending = append(s.pending, reply)
	switch {
	case arrived != nil && arrived.stored: // [MQTT-4.3.3-10]
		reply.ready = true
	case refusal != packet.Success:
		reply.ready = true
		if s.v == packet.V5 { // [MQTT-4.3.3-9]
			reply.Code, reply.ReasonString = refusal, s.why
		} else if p.QoS == 2 {
			s.in[p.ID] = &arrival{stored: true}
		}
	}
	if reply.ready {
		s.flushAnswers()
		return nil, nil
	}
	if packable(p) {
		reply.waits = 1
		return func() {
			s.publishLive(to, p)
			s.gather(to.subject, p, reply)
		}, nil
	}
	m := s.keeps(p)
	if p.QoS == 1 {
		s.storePack() // it is after it [MQTT-4.6.0-6]
		return func() {
			s.publishLive(to, p)
			s.keep12(to, m, reply, "")
		}, nil
	}
	known := arrived != nil
	if !known {
		s.rec.Count++
		arrived = &arrival{number: s.rec.Count}
		s.in[p.ID] = arrived
	}
	arrived.busy = true
	id := fmt.Sprintf("%s.%s.%d", s.key, s.rec.Born, arrived.number)
	if known {
		return func() { s.keep12(to, m, reply, id) }, nil
	}
	s.persist(func() {
		if !s.closed { // otherwise its client publishes it again, elsewhere
			s.keep12(to, m, reply, id)
		}
	})
	return nil, nil
}

// keep12 stores m. id tells the stream that it has it already; without one, those
// who hear at QoS 0 have heard it.
func (s *session) keep12(to address, m *packet.Message, reply *answer, id string) {
	msg := encode(s.a.at.message+to.subject, s.mark(true), m)
	if id != "" {
		msg.Header.Set(jetstream.MsgIDHeader, id)
	}
	done := func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settled(reply, err)
	}
	reply.waits = 1
	if m.Retain {
		reply.waits++
	}
	s.a.storeMore(&s.a.messages, msg, s, func(_ uint64, again bool, err error) {
		if err == nil && !again && id != "" {
			s.publishLive(to, &packet.Publish{Message: *m})
		}
		done(err)
	})
	if m.Retain {
		s.a.retain(to.subject, s.key, m, s, done)
	}
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

// settled is told of one part of what an answer waits for; mu is held.
func (s *session) settled(reply *answer, err error) {
	reply.waits--
	if reply.err == nil {
		reply.err = err
	}
	if reply.waits > 0 || s.closed {
		return
	}
	ready := func() {
		reply.ready = true
		s.flushAnswers()
	}
	switch {
	case errors.Is(reply.err, errUnanswered):
		// It may be stored: the client must not believe that it is not.
		s.pack.answers = nil // what follows it must not be stored
		s.log("a message may not have been stored, and its publisher is disconnected", "error", reply.err)
		s.expel(packet.ServerBusy, "its message could not be stored in time")
	case reply.err != nil:
		s.log("a message was not stored, and its publisher is told", "error", reply.err)
		reply.Code = packet.UnspecifiedError
		if errors.Is(reply.err, errFull) || refused(reply.err, noStorage, noResources) {
			reply.Code = packet.QuotaExceeded
		}
		if reply.Kind == packet.PUBACK {
			ready()
			return
		}
		// A part of it may be: the next message with that identifier is another.
		delete(s.in, reply.ID) // [MQTT-4.3.3-9]
		s.persist(ready)
	case reply.Kind == packet.PUBREC:
		arrived := s.in[reply.ID]
		arrived.busy, arrived.stored = false, true
		s.later()
		ready()
	default:
		ready()
	}
}

// flushAnswers sends what is settled, in the order of the PUBLISH packets.
// [MQTT-4.6.0-2] [MQTT-4.6.0-3]
func (s *session) flushAnswers() {
	for len(s.pending) > 0 && s.pending[0].ready {
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
	// Who releases a message was told that it is stored, if not by this node.
	if arrived := s.in[id]; arrived == nil || arrived.busy {
		done.Code = packet.PacketIdentifierNotFound
		s.out.send(&done)
		return
	}
	delete(s.in, id) // [MQTT-4.3.3-12]
	s.persist(func() { s.out.send(&done) })
}
