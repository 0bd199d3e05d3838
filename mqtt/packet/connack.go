package packet

import "fmt"

// Connack is CONNACK.
type Connack struct {
	SessionPresent bool
	// Code is translated to a return code in MQTT 3.1.1, where not all have one.
	Code Code

	// SessionExpiry is in seconds; nil: the client's own.
	SessionExpiry *uint32
	// ReceiveMaximum is 0 if it is absent, which means 65,535.
	ReceiveMaximum uint16
	// MaximumQoS is 0 or 1; nil: 2.
	MaximumQoS *QoS
	// NoRetain is Retain Available 0.
	NoRetain bool
	// MaximumPacketSize is 0 if it is absent.
	MaximumPacketSize uint32
	// AssignedClientID is empty if it is absent.
	AssignedClientID  string
	TopicAliasMaximum uint16
	ReasonString      string
	UserProperties    []Pair
	// NoWildcards, NoSubscriptionIDs and NoShared say what SUBSCRIBE cannot ask for.
	NoWildcards, NoSubscriptionIDs, NoShared bool
	// ServerKeepAlive is in seconds; nil: the client's own.
	ServerKeepAlive *uint16
	ResponseInfo    string
	ServerReference string
	// AuthMethod is empty if it is absent.
	AuthMethod string
	// AuthData is nil if it is absent.
	AuthData Secret
}

// Type is CONNACK.
func (*Connack) Type() Type { return CONNACK }

func (c *cursor) connack() *Connack {
	flags := c.byte("acknowledge flags")
	if flags > 1 {
		c.fail(MalformedPacket, "[MQTT-3.2.2-1]", "with acknowledge flags %08b", flags)
	}
	p := &Connack{SessionPresent: flags == 1}
	if c.version == V311 {
		p.Code = c.returnCode()
	} else {
		p.Code = c.code("[MQTT-3.2.2-8]")
	}
	if p.Code != Success && p.SessionPresent {
		c.fail(ProtocolError, "[MQTT-3.2.2-6]", "of a refusal with Session Present")
	}
	for c.open(); c.next(); {
		c.connackProperty(p)
	}
	return p
}

func (c *cursor) connackProperty(p *Connack) {
	switch c.id {
	case propSessionExpiry:
		p.SessionExpiry = new(c.four("Session Expiry Interval"))
	case propReceiveMaximum:
		p.ReceiveMaximum = c.someTwo("Receive Maximum", "[MQTT 3.2.2.3.3]")
	case propMaximumQoS:
		p.MaximumQoS = new(QoS(0))
		if c.flag("Maximum QoS", "[MQTT 3.2.2.3.4]") {
			*p.MaximumQoS = 1
		}
	case propRetainAvailable:
		p.NoRetain = !c.flag("Retain Available", "[MQTT 3.2.2.3.5]")
	case propMaximumPacketSize:
		p.MaximumPacketSize = c.someFour("Maximum Packet Size", "[MQTT 3.2.2.3.6]")
	case propAssignedClientID:
		p.AssignedClientID = c.str("Assigned Client Identifier")
	case propTopicAliasMaximum:
		p.TopicAliasMaximum = c.two("Topic Alias Maximum")
	case propReasonString:
		p.ReasonString = c.str("Reason String")
	case propUser:
		p.UserProperties = c.pair(p.UserProperties)
	case propWildcardsAvailable:
		p.NoWildcards = !c.flag("Wildcard Subscription Available", "[MQTT 3.2.2.3.11]")
	case propSubscriptionIDsAvail:
		p.NoSubscriptionIDs = !c.flag("Subscription Identifier Available", "[MQTT 3.2.2.3.12]")
	case propSharedAvailable:
		p.NoShared = !c.flag("Shared Subscription Available", "[MQTT 3.2.2.3.13]")
	case propServerKeepAlive:
		p.ServerKeepAlive = new(c.two("Server Keep Alive"))
	case propResponseInfo:
		p.ResponseInfo = c.str("Response Information")
	case propServerReference:
		p.ServerReference = c.str("Server Reference")
	case propAuthMethod:
		p.AuthMethod = c.authMethod()
	case propAuthData:
		p.AuthData = c.data("Authentication Data")
	default:
		c.stranger()
	}
}

// returnCode reads a return code of MQTT 3.1.1.
func (c *cursor) returnCode() Code {
	n := c.byte("return code")
	for code, returned := range returnCodes() {
		if returned == n {
			return code
		}
	}
	c.fail(ProtocolError, "[MQTT311-3.2.2-6]", "with return code %d", n)
	return 0
}

// returnCodes yields the reason codes that mean the same as a return code of MQTT
// 3.1.1, and then those that mean no more than it says. The first one of a return
// code is what it is read as.
func returnCodes() func(yield func(Code, byte) bool) {
	return func(yield func(Code, byte) bool) {
		for n, codes := range [...][]Code{{Success}, {UnsupportedProtocolVersion}, {ClientIdentifierNotValid},
			{ServerUnavailable, ServerBusy, ConnectionRateExceeded}, {BadUserNameOrPassword}, {NotAuthorized, Banned}} {
			for _, code := range codes {
				if !yield(code, byte(n)) {
					return
				}
			}
		}
	}
}

// Append is Packet's. A Code that has no return code in MQTT 3.1.1 is an error: the
// connection is to be closed without CONNACK [MQTT311-3.2.2-6].
func (p *Connack) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(CONNACK)<<4, p)
}

func (p *Connack) write(w *writer) {
	w.flag(p.SessionPresent)
	if w.v != V5 {
		p.writeReturnCode(w)
		return
	}
	w.byte(byte(p.Code))
	at := len(w.b)
	w.propPointer(propSessionExpiry, p.SessionExpiry)
	w.propTwo(propReceiveMaximum, p.ReceiveMaximum)
	w.propSet(propMaximumQoS, p.MaximumQoS != nil, p.MaximumQoS != nil && *p.MaximumQoS > 0)
	w.propSet(propRetainAvailable, p.NoRetain, false)
	w.propFour(propMaximumPacketSize, p.MaximumPacketSize)
	w.propText(propAssignedClientID, p.AssignedClientID)
	w.propTwo(propTopicAliasMaximum, p.TopicAliasMaximum)
	w.answer(p.ReasonString, p.UserProperties)
	w.propSet(propWildcardsAvailable, p.NoWildcards, false)
	w.propSet(propSubscriptionIDsAvail, p.NoSubscriptionIDs, false)
	w.propSet(propSharedAvailable, p.NoShared, false)
	if p.ServerKeepAlive != nil {
		w.byte(propServerKeepAlive)
		w.two(*p.ServerKeepAlive)
	}
	w.propText(propResponseInfo, p.ResponseInfo)
	w.propText(propServerReference, p.ServerReference)
	w.propText(propAuthMethod, p.AuthMethod)
	w.propData(propAuthData, p.AuthData)
	w.measure(at)
}

func (p *Connack) writeReturnCode(w *writer) {
	for code, returned := range returnCodes() {
		if code == p.Code {
			w.byte(returned)
			return
		}
	}
	w.err = fmt.Errorf("writing CONNACK of MQTT 3.1.1: there is no return code for %v", p.Code) // [MQTT311-3.2.2-6]
}
