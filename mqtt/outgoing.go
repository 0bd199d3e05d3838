package mqtt

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// granted is what the subscriptions of a session make of a message.
type granted struct {
	qos    packet.QoS
	retain bool
	ids    []uint32
	any    bool
	first  string // the filter that was subscribed first
}

// grant finds what the session's subscriptions make of m. One message is sent for
// all of them. [MQTT-3.3.4-2] [MQTT-3.3.4-4]
func (s *session) grant(m *message) (g granted) {
	if !s.mayHear(m) {
		return g
	}
	made := 0
	for filter, sub := range s.rec.Subs {
		// [MQTT-3.3.2-3]
		if sub.Group != "" || !matches(filter, m.topic) || m.seq > 0 && m.seq <= sub.From && !m.late {
			continue
		}
		if g.first == "" || sub.made < made {
			g.first, made = filter, sub.made
		}
		if sub.Local && m.client == s.key { // [MQTT-3.8.3-3]
			continue
		}
		g.any = true
		g.qos = max(g.qos, sub.QoS)
		g.retain = g.retain || sub.Retain && m.retain // [MQTT-3.3.1-12] [MQTT-3.3.1-13]
		if sub.ID > 0 {                               // [MQTT-3.3.4-3]
			g.ids = append(g.ids, sub.ID)
		}
	}
	return g
}

// offer takes from the feed what is stored as one.
func (s *session) offer(ms []message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq := ms[0].seq
	switch {
	case seq < s.at: // it was read from the stream
	case s.closed:
		if s.behind == 0 { // it will be read when the client is back
			s.behind = seq
		}
	case s.reading:
		if len(s.held) < maxQueue && s.queued < s.p.pending() {
			s.held = append(s.held, ms...)
			s.queued += size(ms)
		} else if s.behind == 0 {
			s.behind = seq
		}
	case s.behind > 0: // it reads from there
	case len(s.queue) >= maxQueue || s.queued >= s.p.pending():
		s.behind = seq
	default:
		s.at = seq + 1
		s.push(ms...)
		s.pump()
	}
}

// push puts ms at the end of the queue; mu is held.
func (s *session) push(ms ...message) {
	s.queue = append(s.queue, ms...)
	s.queued += size(ms)
}

// size is how many bytes of payload ms have.
func size(ms []message) (n int) {
	for i := range ms {
		n += len(ms[i].payload)
	}
	return n
}

// drained goes on with a client that reads again.
func (s *session) drained() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pump()
}

// pump sends what the client may be sent. [MQTT-3.3.4-9] [MQTT-4.9.0-2]; mu is held.
func (s *session) pump() {
	sent := false
	for len(s.queue) > 0 && s.greeted && !s.asking && !s.closed {
		m := s.queue[0]
		g := granted{any: true, qos: m.grant, retain: m.retain}
		switch {
		case m.kept || m.shared != nil:
			if m.sub > 0 { // [MQTT-3.3.4-5]
				g.ids = []uint32{m.sub}
			}
		default:
			g = s.grant(&m)
		}
		qos := min(m.qos, g.qos)                  // [MQTT-3.8.4-8]
		given := m.share != nil && m.share.over() // the group has it again
		wanted := g.any && !given && !m.expired()
		if wanted && qos > 0 && (s.quota <= 0 || s.repeating || s.out.full()) {
			break // and nothing else waits [MQTT-3.3.4-10]
		}
		if wanted && qos == 0 && m.kept && s.out.full() {
			break // it is not dropped because there is much
		}
		// What is stored of it when it begins says that it is not in the queue.
		sent = true
		s.queued -= len(m.payload)
		s.queue[0] = message{}
		s.queue = s.queue[1:]
		switch {
		case given:
		case !wanted:
			m.finished()
		case qos == 0:
			s.send(&m, &packet.Publish{SubscriptionIDs: g.ids, Message: packet.Message{Retain: g.retain}})
			m.finished()
		default:
			s.begin(&m, qos, g)
		}
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
	if sent {
		s.later()
		s.roomier()
	}
	if s.behind > 0 && !s.reading && len(s.queue) == 0 && !s.closed {
		s.catchUp(s.behind)
	}
}

// begin sends a message that the client has to acknowledge, for the first time.
// [MQTT-3.3.1-3] [MQTT-4.3.2-1] [MQTT-4.3.2-2] [MQTT-4.3.3-1] [MQTT-4.3.3-2]
func (s *session) begin(m *message, qos packet.QoS, g granted) {
	f := &flight{ID: s.unused(), Seq: m.seq, Part: m.part, QoS: qos, Retained: m.kept, Sub: m.sub, Share: m.reply, sent: true}
	p := &packet.Publish{ID: f.ID, SubscriptionIDs: g.ids, Message: packet.Message{QoS: qos, Retain: g.retain}}
	if m.shared != nil && qos == 1 {
		f.done = m.finished
	}
	s.flights[f.ID] = f
	s.order = append(s.order, f)
	s.quota--
	copied := *m
	transmit := func() {
		if s.closed {
			return
		}
		if !s.send(&copied, p) { // [MQTT-3.1.2-25]
			s.land(f)
		}
	}
	if qos == 1 {
		transmit()
		return
	}
	// The client must find the same identifier at any node.
	s.persist(func() {
		transmit()
		if copied.shared != nil { // [MQTT-4.8.2-4] [MQTT-4.8.2-5]
			copied.finished()
		}
	})
}

// send sends m, and reports whether it fits the client. [MQTT-3.1.2-24]
func (s *session) send(m *message, p *packet.Publish) bool {
	if p.QoS == 0 && s.out.full() {
		s.p.dropped.Add(1)
		return true
	}
	if m.response != "" {
		s.owe(m.response)
	}
	if s.p.Passed != nil && len(m.user) > 0 {
		s.went(m, p.QoS)
	}
	if m.wires != nil && s.aliasMax == 0 && s.out.max == 0 && p.QoS == 0 && len(p.SubscriptionIDs) == 0 {
		return s.out.sendWire(m.batch, m.wires.of(m, s.v, p))
	}
	m.publish(p)
	if s.v == packet.V5 && s.aliasMax > 0 {
		s.alias(p)
	}
	return s.out.sendIn(m.batch, p)
}

// alias puts an alias for a topic that the client has been told. [MQTT-3.3.2-11]
func (s *session) alias(p *packet.Publish) {
	topic := string(p.Topic)
	if n, ok := s.given[topic]; ok {
		p.TopicAlias, p.Topic = n, nil
		return
	}
	if n := uint16(len(s.given)) + 1; n <= s.aliasMax && (s.out.max == 0 || p.Size(s.v)+3 <= s.out.max) {
		s.given[topic] = n
		p.TopicAlias = n
	}
}

// unused is a packet identifier that is in no flight. [MQTT-2.2.1-4]
func (s *session) unused() uint16 {
	for {
		s.rec.Next++
		if s.rec.Next != 0 && s.flights[s.rec.Next] == nil {
			return s.rec.Next
		}
	}
}

// land ends a flight; mu is held.
func (s *session) land(f *flight) {
	delete(s.flights, f.ID)
	if i := slices.Index(s.order, f); i == 0 { // as a rule
		s.order = s.order[1:]
	} else if i > 0 {
		s.order = slices.Delete(s.order, i, i+1)
	}
	if f.sent {
		s.quota++
	}
	if f.done != nil {
		f.done()
	}
	s.later()
	s.roomier()
}

// roomier wakes who waits for the queue to be shorter, or for a flight to end.
func (s *session) roomier() {
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// acknowledged takes PUBACK, PUBREC and PUBCOMP.
func (s *session) acknowledged(a *packet.Ack) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flights[a.ID]
	if f == nil {
		if a.Kind == packet.PUBREC {
			s.out.send(&packet.Ack{Kind: packet.PUBREL, ID: a.ID, Code: packet.PacketIdentifierNotFound})
		}
		return nil
	}
	switch {
	case a.Kind == packet.PUBACK && f.QoS == 1: // [MQTT-4.3.2-3]
		s.land(f)
	case a.Kind == packet.PUBREC && f.QoS == 2 && a.Code.Failed(): // [MQTT-4.4.0-2]
		s.land(f)
	case a.Kind == packet.PUBREC && f.QoS == 2: // [MQTT-4.3.3-3] [MQTT-4.3.3-4]
		f.Released = true
		release := &packet.Ack{Kind: packet.PUBREL, ID: f.ID} // a is the reader's
		s.persist(func() { s.out.send(release) })
		return nil
	case a.Kind == packet.PUBCOMP && f.Released: // [MQTT-4.3.3-5]
		s.land(f)
	default:
		return fault(packet.ProtocolError, "MQTT-4.3.3-3", a.Kind.String()+" of a message whose turn it is not")
	}
	s.pump()
	return nil
}

// again sends what the client has not acknowledged once more, no more at once than
// it takes, while its packets are being read. [MQTT-4.4.0-1]
func (s *session) again() {
	s.mu.Lock()
	s.greeted, s.repeating = true, true
	flights := slices.Clone(s.order)
	s.mu.Unlock()
	if len(flights) == 0 {
		s.goOn()
		return
	}
	s.a.running.Go(func() {
		var rest []*flight
		for _, f := range flights {
			s.mu.Lock()
			released := f.Released
			s.mu.Unlock()
			switch {
			case released: // [MQTT-4.9.0-3]
				s.out.send(&packet.Ack{Kind: packet.PUBREL, ID: f.ID})
			case len(rest) > 0 || !s.repeat(f):
				rest = append(rest, f)
			}
		}
		for _, f := range rest {
			for !s.repeat(f) {
				select {
				case <-s.room:
				case <-s.ctx.Done():
					return
				}
			}
		}
		s.goOn()
	})
}

// repeat sends a message once more, and reports whether it could.
func (s *session) repeat(f *flight) bool {
	s.mu.Lock()
	free, over := s.quota > 0, s.closed || s.flights[f.ID] != f
	s.mu.Unlock()
	if over || !free {
		return over
	}
	m, err := s.stored(f)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.flights[f.ID] != f: // it was acknowledged
	case errors.Is(err, jetstream.ErrMsgNotFound):
		s.land(f) // it expired
	case err != nil:
		s.expel(packet.ServerBusy, "a message cannot be read")
	default:
		f.sent = true
		s.quota--
		g := granted{retain: f.Retained}
		if !g.retain {
			g = s.grant(&m)
		} else if f.Sub > 0 {
			g.ids = []uint32{f.Sub}
		}
		p := &packet.Publish{ID: f.ID, Dup: true, SubscriptionIDs: g.ids, Message: packet.Message{QoS: f.QoS, Retain: g.retain}} // [MQTT-3.3.1-1]
		if !s.send(&m, p) {
			s.land(f)
		}
	}
	return true
}

// goOn sends what came while the client was away, and then what comes.
func (s *session) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repeating = false
	defer s.pump()
	for _, sub := range s.rec.Subs {
		if sub.QoS > 0 && s.resumed {
			s.catchUp(s.rec.Seq + 1)
			return
		}
	}
	s.reading = false
}

// stored reads the message of a flight.
func (s *session) stored(f *flight) (m message, err error) {
	ctx, cancel := context.WithTimeout(s.a.ctx, requestTimeout)
	defer cancel()
	stream, prefix := &s.a.messages, s.a.at.message
	if f.Retained {
		stream, prefix = &s.a.retained, s.a.at.retained
	}
	msg, err := stream.GetMsg(ctx, f.Seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		// A new leader may not have it yet.
		if info, infoErr := stream.Info(ctx); infoErr != nil || info.State.LastSeq < f.Seq {
			return m, errors.Join(errUnanswered, infoErr)
		}
	}
	if err != nil {
		return m, err
	}
	ms := unpack(strings.TrimPrefix(msg.Subject, prefix), f.Seq, &nats.Msg{Data: msg.Data, Header: msg.Header})
	if f.Part >= len(ms) {
		return m, jetstream.ErrMsgNotFound
	}
	return ms[f.Part], nil
}

// catchUp reads from the stream what the queue had no place for, or what came
// while the client was away; mu is held.
func (s *session) catchUp(from uint64) {
	s.reading, s.at, s.behind = true, from, 0
	s.a.running.Go(func() {
		for {
			next, err := s.readStream(from)
			s.mu.Lock()
			if err != nil && !s.closed {
				s.log("what waits for an MQTT client could not be read yet", "error", err)
				s.queued -= size(s.held)
				s.held, s.behind = nil, 0 // the next mark is after all of it
				s.mu.Unlock()
				select {
				case <-s.a.ctx.Done():
					return
				case <-time.After(time.Second):
				}
				from = next
				continue
			}
			if s.closed {
				s.mu.Unlock()
				return
			}
			s.caughtUp(next)
			s.pump()
			s.mu.Unlock()
			return
		}
	})
}

// caughtUp goes on with what was heard while all before next was read; mu is held.
func (s *session) caughtUp(next uint64) {
	s.reading, s.at = false, next
	if s.behind > 0 { // this node may have heard less than was read
		s.behind = max(s.behind, next)
	}
	s.queued -= size(s.held)
	for _, m := range s.held {
		if m.seq >= next && (s.behind == 0 || m.seq < s.behind) {
			s.at = m.seq + 1
			s.push(m)
		}
	}
	s.held = nil
}

// readStream queues the messages from seq on, up to a mark that it sets now. It
// returns what follows, or where to go on after an error.
func (s *session) readStream(seq uint64) (next uint64, err error) {
	a := s.a
	mark := s.a.at.mark + s.key
	end, err := a.storeNow(&a.messages, &nats.Msg{Subject: mark})
	if err != nil {
		return seq, err
	}
	s.mu.Lock()
	subjects := []string{mark}
	for filter, sub := range s.rec.Subs {
		if sub.QoS > 0 && sub.Group == "" {
			for _, subject := range mapping.Subjects(filter) {
				subjects = append(subjects, s.a.at.message+subject)
			}
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	config := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: seq, FilterSubjects: subjects}
	consumer, err := a.messages.OrderedConsumer(ctx, config)
	if refused(err, filtersOverlap) {
		config.FilterSubjects = []string{a.at.house + ">"}
		consumer, err = a.messages.OrderedConsumer(ctx, config)
	}
	if err != nil {
		return seq, err
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(maxQueue/2, a.p.window()), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return seq, err
	}
	defer messages.Stop()
	unblock := context.AfterFunc(ctx, messages.Stop)
	defer unblock()
	for {
		msg, err := messages.Next()
		if err != nil {
			return seq, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return seq, err
		}
		seq = meta.Sequence.Stream + 1
		if meta.Sequence.Stream >= end {
			if meta.Sequence.Stream == end {
				return seq, nil
			}
			return end + 1, nil
		}
		subject, ok := strings.CutPrefix(msg.Subject(), s.a.at.message)
		if !ok {
			continue
		}
		ms := unpack(subject, meta.Sequence.Stream, &nats.Msg{Data: msg.Data(), Header: msg.Headers()})
		s.mu.Lock()
		for (len(s.queue) >= maxQueue/2 || s.queued >= s.p.pending()) && !s.closed {
			s.mu.Unlock()
			select {
			case <-s.room:
			case <-ctx.Done():
				return seq, ctx.Err()
			}
			s.mu.Lock()
		}
		if meta.Sequence.Stream == s.rec.Seq+1 {
			ms = ms[min(s.rec.Part, len(ms)):] // the client had them
		}
		s.at = seq
		if len(ms) > 0 && s.grant(&ms[0]).any {
			s.push(ms...)
			s.pump()
		}
		s.mu.Unlock()
	}
}
