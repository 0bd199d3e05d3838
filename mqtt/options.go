package mqtt

import (
	"cmp"
	"fmt"
	"time"

	"github.com/fleetbus/fleetbus"
)

// Options are what may be set of the protocol. The zero value is good.
type Options struct {
	// MaxPacket is the size of the largest packet that is taken, in bytes. Default
	// 1 MiB, which is the engine's payload limit.
	MaxPacket int
	// ReceiveMaximum is how many messages of QoS 1 and 2 of a client may be under
	// way to the engine. Default 1024, at most 65535.
	ReceiveMaximum int
	// TopicAliases is how many aliases a client may use, and is given at most.
	// Default 64, at most 65535.
	TopicAliases int
	// KeepAlive is the longest keep alive. A client that asks for more, or for
	// none, is told this one. Default 5 minutes; negative: any.
	KeepAlive time.Duration
	// SessionExpiry is how long a session without its client is kept at most.
	// Default and maximum 7 days.
	SessionExpiry time.Duration
	// Pending is how many bytes wait for a client that does not read; what is more
	// of QoS 0 is dropped. Default 4 MiB.
	Pending int
	// MaxStored and MaxRetained bound the messages of QoS 1 and 2 that wait in an
	// account, and its retained messages, in bytes. What is more is refused, by each
	// node as its own options say. Default 256 MiB and 64 MiB.
	MaxStored, MaxRetained int64
	// LazySync acknowledges QoS 1 and 2 before they are on disk, and keeps one copy
	// on one node: faster, and lost with it. It is that of the streams, which are
	// made when the first client of an account comes.
	LazySync bool
	// Passed is told of messages with a trace context, and returns at once. Default:
	// nobody is, which costs nothing.
	Passed func(Passage)
}

// Validate returns every problem of o, each a *fleetbus.OptionError.
func (o *Options) Validate() (problems []error) {
	refuse := func(field, problem, hint string) {
		problems = append(problems, &fleetbus.OptionError{Field: "mqtt." + field, Problem: problem, Hint: hint})
	}
	between := func(field string, value, least, most int64) {
		if value != 0 && (value < least || value > most) {
			refuse(field, fmt.Sprintf("%d is not between %d and %d", value, least, most), "take one between them, or remove it")
		}
	}
	between("max_packet", int64(o.MaxPacket), 1<<10, 64<<20)
	between("receive_maximum", int64(o.ReceiveMaximum), 1, 0xFFFF)
	between("topic_aliases", int64(o.TopicAliases), 1, 0xFFFF)
	between("pending", int64(o.Pending), 1<<10, 1<<30)
	between("max_stored", o.MaxStored, 1<<20, 1<<50)
	between("max_retained", o.MaxRetained, 1<<20, 1<<50)
	if o.SessionExpiry < 0 || o.SessionExpiry > maxExpiry {
		refuse("session_expiry", fmt.Sprintf("%v is not between 0 and %v", o.SessionExpiry, maxExpiry), "take one between them, or remove it")
	}
	if longest := 0xFFFF * time.Second; o.KeepAlive > longest {
		refuse("keep_alive", fmt.Sprintf("%v is more than %v", o.KeepAlive, longest), "lower it, or remove it")
	}
	return problems
}

func (o *Options) maxPacket() int { return cmp.Or(o.MaxPacket, 1<<20) }

// window is how many bytes a consumer of the engine may have under way, which is
// more than one message can have: the engine ends a connection that has 64 MiB
// before it.
func (o *Options) window() int { return 2 * max(o.maxPacket(), 1<<20) }

func (o *Options) receiveMaximum() uint16   { return uint16(cmp.Or(o.ReceiveMaximum, 1024)) }
func (o *Options) topicAliases() uint16     { return uint16(cmp.Or(o.TopicAliases, 64)) }
func (o *Options) keepAlive() time.Duration { return cmp.Or(o.KeepAlive, 5*time.Minute) }
func (o *Options) pending() int             { return cmp.Or(o.Pending, 4<<20) }
func (o *Options) maxStored() int64         { return cmp.Or(o.MaxStored, 256<<20) }
func (o *Options) maxRetained() int64       { return cmp.Or(o.MaxRetained, 64<<20) }
func (o *Options) sessionExpiry() uint32 {
	return uint32(cmp.Or(o.SessionExpiry, maxExpiry) / time.Second)
}
