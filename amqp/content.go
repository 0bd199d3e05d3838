package amqp

import (
	"github.com/fleetbus/fleetbus/amqp/frame"
)

// content is a message that is not whole yet.
type content struct {
	m    *message // nil: none has begun
	head bool     // its header is there
	left uint64   // bytes of its body that are not
}

// begin begins the content of m, which came on a channel.
func (c *content) begin(m *frame.BasicPublish, channel uint16) {
	*c = content{m: &message{channel: channel, exchange: m.Exchange, key: m.RoutingKey, mandatory: m.Mandatory}}
}

// size is how many bytes of it there are.
func (c *content) size() int {
	if c.m == nil {
		return 0
	}
	return len(c.m.body)
}

// contentFrame takes a frame of a message. It returns the message once it is whole.
func (ch *channel) contentFrame(f frame.Frame) (*message, error) {
	c := &ch.content
	of := (*frame.BasicPublish)(nil)
	switch {
	case !c.head && f.Kind != frame.KindHeader:
		return nil, frame.ConnectionError(frame.UnexpectedFrame, "expected content header for class 60, got a %v frame instead", f.Kind).Of(of)
	case c.head && f.Kind != frame.KindBody:
		return nil, frame.ConnectionError(frame.UnexpectedFrame, "expected content body, got a %v frame instead", f.Kind).Of(of)
	case !c.head:
		h, err := frame.DecodeHeader(f.Payload)
		if err != nil {
			return nil, err
		}
		if h.Class != frame.ClassBasic {
			return nil, frame.ConnectionError(frame.UnexpectedFrame, "expected content header for class 60, got one for class %d instead", h.Class).Of(of)
		}
		if most := ch.c.p.maxMessage(); h.Size > uint64(most) {
			return nil, frame.ChannelError(frame.PreconditionFailed, "message size %d is larger than configured max size %d", h.Size, most).Of(of)
		}
		c.head, c.left = true, h.Size
		ch.begun(h)
	default:
		if err := ch.more(f.Payload); err != nil {
			return nil, err.Of(of)
		}
	}
	if c.left > 0 {
		return nil, nil
	}
	whole := c.m
	ch.c.partial -= len(whole.body)
	*c = content{}
	return whole, nil
}

// smallBody is up to how many bytes a body has its memory before it is there.
const smallBody = 1 << 10

// begun takes the properties of a message, with memory for its body if that is small.
func (ch *channel) begun(h frame.Header) {
	n, body := len(h.Properties), 0
	if h.Size <= smallBody {
		body = int(h.Size)
	}
	both := append(make([]byte, 0, n+body), h.Properties...)
	ch.content.m.properties = both[:n:n]
	if body > 0 {
		ch.content.m.body = both[n:]
	}
}

// more adds a part to the body. Memory is taken for what is there, and never for more
// than twice of it.
func (ch *channel) more(part []byte) *frame.Error {
	c := &ch.content
	if uint64(len(part)) > c.left {
		return frame.ConnectionError(frame.FrameError, "a body of more bytes than its header says")
	}
	ch.c.partial += len(part)
	if most := 2 * ch.c.p.maxMessage(); ch.c.partial > most {
		return frame.ConnectionError(frame.ResourceError, "messages on all channels that are not whole have more than %d bytes", most)
	}
	c.left -= uint64(len(part))
	if have := len(c.m.body); have+len(part) > cap(c.m.body) {
		grown := make([]byte, have, min(max(2*cap(c.m.body), have+len(part)), have+len(part)+int(c.left)))
		copy(grown, c.m.body)
		c.m.body = grown
	}
	c.m.body = append(c.m.body, part...)
	return nil
}
