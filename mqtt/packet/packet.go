// Package packet reads and writes the packets of MQTT 3.1.1 and 5.0, and judges
// them: what a packet that it returns breaks can only be seen by who knows more
// than that packet. It is pure: it has no socket, no goroutine and no clock.
//
// A packet is a pointer to a struct of its name: *Connect, *Connack, *Publish,
// *Ack (PUBACK, PUBREC, PUBREL and PUBCOMP), *Subscribe, *Suback, *Unsubscribe,
// *Unsuback, *Pingreq, *Pingresp, *Disconnect and *Auth. A property is a field of
// it. The zero value of a field says that the property is absent; where absence
// means something else than zero, the field is a pointer or has another beside it.
// A field that MQTT 3.1.1 does not have is zero when read, and not written.
//
// A Reader takes packets out of a stream, many out of one read, and the ones that
// there are most of without allocating. Append writes a packet, within the size
// that its receiver takes:
//
//	r := packet.NewReader(conn, packet.Client, 4096)
//	for {
//		p, err := r.Next() // *packet.Connect is the first, and sets r.Version
//		…
//		switch p := p.(type) {
//		case *packet.Publish:
//			puback := packet.Ack{Kind: packet.PUBACK, ID: p.ID}
//			out, err = puback.Append(out, r.Version, maximum)
//		}
//		if r.Buffered() == 0 {
//			// Next would read: write out first.
//		}
//	}
//
// What a peer did wrong is an *Error. It has the reason code to answer with and the
// clause that was broken. Clauses are cited with the numbers of MQTT 5.0, such as
// [MQTT-3.6.1-1], by their section where they have no number, such as
// [MQTT 3.8.2.1.2], and as [MQTT311-3.1.2-22] where only 3.1.1 has the rule.
package packet

import "cmp"

// Version is a protocol version, as the level in CONNECT has it.
type Version byte

// The versions. 0 is the one of a connection that has not sent CONNECT yet.
const (
	V311 Version = 4
	V5   Version = 5
)

// String is the version's number, such as "3.1.1".
func (v Version) String() string {
	switch v {
	case V311:
		return "3.1.1"
	case V5:
		return "5.0"
	}
	return "unknown"
}

// Side is an end of a connection.
type Side byte

// The sides.
const (
	Client Side = iota
	Server
)

// String is "client" or "server".
func (s Side) String() string {
	if s == Server {
		return "server"
	}
	return "client"
}

// Type is a packet's type, as its first byte has it.
type Type byte

// The types, spelled as the specification does.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

// String is the type's name.
func (t Type) String() string {
	names := [...]string{"packet type 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
		"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}
	if int(t) < len(names) {
		return names[t]
	}
	return "unknown packet type"
}

// from says whether side s sends packets of type t in version v.
func (t Type) from(s Side, v Version) bool {
	switch t {
	case CONNECT, SUBSCRIBE, UNSUBSCRIBE, PINGREQ:
		return s == Client
	case CONNACK, SUBACK, UNSUBACK, PINGRESP:
		return s == Server
	case DISCONNECT:
		return s == Client || v == V5
	}
	return true
}

// QoS is a quality of service: 0 at most once, 1 at least once, 2 exactly once.
type QoS byte

// A Packet is one of the structs that the package comment names.
type Packet interface {
	// Type is the packet's type.
	Type() Type
	// Append appends the packet to dst as version v has it. What is larger than
	// max bytes is not written: the error is ErrSize and dst is returned as it
	// was. An answer sheds its User Properties and then its Reason String before
	// that. max is the Maximum Packet Size of the receiver; 0 is the largest of the
	// protocol. ErrLong is of a text that no packet can
	// have; a Connack has one more error. Append does not judge: it writes what a
	// peer would refuse.
	Append(dst []byte, v Version, max int) ([]byte, error)
}

// Limits bound what is in a packet, beside its size: every subscriber gets the
// User Properties of a message, and every filter is work. Zero fields have the
// defaults.
type Limits struct {
	// UserProperties is how many a packet may have, 64 by default.
	UserProperties int
	// UserPropertyBytes is the size of all their names and values in a packet,
	// 16 KiB by default.
	UserPropertyBytes int
	// Filters is how many a SUBSCRIBE or UNSUBSCRIBE may have, 256 by default.
	Filters int
	// Levels is how many a topic name or filter may have, 128 by default.
	Levels int
}

func (l Limits) userProperties() int    { return cmp.Or(l.UserProperties, 64) }
func (l Limits) userPropertyBytes() int { return cmp.Or(l.UserPropertyBytes, 16<<10) }
func (l Limits) filters() int           { return cmp.Or(l.Filters, 256) }
func (l Limits) levels() int            { return cmp.Or(l.Levels, 128) }

// Decode is the packet that side from sent in version v, given its first byte and
// what follows the length; v is 0 before CONNECT. A *Publish has its texts and its
// payload in body; no other packet keeps it. The limits are the default ones. Any
// error is an *Error. It is safe for concurrent use.
func Decode(first byte, body []byte, v Version, from Side) (Packet, error) {
	c := cursor{version: v, from: from}
	c.begin(first)
	return c.decode(body)
}

// begin judges the first byte of a packet, and is ready for its body.
func (c *cursor) begin(first byte) {
	c.kind, c.flags = Type(first>>4), first&0x0F
	c.pairs, c.pairBytes, c.rule, c.err = 0, 0, "", nil
	switch {
	case c.version == 0 && c.kind != CONNECT:
		c.fail(ProtocolError, "[MQTT-3.1.0-1]", "before CONNECT")
	case c.version != 0 && c.kind == CONNECT && c.from == Client:
		c.fail(ProtocolError, "[MQTT-3.1.0-2]", "after CONNECT")
	case c.kind == 0:
		c.fail(MalformedPacket, "[MQTT 2.1.2]", "is reserved")
	case c.kind == AUTH && c.version == V311:
		c.fail(MalformedPacket, "[MQTT311-2.2.2-2]", "is not of MQTT 3.1.1")
	case !c.kind.from(c.from, c.version):
		c.fail(ProtocolError, "[MQTT-4.13.1-1]", "from a %s", c.from)
	default:
		c.judgeFlags()
	}
}

func (c *cursor) judgeFlags() {
	want, clause := byte(0), "[MQTT-2.1.3-1]"
	switch c.kind {
	case PUBLISH:
		switch {
		case c.flags&flagQoS == flagQoS:
			c.fail(MalformedPacket, "[MQTT-3.3.1-4]", "with QoS 3")
		case c.flags&flagDup != 0 && c.flags&flagQoS == 0:
			c.fail(MalformedPacket, "[MQTT-3.3.1-2]", "with DUP and QoS 0") // [MQTT-4.3.1-1]
		}
		return
	case PUBREL:
		want, clause = 2, "[MQTT-3.6.1-1]"
	case SUBSCRIBE:
		want, clause = 2, "[MQTT-3.8.1-1]"
	case UNSUBSCRIBE:
		want, clause = 2, "[MQTT-3.10.1-1]"
	case DISCONNECT:
		clause = "[MQTT-3.14.1-1]"
	case AUTH:
		clause = "[MQTT-3.15.1-1]"
	}
	if c.flags != want {
		c.fail(MalformedPacket, clause, "with flags %04b", c.flags)
	}
}

// decode is the packet with this body, after begin.
func (c *cursor) decode(body []byte) (Packet, error) {
	if c.err != nil {
		return nil, c.err
	}
	c.b = body
	p := c.packet()
	if c.err == nil && len(c.b) > 0 {
		c.fail(MalformedPacket, cmp.Or(c.rule, "[MQTT-4.13.1-1]"), "with %d bytes after its end", len(c.b))
	}
	if c.err != nil {
		return nil, c.err
	}
	return p, nil
}

func (c *cursor) packet() Packet {
	switch c.kind {
	case CONNECT:
		return c.connect()
	case CONNACK:
		return c.connack()
	case PUBLISH:
		return c.readPublish()
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		return c.readAck()
	case SUBSCRIBE:
		return c.subscribe()
	case SUBACK:
		return c.suback()
	case UNSUBSCRIBE:
		return c.unsubscribe()
	case UNSUBACK:
		return c.unsuback()
	case PINGREQ:
		return &Pingreq{}
	case PINGRESP:
		return &Pingresp{}
	case DISCONNECT:
		return c.disconnect()
	default:
		return c.auth()
	}
}
