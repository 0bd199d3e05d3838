package packet

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a password or the like, which no formatting and no log shows.
type Secret []byte

// String is the same for all secrets.
func (Secret) String() string { return "[secret]" }

// Format writes String, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText is String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue is String.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Connect is CONNECT.
type Connect struct {
	Version Version
	// CleanStart is Clean Session in MQTT 3.1.1.
	CleanStart bool
	// KeepAlive is in seconds; 0 turns it off.
	KeepAlive uint16
	// ClientID may be empty. In MQTT 3.1.1 it is then the server's to refuse without
	// CleanStart.
	ClientID string
	Will     *Will
	// Username and Password are nil if they are absent.
	Username *string
	Password Secret

	// SessionExpiry is in seconds; 0xFFFFFFFF is never.
	SessionExpiry uint32
	// ReceiveMaximum is 0 if it is absent, which means 65,535.
	ReceiveMaximum uint16
	// MaximumPacketSize is 0 if it is absent.
	MaximumPacketSize uint32
	TopicAliasMaximum uint16
	// RequestResponse asks for Response Information.
	RequestResponse bool
	// NoProblemInformation is Request Problem Information 0.
	NoProblemInformation bool
	// AuthMethod is empty if it is absent.
	AuthMethod string
	// AuthData is nil if it is absent.
	AuthData       Secret
	UserProperties []Pair
}

// Will is the will in a CONNECT.
type Will struct {
	Message
	// Delay is in seconds.
	Delay uint32
}

// The connect flags.
const (
	connectReserved   = 1 << 0
	connectCleanStart = 1 << 1
	connectWill       = 1 << 2
	connectWillQoS    = 3 << 3
	connectWillRetain = 1 << 5
	connectPassword   = 1 << 6
	connectUsername   = 1 << 7
	shiftWillQoS      = 3
)

// Type is CONNECT.
func (*Connect) Type() Type { return CONNECT }

func (c *cursor) connect() *Connect {
	c.protocol()
	flags := c.byte("connect flags")
	c.judgeConnectFlags(flags)
	p := &Connect{Version: c.version, CleanStart: flags&connectCleanStart != 0}
	p.KeepAlive = c.two("keep alive")
	for c.open(); c.next(); {
		c.connectProperty(p)
	}
	if p.AuthData != nil && p.AuthMethod == "" {
		c.fail(ProtocolError, "[MQTT 3.1.2.11.10]", "with Authentication Data but no Authentication Method")
	}
	c.rule = "[MQTT-3.1.3-3]"
	p.ClientID = c.str("client identifier") // [MQTT-3.1.3-1] [MQTT-3.1.3-4]
	if flags&connectWill != 0 {
		p.Will = c.will(flags)
	}
	if flags&connectUsername != 0 {
		c.rule = "[MQTT-3.1.2-17]"
		p.Username = new(c.str("user name")) // [MQTT-3.1.3-12]
	}
	if flags&connectPassword != 0 {
		c.rule = "[MQTT-3.1.2-19]"
		p.Password = c.data("password")
	}
	switch { // of what is left
	case flags&connectUsername == 0 && flags&connectPassword == 0:
		c.rule = "[MQTT-3.1.2-16]"
	case flags&connectPassword == 0:
		c.rule = "[MQTT-3.1.2-18]"
	default:
		c.rule = "[MQTT-3.1.4-1]"
	}
	return p
}

// protocol reads the protocol's name and level. It sets the version, also when it
// fails, to that of the answer which the client understands.
func (c *cursor) protocol() {
	c.rule = "[MQTT-3.1.4-1]"
	name := string(c.raw("protocol name"))
	level := c.byte("protocol level")
	switch {
	case c.err != nil:
	case name == "MQTT" && (level == byte(V311) || level == byte(V5)):
		c.version = Version(level)
	case name == "MQTT":
		c.version = V5
		// The highest bit is how a bridge says that it is one.
		if level&0x7F < byte(V5) {
			c.version = V311
		}
		c.fail(UnsupportedProtocolVersion, "[MQTT-3.1.2-2]", "with protocol level %d, where 4 and 5 are known", level)
	case name == "MQIsdp":
		c.version = V311
		c.fail(UnsupportedProtocolVersion, "[MQTT-3.1.2-1]", "of MQTT 3.1, where 3.1.1 and 5.0 are known")
	default:
		c.fail(UnsupportedProtocolVersion, "[MQTT-3.1.2-1]", "with another protocol name than MQTT")
	}
}

func (c *cursor) judgeConnectFlags(flags byte) {
	switch {
	case c.err != nil:
	case flags&connectReserved != 0:
		c.fail(MalformedPacket, "[MQTT-3.1.2-3]", "with the reserved connect flag")
	case flags&connectWill == 0 && flags&connectWillQoS != 0:
		c.fail(MalformedPacket, "[MQTT-3.1.2-11]", "with Will QoS but no will")
	case flags&connectWill == 0 && flags&connectWillRetain != 0:
		c.fail(MalformedPacket, "[MQTT-3.1.2-13]", "with Will Retain but no will")
	case flags&connectWillQoS == connectWillQoS:
		c.fail(MalformedPacket, "[MQTT-3.1.2-12]", "with Will QoS 3")
	case c.version == V311 && flags&connectPassword != 0 && flags&connectUsername == 0:
		c.fail(MalformedPacket, "[MQTT311-3.1.2-22]", "with a password but no user name")
	}
}

func (c *cursor) connectProperty(p *Connect) {
	switch c.id {
	case propSessionExpiry:
		p.SessionExpiry = c.four("Session Expiry Interval")
	case propReceiveMaximum:
		p.ReceiveMaximum = c.someTwo("Receive Maximum", "[MQTT 3.1.2.11.3]")
	case propMaximumPacketSize:
		p.MaximumPacketSize = c.someFour("Maximum Packet Size", "[MQTT 3.1.2.11.4]")
	case propTopicAliasMaximum:
		p.TopicAliasMaximum = c.two("Topic Alias Maximum")
	case propRequestResponseInfo:
		p.RequestResponse = c.flag("Request Response Information", "[MQTT 3.1.2.11.6]")
	case propRequestProblemInfo:
		p.NoProblemInformation = !c.flag("Request Problem Information", "[MQTT 3.1.2.11.7]")
	case propUser:
		p.UserProperties = c.pair(p.UserProperties)
	case propAuthMethod:
		p.AuthMethod = c.authMethod()
	case propAuthData:
		p.AuthData = c.data("Authentication Data")
	default:
		c.stranger()
	}
}

func (c *cursor) will(flags byte) *Will {
	c.rule = "[MQTT-3.1.2-9]"
	w := &Will{}
	w.QoS, w.Retain = QoS(flags&connectWillQoS>>shiftWillQoS), flags&connectWillRetain != 0
	for c.open(); c.next(); {
		if c.id == propWillDelay {
			w.Delay = c.four("Will Delay Interval")
			continue
		}
		c.message(&w.Message)
	}
	w.Topic = c.topic("will topic", false) // [MQTT-3.1.3-11]
	w.Payload = c.data("will payload")
	return w
}

// Append is Packet's, in the packet's own Version.
func (p *Connect) Append(dst []byte, _ Version, max int) ([]byte, error) {
	return assemble(dst, p.Version, max, byte(CONNECT)<<4, p)
}

func (p *Connect) write(w *writer) {
	w.text("MQTT")
	w.byte(byte(w.v))
	w.byte(p.flags())
	w.two(p.KeepAlive)
	if w.v == V5 {
		at := len(w.b)
		w.propFour(propSessionExpiry, p.SessionExpiry)
		w.propTwo(propReceiveMaximum, p.ReceiveMaximum)
		w.propFour(propMaximumPacketSize, p.MaximumPacketSize)
		w.propTwo(propTopicAliasMaximum, p.TopicAliasMaximum)
		w.propSet(propRequestResponseInfo, p.RequestResponse, true)
		w.propSet(propRequestProblemInfo, p.NoProblemInformation, false)
		w.users(p.UserProperties)
		w.propText(propAuthMethod, p.AuthMethod)
		w.propData(propAuthData, p.AuthData)
		w.measure(at)
	}
	w.text(p.ClientID)
	if p.Will != nil {
		if w.v == V5 {
			at := len(w.b)
			w.propFour(propWillDelay, p.Will.Delay)
			w.message(&p.Will.Message)
			w.measure(at)
		}
		w.data(p.Will.Topic)
		w.data(p.Will.Payload)
	}
	if p.Username != nil {
		w.text(*p.Username)
	}
	if p.Password != nil {
		w.data(p.Password)
	}
}

func (p *Connect) flags() byte {
	var flags byte
	if p.CleanStart {
		flags |= connectCleanStart
	}
	if p.Will != nil {
		flags |= connectWill | byte(p.Will.QoS)<<shiftWillQoS
		if p.Will.Retain {
			flags |= connectWillRetain
		}
	}
	if p.Username != nil {
		flags |= connectUsername
	}
	if p.Password != nil {
		flags |= connectPassword
	}
	return flags
}
