package amqp

import (
	"cmp"
	"fmt"
	"time"

	"github.com/fleetbus/fleetbus"
)

// Options are what may be set of the protocol. The zero value is good.
type Options struct {
	// Account is the one of users that log in with a name that has no account in it.
	// Default: there is none, and a name is account/user, or account.user.
	Account string
	// Passwords offers the mechanisms PLAIN and AMQPLAIN on TLS, beside EXTERNAL: users
	// with passwords, and bearer tokens in place of passwords. On a listener in plain
	// text they are all there is.
	Passwords bool
	// MaxMessage is the size of the largest body that is taken, in bytes. Default 16 MiB.
	MaxMessage int
	// MaxFrame is the size of the largest frame, in bytes. Default 131072.
	MaxFrame int
	// Channels is how many channels a connection may have. Default 2047.
	Channels int
	// Heartbeat is what clients are proposed; they choose. Default 1 minute; negative:
	// none.
	Heartbeat time.Duration
	// Pending is how many bytes wait for a client that does not read before it is sent
	// no more messages. Default 1 MiB.
	Pending int
	// MaxMemory is how many bytes messages have in memory on this node, in all accounts,
	// before nobody may publish here. Default 512 MiB.
	MaxMemory int64
}

// Validate returns every problem of o, each a *fleetbus.OptionError.
func (o *Options) Validate() (problems []error) {
	refuse := func(field, problem, hint string) {
		problems = append(problems, &fleetbus.OptionError{Field: "amqp." + field, Problem: problem, Hint: hint})
	}
	between := func(field string, value, least, most int64) {
		if value != 0 && (value < least || value > most) {
			refuse(field, fmt.Sprintf("%d is not between %d and %d", value, least, most), "take one between them, or remove it")
		}
	}
	between("max_message", int64(o.MaxMessage), 1<<10, 512<<20)
	between("max_frame", int64(o.MaxFrame), 4096, 16<<20)
	between("channels", int64(o.Channels), 1, 0xFFFF)
	between("pending", int64(o.Pending), 1<<10, 1<<30)
	between("max_memory", o.MaxMemory, 1<<20, 1<<50)
	if longest := 0xFFFF * time.Second; o.Heartbeat > longest || o.Heartbeat > 0 && o.Heartbeat < time.Second {
		refuse("heartbeat", fmt.Sprintf("%v is not between 1s and %v", o.Heartbeat, longest), "take one between them, or remove it")
	}
	return problems
}

func (o *Options) maxMessage() int { return cmp.Or(o.MaxMessage, 16<<20) }
func (o *Options) maxFrame() int   { return cmp.Or(o.MaxFrame, 128<<10) }
func (o *Options) channels() int   { return cmp.Or(o.Channels, 2047) }
func (o *Options) pending() int    { return cmp.Or(o.Pending, 1<<20) }
func (o *Options) maxMemory() int64 {
	return cmp.Or(o.MaxMemory, 512<<20)
}
func (o *Options) heartbeat() uint16 {
	return uint16(max(0, cmp.Or(o.Heartbeat, time.Minute)) / time.Second)
}
