package amqp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/route"
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
		escape(&b, word)
	}
	return b.String()
}

// escape writes what can be in a word.
func escape(b *strings.Builder, word string) {
	for i := range len(word) {
		if c := word[i]; escaped(rune(c)) {
			fmt.Fprintf(b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
}

// escaped reports whether a character cannot be in a word as it is.
func escaped(c rune) bool {
	return c <= ' ' || c == '*' || c == '>' || c == '%' || c >= 0x7f
}

// keyed is a right to publish an exchange's messages of one routing key, or to have them: to
// publish or subscribe to amqp.key.EXCHANGE.KEY, in which the exchange is one word.
func keyed(exchange, key string) string {
	if exchange == "" {
		exchange = defaultExchange
	}
	var b strings.Builder
	b.WriteString("amqp.key.")
	for part := range strings.SplitSeq(exchange, ".") {
		if b.Len() > len("amqp.key.") {
			b.WriteString("%2E")
		}
		escape(&b, part)
	}
	b.WriteByte('.')
	b.WriteString(keyWords(key))
	return b.String()
}

// keyWords are the words of a routing key, of which there is at least one.
func keyWords(key string) string {
	if key == "" {
		return "%"
	}
	return subjectOf(key)
}

// mayPublish judges a message by its exchange or, where keys say who gets it, by its key.
func (h *attached) mayPublish(exchange, key string) error {
	if exchange == topicExchange {
		return nil // the key is judged as a subject
	}
	if h.mine.known && h.mine.exchange == exchange && h.mine.key == key {
		return nil
	}
	may := &h.who.principal.Permissions.Publish
	if allowed(&h.who.principal.Permissions, write, exchange) && (len(may.Deny) == 0 || !denied(may, keyed(exchange, key))) {
		h.mine.exchange, h.mine.key, h.mine.known = exchange, key, true
		return nil
	}
	if h.byKey(exchange) && may.Allows(keyed(exchange, key)) {
		return nil
	}
	return h.refused(write, "exchange", exchange)
}

// mayBind judges that an exchange's messages are had by a binding with the key.
func (h *attached) mayBind(exchange, key string) error {
	if exchange == topicExchange {
		return nil // mayHear judges it
	}
	may := &h.who.principal.Permissions.Subscribe
	all := boundBy(exchange, key)
	if slices.ContainsFunc(all, func(right string) bool { return denied(may, right) }) {
		return h.refused(read, "exchange", exchange)
	}
	if allowed(&h.who.principal.Permissions, read, exchange) {
		return nil
	}
	if h.byKey(exchange) && !slices.ContainsFunc(all, func(right string) bool { return !may.Allows(right) }) {
		return nil
	}
	return h.refused(read, "exchange", exchange)
}

// boundBy are the rights that a binding with a key needs. A wildcard is for one word of AMQP or
// for any number, and an underscore is in a word of AMQP but parts words of a right: who
// binds with one needs all that begins as the key does.
func boundBy(exchange, key string) []string {
	words := strings.Split(key, ".")
	first := slices.IndexFunc(words, func(w string) bool { return w == "*" || w == "#" })
	if first < 0 {
		return []string{keyed(exchange, key)}
	}
	if first == 0 {
		return []string{everyKey(exchange)}
	}
	start := keyed(exchange, strings.Join(words[:first], "."))
	return []string{start, start + ".>"}
}

func everyKey(exchange string) string { return strings.TrimSuffix(keyed(exchange, ""), "%") + ">" }

// denied reports whether a part of what a right covers is denied.
func denied(may *identity.Rule, right string) bool {
	return slices.ContainsFunc(may.Deny, func(rule string) bool { return identity.Overlap(rule, right) })
}

// byKey reports whether routing keys say who gets an exchange's messages.
func (h *attached) byKey(exchange string) bool {
	e, err := h.table.Known(exchange)
	return err == nil && (e.Type == route.Topic || e.Type == route.Direct)
}

// may returns why the connection may not do something to an exchange or a queue, nil if
// it may.
func (h *attached) may(r right, what, name string) error {
	if allowed(&h.who.principal.Permissions, r, name) {
		return nil
	}
	return h.refused(r, what, name)
}

func (h *attached) refused(r right, what, name string) error {
	if name == "" {
		name = defaultExchange
	}
	return frame.ChannelError(frame.AccessRefused, "%s access to %s '%s' in vhost '%s' refused for user '%s'", r, what, name, h.who.vhost, h.who.principal.Name)
}

func (h *attached) mayExchange(r right, name string) error {
	if name == topicExchange && r != configure {
		return nil // each key is judged by its subject
	}
	if r == write && denied(&h.who.principal.Permissions.Publish, everyKey(name)) {
		return h.refused(r, "exchange", name) // what leads there has any key
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
