package amqp

import (
	"fmt"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/identity"
)

// right is one of RabbitMQ's three.
type right string

const (
	configure right = "configure" // make and remove
	write     right = "write"     // publish to an exchange, bind to a queue
	read      right = "read"      // consume, and have an exchange's messages
)

// defaultExchange is what rights call the exchange without a name.
const defaultExchange = "amq.default"

// allowed reports whether a principal has a right to the exchange or queue of a name.
// It has if its permissions let it publish to amqp.configure.NAME or amqp.write.NAME, or
// subscribe to amqp.read.NAME.
func allowed(p *identity.Permissions, r right, name string) bool {
	subject := "amqp." + string(r) + "." + subjectOf(name)
	if r == read {
		return p.Subscribe.Allows(subject)
	}
	return p.Publish.Allows(subject)
}

// subjectOf is a name as words of a subject: a dot or an underscore begins a word, what cannot
// be in one is written %XX, and a word that is empty is %.
func subjectOf(name string) string {
	if name == "" {
		name = defaultExchange
	}
	name = strings.ReplaceAll(name, "_", ".")
	plain := !strings.ContainsFunc(name, escaped) && !strings.Contains(name, "..") && name[0] != '.' && name[len(name)-1] != '.'
	if plain {
		return name
	}
	var b strings.Builder
	for i, word := range strings.Split(name, ".") {
		if i > 0 {
			b.WriteByte('.')
		}
		if word == "" {
			b.WriteByte('%')
		}
		for j := range len(word) {
			if c := word[j]; escaped(rune(c)) {
				fmt.Fprintf(&b, "%%%02X", c)
			} else {
				b.WriteByte(c)
			}
		}
	}
	return b.String()
}

// escaped reports whether a character cannot be in a word as it is.
func escaped(c rune) bool {
	return c <= ' ' || c == '*' || c == '>' || c == '%' || c >= 0x7f
}

// may returns why the connection may not do something to an exchange or a queue, nil if
// it may.
func (h *attached) may(r right, what, name string) error {
	who := &h.who.principal
	if allowed(&who.Permissions, r, name) {
		return nil
	}
	if name == "" {
		name = defaultExchange
	}
	return frame.ChannelError(frame.AccessRefused, "%s access to %s '%s' in vhost '%s' refused for user '%s'", r, what, name, h.who.vhost, who.Name)
}

func (h *attached) mayExchange(r right, name string) error {
	if name == topicExchange && r != configure {
		return nil // each key is judged by its subject
	}
	return h.may(r, "exchange", name)
}

// mayQueue is may, but for what the connection alone can use, under a name that it was given.
func (h *attached) mayQueue(r right, name string) error {
	if strings.HasPrefix(name, generated) {
		if q := h.queue(name); q != nil && q.Settings().Owner == h.who.id {
			return nil
		}
	}
	return h.may(r, "queue", name)
}
