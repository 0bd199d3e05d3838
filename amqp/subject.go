package amqp

import (
	"strings"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
)

// The exchange amq.topic is the subjects of the account: a routing key, a subject and an
// MQTT topic are spellings of one address. Words of keys are tokens of subjects and levels
// of topics; a "/" in a key, which is a "." within a level, and what no subject can have
// are written as MQTT's topics write them.
const topicExchange = "amq.topic"

// swapped has dots and slashes in each other's place: that is how keys and topics differ.
func swapped(s string) string {
	if !strings.ContainsAny(s, "./") {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		switch c {
		case '.':
			b[i] = '/'
		case '/':
			b[i] = '.'
		}
	}
	return string(b)
}

// subjectOfKey is the subject of a routing key.
func subjectOfKey(key string) string {
	if key == "" {
		return "/" // no topic is empty
	}
	return mapping.Subject(swapped(key))
}

// keyOfSubject is the routing key of a subject. One that no key is written as is its own.
func keyOfSubject(subject string) string {
	if topic, ok := mapping.Topic(subject); ok {
		return swapped(topic)
	}
	return subject
}

// engines reports whether a subject belongs to the engine, or to an answer: it is no key.
func engines(subject string) bool {
	return strings.HasPrefix(subject, "$") || strings.HasPrefix(subject, "_INBOX") || strings.HasPrefix(subject, "_R_")
}

// patterns are the subjects that have all that the key of a binding matches, each of them
// once, and maybe more: nothing can follow ">".
func patterns(key string) []string {
	words := strings.Split(key, ".")
	tokens := make([]string, 0, len(words))
	for i, word := range words {
		switch word {
		case "*":
			tokens = append(tokens, "*")
		case "#":
			above := strings.Join(tokens, ".")
			if i == 0 {
				return []string{">"}
			}
			for _, w := range words[i:] {
				if w != "#" {
					return []string{above + ".>"}
				}
			}
			return []string{above, above + ".>"}
		default:
			tokens = append(tokens, subjectOfKey(word))
		}
	}
	return []string{strings.Join(tokens, ".")}
}
