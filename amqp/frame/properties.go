package frame

// The bits of Properties.Flags.
const (
	HasContentType     = 1 << 15
	HasContentEncoding = 1 << 14
	HasHeaders         = 1 << 13
	HasDeliveryMode    = 1 << 12
	HasPriority        = 1 << 11
	HasCorrelationID   = 1 << 10
	HasReplyTo         = 1 << 9
	HasExpiration      = 1 << 8
	HasMessageID       = 1 << 7
	HasTimestamp       = 1 << 6
	HasType            = 1 << 5
	HasUserID          = 1 << 4
	HasAppID           = 1 << 3
	HasClusterID       = 1 << 2

	noFlags = 1<<1 | 1<<0
)

// Transient and Persistent are delivery modes.
const (
	Transient  = 1
	Persistent = 2
)

// Properties are those of a message. A text is up to 255 bytes.
type Properties struct {
	ContentType, ContentEncoding string
	Headers                      Table
	DeliveryMode, Priority       uint8
	CorrelationID, ReplyTo       string
	// Expiration is how long the message lives, in milliseconds, in digits.
	Expiration, MessageID string
	// Timestamp is in seconds since 1970.
	Timestamp                      uint64
	Type, UserID, AppID, ClusterID string
	// Flags says which are there, as on the wire. A field that is not zero is written
	// whatever Flags says; one that is zero is written if its bit is set. Drop
	// removes some.
	Flags uint16
}

// each codes the fields that flags has.
func (p *Properties) each(c *coder, flags uint16) {
	text := func(flag uint16, s *string) {
		if flags&flag != 0 {
			c.short(s)
		}
	}
	text(HasContentType, &p.ContentType)
	text(HasContentEncoding, &p.ContentEncoding)
	if flags&HasHeaders != 0 {
		c.table(&p.Headers)
	}
	if flags&HasDeliveryMode != 0 {
		c.octet(&p.DeliveryMode)
	}
	if flags&HasPriority != 0 {
		c.octet(&p.Priority)
	}
	text(HasCorrelationID, &p.CorrelationID)
	text(HasReplyTo, &p.ReplyTo)
	text(HasExpiration, &p.Expiration)
	text(HasMessageID, &p.MessageID)
	if flags&HasTimestamp != 0 {
		c.eight(&p.Timestamp)
	}
	text(HasType, &p.Type)
	text(HasUserID, &p.UserID)
	text(HasAppID, &p.AppID)
	text(HasClusterID, &p.ClusterID)
}

// present are the flags that Append writes.
func (p *Properties) present() uint16 {
	flags := p.Flags &^ noFlags
	has := func(flag uint16, is bool) {
		if is {
			flags |= flag
		}
	}
	has(HasContentType, p.ContentType != "")
	has(HasContentEncoding, p.ContentEncoding != "")
	has(HasHeaders, len(p.Headers) > 0)
	has(HasDeliveryMode, p.DeliveryMode != 0)
	has(HasPriority, p.Priority != 0)
	has(HasCorrelationID, p.CorrelationID != "")
	has(HasReplyTo, p.ReplyTo != "")
	has(HasExpiration, p.Expiration != "")
	has(HasMessageID, p.MessageID != "")
	has(HasTimestamp, p.Timestamp != 0)
	has(HasType, p.Type != "")
	has(HasUserID, p.UserID != "")
	has(HasAppID, p.AppID != "")
	has(HasClusterID, p.ClusterID != "")
	return flags
}

// Drop removes the properties that flags has.
func (p *Properties) Drop(flags uint16) {
	text := func(flag uint16, s *string) {
		if flags&flag != 0 {
			*s = ""
		}
	}
	text(HasContentType, &p.ContentType)
	text(HasContentEncoding, &p.ContentEncoding)
	text(HasCorrelationID, &p.CorrelationID)
	text(HasReplyTo, &p.ReplyTo)
	text(HasExpiration, &p.Expiration)
	text(HasMessageID, &p.MessageID)
	text(HasType, &p.Type)
	text(HasUserID, &p.UserID)
	text(HasAppID, &p.AppID)
	text(HasClusterID, &p.ClusterID)
	if flags&HasHeaders != 0 {
		p.Headers = nil
	}
	if flags&HasDeliveryMode != 0 {
		p.DeliveryMode = 0
	}
	if flags&HasPriority != 0 {
		p.Priority = 0
	}
	if flags&HasTimestamp != 0 {
		p.Timestamp = 0
	}
	p.Flags &^= flags
}

// Append appends p to dst as it is in a header frame: the flags and what they have.
// Its errors are ErrLong and ErrValue, and dst is then returned as it was.
func (p *Properties) Append(dst []byte) ([]byte, error) {
	c := coder{out: dst, writes: true}
	flags := p.present()
	c.two(&flags)
	p.each(&c, flags)
	if c.err != nil {
		return dst, c.err
	}
	return c.out, nil
}

// Decode makes p what b is, which Append wrote or a header frame has. All of it is the
// caller's. An error is an *Error of the connection, and p is then not to be used.
func (p *Properties) Decode(b []byte) error {
	*p = Properties{}
	c := coder{in: b, what: "properties", entries: MaxEntries}
	c.two(&p.Flags)
	c.judgeFlags(p.Flags)
	p.each(&c, p.Flags)
	c.done()
	return c.err
}

func (c *coder) judgeFlags(flags uint16) {
	if flags&noFlags != 0 {
		c.fail(SyntaxError, "%s: the flags %04x are unknown", c.what, flags&noFlags)
	}
}

// CheckProperties says what Decode of b would say, and allocates nothing for it.
func CheckProperties(b []byte) error {
	c := coder{in: b, what: "properties", entries: MaxEntries}
	var flags uint16
	c.two(&flags)
	c.judgeFlags(flags)
	for bit := uint16(HasContentType); bit >= HasClusterID; bit >>= 1 {
		switch {
		case flags&bit == 0:
		case bit == HasHeaders:
			entries := MaxEntries
			c.readTable(0, &entries, false)
		case bit == HasDeliveryMode, bit == HasPriority:
			c.take(1)
		case bit == HasTimestamp:
			c.take(8)
		default:
			c.takeShort()
		}
	}
	c.done()
	return c.err
}
