package mqtt

import (
	"encoding/binary"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// A pack is several messages of QoS 1 that are stored as one: of one client, to one
// topic, without properties. What a client publishes while something of it is being
// stored is packed, so that one that waits for each answer gets it as soon as ever,
// and one that does not is not slowed down by what a message costs in the engine.
type pack struct {
	subject string
	data    []byte // each payload after its length
	answers []*answer
	under   int // packs of the client that are being stored
	last    int // bytes of the last one
}

const (
	// headerPack is how many messages a pack has. One of one has no such header.
	headerPack = "Mqtt-Pack"
	// maxPack and packBytes bound a pack. A larger message is alone.
	maxPack, packBytes = 128, 64 << 10
)

// packable reports whether p can be in a pack.
func packable(p *packet.Publish) bool {
	return p.QoS == 1 && !p.Retain && !p.Expires && p.Format == packet.Unstated && p.ContentType == nil &&
		p.ResponseTopic == nil && p.CorrelationData == nil && len(p.UserProperties) == 0
}

// packs reports whether there are packs of what is published to subject. A group is
// given a pack as a whole: who has half of it and leaves has another one get all of it.
func (a *account) packs(subject string) bool {
	groups := a.groups.Load()
	return groups != nil && (len(groups.Allow) == 0 || !groups.Allows(a.at.message+subject))
}

// message is k as it is stored, by what begins its subject.
func (k *pack) message(prefix, client string) *nats.Msg {
	m := packet.Message{Payload: k.data, QoS: 1}
	if len(k.answers) == 1 {
		_, n := binary.Uvarint(k.data)
		m.Payload = k.data[n:]
	}
	msg := encode(prefix+k.subject, client, &m)
	if len(k.answers) > 1 {
		msg.Header.Set(headerPack, strconv.Itoa(len(k.answers)))
	}
	return msg
}

// gather stores p, with what comes until it can.
func (s *session) gather(subject string, p *packet.Publish, reply *answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return // its client publishes it again
	}
	k := &s.pack
	if subject != k.subject || len(k.data)+len(p.Payload) > packBytes {
		s.storePack()
	}
	if k.data == nil {
		k.data = make([]byte, 0, max(k.last, len(p.Payload)+binary.MaxVarintLen32))
	}
	k.subject = subject
	k.data = append(binary.AppendUvarint(k.data, uint64(len(p.Payload))), p.Payload...)
	k.answers = append(k.answers, reply)
	if k.under == 0 || len(k.answers) == maxPack || !s.a.packs(subject) {
		s.storePack()
	}
}

// storePack stores what was gathered; mu is held.
func (s *session) storePack() {
	k := &s.pack
	if len(k.answers) == 0 {
		return
	}
	msg, answers := k.message(s.a.at.message, s.key), k.answers
	k.last, k.data, k.answers = len(k.data), nil, nil
	k.under++
	s.a.storeMore(&s.a.messages, msg, s, func(_ uint64, _ bool, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		k.under--
		for _, reply := range answers {
			s.settled(reply, err)
		}
		if k.under == 0 && !s.closed {
			s.storePack()
		}
	})
}

// unpack returns the messages of what is stored; none if it is no pack and cannot be
// a topic's.
func unpack(subject string, seq uint64, msg *nats.Msg) []message {
	m, ok := decode(subject, msg)
	if !ok {
		return nil
	}
	m.seq = seq
	if len(msg.Header[headerPack]) == 0 {
		return []message{m}
	}
	most, err := strconv.Atoi(msg.Header[headerPack][0])
	if err != nil || most < 1 || most > maxPack {
		return nil
	}
	ms := make([]message, 0, most)
	for rest := m.payload; len(rest) > 0; {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) || len(ms) == most {
			return nil
		}
		end := n + int(size)
		m.payload, m.part = rest[n:end:end], len(ms)
		ms, rest = append(ms, m), rest[end:]
	}
	return ms
}
