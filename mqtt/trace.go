package mqtt

import (
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// A Passage is a message with a trace context that came from an MQTT client, or went to
// one. The context is in the message's user property, which travels unaltered, and in the
// header of that name for NATS clients.
type Passage struct {
	// Out says that it went to the client.
	Out            bool
	Account, Topic string
	// Parent is the user property traceparent, and State tracestate, as the client that
	// published wrote them.
	Parent, State string
	Began, Ended  time.Time
	QoS           int
	// Refused says that the client may not publish it.
	Refused bool
}

// The user properties of W3C's Trace Context.
const traceParent, traceState = "traceparent", "tracestate"

// traced are those among user properties; "" if there are none.
func traced(user []packet.Pair) (parent, state string) {
	for _, pair := range user {
		switch string(pair.Name) {
		case traceParent:
			parent = string(pair.Value)
		case traceState:
			state = string(pair.Value)
		}
	}
	return parent, state
}

// came tells of a message that came at began.
func (s *session) came(p *packet.Publish, topic string, began time.Time, refused bool) {
	if parent, state := traced(p.UserProperties); parent != "" {
		s.p.Passed(Passage{Account: s.login.Principal.Account, Topic: topic, Parent: parent, State: state, Began: began, Ended: time.Now(), QoS: int(p.QoS), Refused: refused})
	}
}

// went tells of a message that goes out now.
func (s *session) went(m *message, qos packet.QoS) {
	if parent, state := traced(m.user); parent != "" {
		now := time.Now()
		s.p.Passed(Passage{Out: true, Account: s.login.Principal.Account, Topic: m.topic, Parent: parent, State: state, Began: now, Ended: now, QoS: int(qos)})
	}
}
