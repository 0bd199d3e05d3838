package packet

import (
	"fmt"
	"slices"
)

// Code is a reason code. Codes from 0x80 are failures. The return codes of MQTT
// 3.1.1 are translated when they are read and written.
type Code byte

// The reason codes, named as the specification does.
const (
	Success                             Code = 0x00
	NormalDisconnection                 Code = 0x00
	GrantedQoS0                         Code = 0x00
	GrantedQoS1                         Code = 0x01
	GrantedQoS2                         Code = 0x02
	DisconnectWithWill                  Code = 0x04
	NoMatchingSubscribers               Code = 0x10
	NoSubscriptionExisted               Code = 0x11
	ContinueAuthentication              Code = 0x18
	Reauthenticate                      Code = 0x19
	UnspecifiedError                    Code = 0x80
	MalformedPacket                     Code = 0x81
	ProtocolError                       Code = 0x82
	ImplementationSpecificError         Code = 0x83
	UnsupportedProtocolVersion          Code = 0x84
	ClientIdentifierNotValid            Code = 0x85
	BadUserNameOrPassword               Code = 0x86
	NotAuthorized                       Code = 0x87
	ServerUnavailable                   Code = 0x88
	ServerBusy                          Code = 0x89
	Banned                              Code = 0x8A
	ServerShuttingDown                  Code = 0x8B
	BadAuthenticationMethod             Code = 0x8C
	KeepAliveTimeout                    Code = 0x8D
	SessionTakenOver                    Code = 0x8E
	TopicFilterInvalid                  Code = 0x8F
	TopicNameInvalid                    Code = 0x90
	PacketIdentifierInUse               Code = 0x91
	PacketIdentifierNotFound            Code = 0x92
	ReceiveMaximumExceeded              Code = 0x93
	TopicAliasInvalid                   Code = 0x94
	PacketTooLarge                      Code = 0x95
	MessageRateTooHigh                  Code = 0x96
	QuotaExceeded                       Code = 0x97
	AdministrativeAction                Code = 0x98
	PayloadFormatInvalid                Code = 0x99
	RetainNotSupported                  Code = 0x9A
	QoSNotSupported                     Code = 0x9B
	UseAnotherServer                    Code = 0x9C
	ServerMoved                         Code = 0x9D
	SharedSubscriptionsNotSupported     Code = 0x9E
	ConnectionRateExceeded              Code = 0x9F
	MaximumConnectTime                  Code = 0xA0
	SubscriptionIdentifiersNotSupported Code = 0xA1
	WildcardSubscriptionsNotSupported   Code = 0xA2
)

// String is the code in words, such as "malformed packet".
func (c Code) String() string {
	switch {
	case c <= GrantedQoS2:
		return [...]string{"success", "granted QoS 1", "granted QoS 2"}[c]
	case c >= UnspecifiedError && c <= WildcardSubscriptionsNotSupported:
		return [...]string{"unspecified error", "malformed packet", "protocol error", "implementation specific error",
			"unsupported protocol version", "client identifier not valid", "bad user name or password", "not authorized",
			"server unavailable", "server busy", "banned", "server shutting down", "bad authentication method",
			"keep alive timeout", "session taken over", "topic filter invalid", "topic name invalid",
			"packet identifier in use", "packet identifier not found", "receive maximum exceeded", "topic alias invalid",
			"packet too large", "message rate too high", "quota exceeded", "administrative action",
			"payload format invalid", "retain not supported", "QoS not supported", "use another server", "server moved",
			"shared subscriptions not supported", "connection rate exceeded", "maximum connect time",
			"subscription identifiers not supported", "wildcard subscriptions not supported"}[c-UnspecifiedError]
	}
	switch c {
	case DisconnectWithWill:
		return "disconnect with will"
	case NoMatchingSubscribers:
		return "no matching subscribers"
	case NoSubscriptionExisted:
		return "no subscription existed"
	case ContinueAuthentication:
		return "continue authentication"
	case Reauthenticate:
		return "re-authenticate"
	}
	return fmt.Sprintf("reason code 0x%02X", byte(c))
}

// Failed says that the code is of a failure, which in CONNACK and DISCONNECT ends
// the connection [MQTT-4.13.2-1].
func (c Code) Failed() bool { return c >= UnspecifiedError }

// code reads a reason code of this packet, from the side that sent it.
func (c *cursor) code(clause string) Code {
	code := Code(c.byte("reason code"))
	if !code.of(c.kind, c.from) {
		c.fail(ProtocolError, clause, "with reason code 0x%02X from a %s", byte(code), c.from)
	}
	return code
}

// of says whether side s may send c in a packet of type t of MQTT 5.0.
func (c Code) of(t Type, s Side) bool {
	switch t {
	case CONNACK:
		return c == Success || c >= UnspecifiedError && c <= Banned || slices.Contains([]Code{BadAuthenticationMethod, TopicNameInvalid,
			PacketTooLarge, QuotaExceeded, PayloadFormatInvalid, RetainNotSupported, QoSNotSupported, UseAnotherServer, ServerMoved,
			ConnectionRateExceeded}, c)
	case PUBACK, PUBREC:
		return slices.Contains([]Code{Success, NoMatchingSubscribers, UnspecifiedError, ImplementationSpecificError, NotAuthorized,
			TopicNameInvalid, PacketIdentifierInUse, QuotaExceeded, PayloadFormatInvalid}, c)
	case PUBREL, PUBCOMP:
		return c == Success || c == PacketIdentifierNotFound
	case SUBACK:
		return c <= GrantedQoS2 || slices.Contains([]Code{UnspecifiedError, ImplementationSpecificError, NotAuthorized,
			TopicFilterInvalid, PacketIdentifierInUse, QuotaExceeded, SharedSubscriptionsNotSupported,
			SubscriptionIdentifiersNotSupported, WildcardSubscriptionsNotSupported}, c)
	case UNSUBACK:
		return slices.Contains([]Code{Success, NoSubscriptionExisted, UnspecifiedError, ImplementationSpecificError, NotAuthorized,
			TopicFilterInvalid, PacketIdentifierInUse}, c)
	case DISCONNECT:
		return c == NormalDisconnection || c == DisconnectWithWill && s == Client ||
			slices.Contains([]Code{UnspecifiedError, MalformedPacket, ProtocolError, ImplementationSpecificError, TopicNameInvalid}, c) ||
			c >= ReceiveMaximumExceeded && c <= PayloadFormatInvalid ||
			s == Server && (slices.Contains([]Code{NotAuthorized, ServerBusy, ServerShuttingDown}, c) ||
				c >= KeepAliveTimeout && c <= TopicFilterInvalid || c >= RetainNotSupported && c <= WildcardSubscriptionsNotSupported)
	case AUTH:
		return c == ContinueAuthentication || c == Success && s == Server || c == Reauthenticate && s == Client
	}
	return false
}
