package packet

// A Pair is a User Property. Those of a *Publish are in the buffer that it was
// read from.
type Pair struct{ Name, Value []byte }

// The identifiers of the properties.
const (
	propPayloadFormat        = 0x01
	propMessageExpiry        = 0x02
	propContentType          = 0x03
	propResponseTopic        = 0x08
	propCorrelationData      = 0x09
	propSubscriptionID       = 0x0B
	propSessionExpiry        = 0x11
	propAssignedClientID     = 0x12
	propServerKeepAlive      = 0x13
	propAuthMethod           = 0x15
	propAuthData             = 0x16
	propRequestProblemInfo   = 0x17
	propWillDelay            = 0x18
	propRequestResponseInfo  = 0x19
	propResponseInfo         = 0x1A
	propServerReference      = 0x1C
	propReasonString         = 0x1F
	propReceiveMaximum       = 0x21
	propTopicAliasMaximum    = 0x22
	propTopicAlias           = 0x23
	propMaximumQoS           = 0x24
	propRetainAvailable      = 0x25
	propUser                 = 0x26
	propMaximumPacketSize    = 0x27
	propWildcardsAvailable   = 0x28
	propSubscriptionIDsAvail = 0x29
	propSharedAvailable      = 0x2A
	propHighest              = propSharedAvailable
)

// open begins to read properties, which MQTT 3.1.1 does not have. The loop over
// them is
//
//	for c.open(); c.next(); {
//		switch c.id { … default: c.stranger() }
//	}
func (c *cursor) open() {
	if c.version != V5 {
		return
	}
	n := c.variable("property length") // [MQTT-2.2.2-1]
	block := c.take(int(n), "properties")
	if c.err == nil {
		c.b, c.after, c.block, c.seen = block, c.b, true, 0
	}
}

// next says whether there is a property, and reads its identifier.
func (c *cursor) next() bool {
	if !c.block {
		return false
	}
	if len(c.b) == 0 {
		c.b, c.after, c.block = c.after, nil, false
		return false
	}
	id := c.variable("property identifier")
	if id > propHighest {
		c.fail(MalformedPacket, "[MQTT 2.2.2.2]", "with the unknown property 0x%02X", id)
	}
	if c.err != nil {
		return false
	}
	c.id = byte(id)
	again := c.seen&(1<<id) != 0
	c.seen |= 1 << id
	if again && id != propUser && !(id == propSubscriptionID && c.kind == PUBLISH) {
		c.fail(ProtocolError, "[MQTT 2.2.2.2]", "with property 0x%02X twice", id)
		return false
	}
	return true
}

// stranger refuses a property that this packet may not carry.
func (c *cursor) stranger() {
	c.fail(MalformedPacket, "[MQTT 2.2.2.2]", "with property 0x%02X, which is none of its own", c.id)
}

// flag reads a property that is 0 or 1.
func (c *cursor) flag(what, clause string) bool {
	n := c.byte(what)
	if n > 1 {
		c.fail(ProtocolError, clause, "with %s %d", what, n)
	}
	return n == 1
}

// someTwo and someFour read a property that is not 0.
func (c *cursor) someTwo(what, clause string) uint16 {
	n := c.two(what)
	c.some(uint32(n), what, clause)
	return n
}

func (c *cursor) someFour(what, clause string) uint32 {
	n := c.four(what)
	c.some(n, what, clause)
	return n
}

func (c *cursor) some(n uint32, what, clause string) {
	if n == 0 {
		c.fail(ProtocolError, clause, "with %s 0", what)
	}
}

// authMethod reads an Authentication Method. One without a name is none that
// anybody supports, and would be taken for an absent one.
func (c *cursor) authMethod() string {
	method := c.str("Authentication Method")
	if method == "" && c.kind == CONNECT {
		c.fail(BadAuthenticationMethod, "[MQTT-4.12.0-1]", "with an empty Authentication Method")
	}
	if method == "" {
		c.fail(ProtocolError, "[MQTT-4.12.0-5]", "with an empty Authentication Method")
	}
	return method
}

// subscriptionID reads a Subscription Identifier.
func (c *cursor) subscriptionID() uint32 {
	id := c.variable("Subscription Identifier")
	c.some(id, "Subscription Identifier", "[MQTT 3.8.2.1.2]")
	return id
}

// pair reads a User Property behind those that there are, in order
// [MQTT-3.3.2-18] [MQTT-3.1.3-10].
func (c *cursor) pair(pairs []Pair) []Pair {
	p := Pair{Name: c.text("User Property name"), Value: c.text("User Property value")} // [MQTT-1.5.7-1]
	c.pairs++
	c.pairBytes += len(p.Name) + len(p.Value)
	if c.pairs > c.limits.userProperties() || c.pairBytes > c.limits.userPropertyBytes() {
		c.fail(QuotaExceeded, "[MQTT 2.2.2.2]", "with too many User Properties, or too large ones")
	}
	if c.kind != PUBLISH || c.publish == nil {
		return append(pairs, p)
	}
	if pairs == nil {
		pairs = c.lent[:0]
	}
	c.lent = append(pairs, p)
	return c.lent
}
