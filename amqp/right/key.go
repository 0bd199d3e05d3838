package right

import (
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/identity"
)

// byKey begins the subjects of rights to an exchange's keys.
const byKey = "amqp.key."

// Keyed is a right to publish an exchange's messages of one routing key, or to have them: to
// publish or subscribe to amqp.key.EXCHANGE.KEY, in which the exchange is one word.
func Keyed(exchange, key string) string {
	var b strings.Builder
	toKeys(&b, exchange)
	if key == "" {
		b.WriteByte('%')
	} else {
		b.WriteString(Words(key))
	}
	return b.String()
}

// EveryKey is the right to all keys of an exchange.
func EveryKey(exchange string) string {
	var b strings.Builder
	toKeys(&b, exchange)
	b.WriteByte('>')
	return b.String()
}

func toKeys(b *strings.Builder, exchange string) {
	if exchange == "" {
		exchange = DefaultExchange
	}
	b.WriteString(byKey)
	for i, part := range strings.Split(exchange, ".") {
		if i > 0 {
			b.WriteString(dot)
		}
		if part != "" {
			word(b, part)
		}
	}
	b.WriteByte('.')
}

// Bound are the rights that a binding with a key needs. A wildcard is for one word of AMQP or
// for any number, and an underscore is in a word of AMQP but parts words of a right: who
// binds with one needs all that begins as the key does.
func Bound(exchange, key string) []string {
	words := strings.Split(key, ".")
	first := slices.IndexFunc(words, func(w string) bool { return w == "*" || w == "#" })
	switch {
	case first < 0:
		return []string{Keyed(exchange, key)}
	case first == 0:
		return []string{EveryKey(exchange)}
	}
	start := Keyed(exchange, strings.Join(words[:first], "."))
	return []string{start, start + ".>"}
}

// Denied reports whether a part of what a right covers is denied.
func Denied(rule *identity.Rule, subject string) bool {
	return slices.ContainsFunc(rule.Deny, func(denied string) bool { return identity.Overlap(denied, subject) })
}
