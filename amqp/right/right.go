// Package right says which permissions of a principal RabbitMQ's three rights are: to
// configure, to write and to read exchanges and queues. It is pure, because who translates
// rights of another broker has to know what those here allow.
//
// Each right to a name can be had in two ways. By words, amqp.write.NAME: a dot or an
// underscore begins a word, so that amqp.write.reply.> is what begins with reply. or
// reply_. And by the letter, amqp-name.write.NAME, where each dot and underscore is a word
// of its own, %2E or _: so that amqp-name.write.reply._.> is what begins with reply_, and
// nothing else. What either denies is denied.
package right

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/identity"
)

// A Right is one of RabbitMQ's three.
type Right string

// The rights.
const (
	Configure Right = "configure" // make and remove
	Write     Right = "write"     // publish to an exchange, bind to a queue
	Read      Right = "read"      // consume, and have an exchange's messages
)

// DefaultExchange is what rights call the exchange without a name.
const DefaultExchange = "amq.default"

// The words that subjects of rights begin with.
const (
	byWords, byName = "amqp.", "amqp-name."
	dot, underscore = "%2E", "_"
)

// Allowed reports whether a principal has a right to the exchange or queue of a name.
// To configure and to write is to publish to a subject of the right, to read is to
// subscribe to one.
func Allowed(p *identity.Permissions, r Right, name string) bool {
	rule := &p.Publish
	if r == Read {
		rule = &p.Subscribe
	}
	words := byWords + string(r) + "." + Words(name)
	if rule.Allows(words) {
		return !slices.ContainsFunc(rule.Deny, letters) || identity.Rule{Allow: []string{">"}, Deny: rule.Deny}.Allows(Named(r, name))
	}
	return slices.ContainsFunc(rule.Allow, letters) && rule.Allows(Named(r, name)) && identity.Rule{Allow: []string{">"}, Deny: rule.Deny}.Allows(words)
}

// letters reports whether a pattern may match a subject of Named. Those that match
// everything match the words, too.
func letters(pattern string) bool { return strings.HasPrefix(pattern, byName) }

// Named is the subject of a right to one name and no other.
func Named(r Right, name string) string {
	if name == "" {
		name = DefaultExchange
	}
	return byName + string(r) + "." + spelled(name)
}

// Beginning is the subject of a right to all names that begin with some text, which ends
// in a dot or an underscore; ok is false if it does not.
func Beginning(r Right, text string) (subject string, ok bool) {
	if !strings.HasSuffix(text, ".") && !strings.HasSuffix(text, "_") {
		return "", false
	}
	return strings.TrimSuffix(byName+string(r)+"."+spelled(text), "%") + ">", true
}

// Every is the subject of a right to all names.
func Every(r Right) string { return byWords + string(r) + ".>" }

// spelled is a name as words of a subject, in which every dot and underscore is a word.
func spelled(name string) string {
	var b strings.Builder
	for {
		i := strings.IndexAny(name, "._")
		if i < 0 {
			word(&b, name)
			return b.String()
		}
		word(&b, name[:i])
		if name[i] == '.' {
			b.WriteString("." + dot + ".")
		} else {
			b.WriteString("." + underscore + ".")
		}
		name = name[i+1:]
	}
}

// Words is a name as words of a subject: a dot or an underscore begins a word, what cannot
// be in one is written %XX, and a word that is empty is %. The exchange without a name is
// DefaultExchange.
func Words(name string) string {
	if name == "" {
		name = DefaultExchange
	}
	name = strings.ReplaceAll(name, "_", ".")
	plain := !strings.ContainsFunc(name, escaped) && !strings.Contains(name, "..") && name[0] != '.' && name[len(name)-1] != '.'
	if plain {
		return name
	}
	var b strings.Builder
	for i, w := range strings.Split(name, ".") {
		if i > 0 {
			b.WriteByte('.')
		}
		word(&b, w)
	}
	return b.String()
}

// word writes one word.
func word(b *strings.Builder, text string) {
	if text == "" {
		b.WriteByte('%')
	}
	for i := range len(text) {
		if c := text[i]; escaped(rune(c)) {
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
