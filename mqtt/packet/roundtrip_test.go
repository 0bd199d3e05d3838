package packet

import (
	"testing"

	"pgregory.net/rapid"
)

// maybe is a pointer to what is drawn, or nil.
func maybe[T any](t *rapid.T, label string, g *rapid.Generator[T]) *T {
	if rapid.Bool().Draw(t, "has "+label) {
		return new(g.Draw(t, label))
	}
	return nil
}

func text(t *rapid.T, label string) string {
	return rapid.StringMatching(`[^\x00]{0,6}`).Draw(t, label)
}

func name(t *rapid.T, label string) string { return "a" + text(t, label) }

// data is what is drawn, or nil.
func data(t *rapid.T, label string) []byte {
	if s := maybe(t, label, rapid.SliceOfN(rapid.Byte(), 0, 300)); s != nil {
		return append([]byte{}, *s...)
	}
	return nil
}

func optionalText(t *rapid.T, label string) []byte {
	if rapid.Bool().Draw(t, "has "+label) {
		return append([]byte{}, text(t, label)...)
	}
	return nil
}

func topicName(t *rapid.T, label string) []byte {
	return []byte(rapid.StringMatching(`[^\x00+#/]{0,3}/[^\x00+#/]{0,3}`).Draw(t, label))
}

func users(t *rapid.T) []Pair {
	var pairs []Pair
	for range rapid.IntRange(0, 3).Draw(t, "pairs") {
		pairs = append(pairs, Pair{Name: append([]byte{}, text(t, "name")...), Value: append([]byte{}, text(t, "value")...)})
	}
	return pairs
}

func code(t *rapid.T, kind Type, s Side) Code {
	return rapid.Custom(func(t *rapid.T) Code { return Code(rapid.Byte().Draw(t, "code")) }).
		Filter(func(c Code) bool { return c.of(kind, s) }).Draw(t, "code")
}

func message(t *rapid.T, v Version) Message {
	m := Message{
		Topic: topicName(t, "topic"), Payload: append([]byte{}, data(t, "payload")...),
		QoS: QoS(rapid.IntRange(0, 2).Draw(t, "qos")), Retain: rapid.Bool().Draw(t, "retain"),
	}
	if v != V5 {
		return m
	}
	m.Format = Format(rapid.IntRange(0, 2).Draw(t, "format"))
	m.ContentType, m.CorrelationData, m.UserProperties = optionalText(t, "content type"), data(t, "correlation"), users(t)
	if m.Expires = rapid.Bool().Draw(t, "expires"); m.Expires {
		m.Expiry = rapid.Uint32().Draw(t, "expiry")
	}
	if rapid.Bool().Draw(t, "has response topic") {
		m.ResponseTopic = topicName(t, "response topic")
	}
	return m
}

func connect(t *rapid.T, v Version) *Connect {
	p := &Connect{
		Version: v, CleanStart: rapid.Bool().Draw(t, "clean"), KeepAlive: rapid.Uint16().Draw(t, "keep alive"), ClientID: text(t, "id"),
		Username: maybe(t, "user", rapid.StringMatching(`[^\x00]{0,6}`)), Password: data(t, "password"),
	}
	if rapid.Bool().Draw(t, "has will") {
		p.Will = &Will{Message: message(t, v)}
	}
	if v != V5 {
		if p.Username == nil {
			p.Password = nil
		}
		return p
	}
	if p.Will != nil {
		p.Will.Delay = rapid.Uint32().Draw(t, "delay")
	}
	p.SessionExpiry, p.ReceiveMaximum = rapid.Uint32().Draw(t, "expiry"), rapid.Uint16().Draw(t, "receive")
	p.MaximumPacketSize, p.TopicAliasMaximum = rapid.Uint32().Draw(t, "size"), rapid.Uint16().Draw(t, "aliases")
	p.RequestResponse, p.NoProblemInformation = rapid.Bool().Draw(t, "response"), rapid.Bool().Draw(t, "problem")
	p.UserProperties = users(t)
	if rapid.Bool().Draw(t, "auth") {
		p.AuthMethod, p.AuthData = name(t, "method"), data(t, "data")
	}
	return p
}

func connack(t *rapid.T, v Version) *Connack {
	p := &Connack{Code: code(t, CONNACK, Server)}
	if v != V5 {
		p.Code = rapid.SampledFrom([]Code{Success, UnsupportedProtocolVersion, ClientIdentifierNotValid, ServerUnavailable,
			BadUserNameOrPassword, NotAuthorized}).Draw(t, "old code")
	}
	p.SessionPresent = p.Code == Success && rapid.Bool().Draw(t, "present")
	if v != V5 {
		return p
	}
	p.SessionExpiry, p.ReceiveMaximum = maybe(t, "expiry", rapid.Uint32()), rapid.Uint16().Draw(t, "receive")
	p.MaximumQoS = maybe(t, "qos", rapid.SampledFrom([]QoS{0, 1}))
	p.NoRetain, p.NoShared = rapid.Bool().Draw(t, "retain"), rapid.Bool().Draw(t, "shared")
	p.NoWildcards, p.NoSubscriptionIDs = rapid.Bool().Draw(t, "wildcards"), rapid.Bool().Draw(t, "ids")
	p.MaximumPacketSize, p.TopicAliasMaximum = rapid.Uint32().Draw(t, "size"), rapid.Uint16().Draw(t, "aliases")
	p.ServerKeepAlive, p.UserProperties = maybe(t, "keep alive", rapid.Uint16()), users(t)
	p.AssignedClientID, p.ReasonString, p.ResponseInfo, p.ServerReference = text(t, "id"), text(t, "reason"), text(t, "info"), text(t, "server")
	p.AuthMethod, p.AuthData = text(t, "method"), data(t, "data")
	return p
}

func subscribe(t *rapid.T, v Version) *Subscribe {
	p := &Subscribe{ID: rapid.Uint16Min(1).Draw(t, "id")}
	if v == V5 {
		p.SubscriptionID, p.UserProperties = rapid.Uint32Range(0, maxRemaining).Draw(t, "subscription"), users(t)
	}
	for range rapid.IntRange(1, 4).Draw(t, "filters") {
		s := Subscription{Filter: filter(t), QoS: QoS(rapid.IntRange(0, 2).Draw(t, "qos"))}
		if v == V5 {
			group, _, err := CheckFilter(s.Filter)
			s.NoLocal = err == nil && group == "" && rapid.Bool().Draw(t, "local")
			s.RetainAsPublished, s.RetainHandling = rapid.Bool().Draw(t, "as"), RetainHandling(rapid.IntRange(0, 2).Draw(t, "handling"))
		}
		p.Subscriptions = append(p.Subscriptions, s)
	}
	return p
}

func filter(t *rapid.T) string {
	return rapid.StringMatching(`(\$share/[a-z]{1,3}/)?([a-zé.* ]{0,3}/|\+/){0,3}(\+|#|[a-z]{1,3})`).Draw(t, "filter")
}

// draw is any packet that side s sends in version v.
func draw(t *rapid.T, v Version, s Side) Packet {
	kind := rapid.Custom(func(t *rapid.T) Type { return Type(rapid.IntRange(1, 15).Draw(t, "type")) }).
		Filter(func(k Type) bool { return k.from(s, v) && (k != AUTH || v == V5) }).Draw(t, "type")
	id := rapid.Uint16Min(1).Draw(t, "id")
	var reason string
	var pairs []Pair
	if v == V5 {
		reason, pairs = text(t, "reason"), users(t)
	}
	switch kind {
	case CONNECT:
		return connect(t, v)
	case CONNACK:
		return connack(t, v)
	case PUBLISH:
		p := &Publish{Message: message(t, v)}
		if p.QoS > 0 {
			p.ID, p.Dup = id, rapid.Bool().Draw(t, "dup")
		}
		if v == V5 {
			p.TopicAlias = rapid.Uint16().Draw(t, "alias")
		}
		if v == V5 && s == Server && rapid.Bool().Draw(t, "ids") {
			p.SubscriptionIDs = rapid.SliceOfN(rapid.Uint32Range(1, maxRemaining), 1, 3).Draw(t, "subscriptions")
		}
		return p
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		p := &Ack{Kind: kind, ID: id, ReasonString: reason, UserProperties: pairs}
		if v == V5 {
			p.Code = code(t, kind, s)
		}
		return p
	case SUBSCRIBE:
		return subscribe(t, v)
	case SUBACK:
		if v != V5 {
			return &Suback{ID: id, Codes: rapid.SliceOfN(rapid.SampledFrom([]Code{0, 1, 2, UnspecifiedError}), 1, 4).Draw(t, "codes")}
		}
		return &Suback{ID: id, ReasonString: reason, UserProperties: pairs, Codes: []Code{code(t, kind, s), code(t, kind, s)}}
	case UNSUBSCRIBE:
		return &Unsubscribe{ID: id, UserProperties: pairs, Filters: []string{filter(t), filter(t)}}
	case UNSUBACK:
		if v != V5 {
			return &Unsuback{ID: id}
		}
		return &Unsuback{ID: id, ReasonString: reason, UserProperties: pairs, Codes: []Code{code(t, kind, s), code(t, kind, s)}}
	case PINGREQ:
		return &Pingreq{}
	case PINGRESP:
		return &Pingresp{}
	case DISCONNECT:
		if v != V5 {
			return &Disconnect{}
		}
		p := &Disconnect{Code: code(t, kind, s), ReasonString: reason, UserProperties: pairs, ServerReference: text(t, "server")}
		if s == Client {
			p.SessionExpiry = maybe(t, "expiry", rapid.Uint32())
		}
		return p
	default:
		return &Auth{Code: code(t, kind, s), Method: name(t, "method"), Data: data(t, "data"), ReasonString: reason, UserProperties: pairs}
	}
}

// TestRoundTrip writes random packets and reads them. Sizes are those that were
// told before.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v, s := rapid.SampledFrom([]Version{V311, V5}).Draw(t, "version"), rapid.SampledFrom([]Side{Client, Server}).Draw(t, "side")
		p := draw(t, v, s)
		again(t, p, v, s)
		if m, ok := p.(*Publish); ok {
			if out, err := m.Append(nil, v, 0); err != nil || len(out) != m.Size(v) {
				t.Errorf("%s has %d bytes and %d were told: %v", describe(m), len(out), m.Size(v), err)
			}
		}
	})
}
