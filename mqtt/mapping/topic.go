package mapping

import (
	"encoding/hex"
	"strings"
)

// A topic name and a subject are two spellings of one address. The levels of the
// topic are the tokens of the subject, and within a level a "/", which no level
// has, begins what a subject cannot say plainly:
//
//	empty level     /
//	.               //
//	* > DEL and every byte up to space     / and two upper-case hexadecimal digits
//
// So a/b is a.b, /a is /.a, a.b is a//b and "a b" is a/20b. Every topic has one
// subject. A subject that no topic has, such as foo/bar, is not delivered.
const hexDigits = "0123456789ABCDEF"

// escapes reports whether a byte of a level is written otherwise in a subject.
func escapes(c byte) bool { return c <= ' ' || c == '.' || c == '*' || c == '>' || c == 0x7F }

func isPlain(s string) bool {
	for i := range len(s) {
		if escapes(s[i]) {
			return false
		}
	}
	return true
}

// appendLevel appends the token of a level.
func appendLevel(b []byte, level string) []byte {
	if level == "" {
		return append(b, '/')
	}
	for i := range len(level) {
		switch c := level[i]; {
		case c == '.':
			b = append(b, '/', '/')
		case escapes(c):
			b = append(b, '/', hexDigits[c>>4], hexDigits[c&0xF])
		default:
			b = append(b, c)
		}
	}
	return b
}

// Subject is the subject of a topic name.
func Subject(topic string) string {
	if !strings.Contains(topic, "/") && isPlain(topic) {
		return topic
	}
	b := make([]byte, 0, len(topic)+8)
	for level := range strings.SplitSeq(topic, "/") {
		b = append(appendLevel(b, level), '.')
	}
	return string(b[:len(b)-1])
}

// Topic is the topic name of a subject, if one has it.
func Topic(subject string) (topic string, ok bool) {
	if !strings.Contains(subject, "/") {
		return strings.ReplaceAll(subject, ".", "/"), true
	}
	b := make([]byte, 0, len(subject))
	for token := range strings.SplitSeq(subject, ".") {
		if token == "/" {
			token = ""
		}
		for i := 0; i < len(token); i++ {
			if token[i] != '/' {
				b = append(b, token[i])
				continue
			}
			if strings.HasPrefix(token[i+1:], "/") {
				b = append(b, '.')
				i++
				continue
			}
			if len(token) < i+3 {
				return "", false
			}
			digits := token[i+1 : i+3]
			c, err := hex.DecodeString(digits)
			if err != nil || c[0] == '.' || !escapes(c[0]) || strings.ToUpper(digits) != digits {
				return "", false
			}
			b = append(b, c[0])
			i += 2
		}
		b = append(b, '/')
	}
	return string(b[:len(b)-1]), true
}

// Subjects are the subjects of a topic filter: "#" includes the level above it,
// which no one subject does.
func Subjects(filter string) []string {
	levels := strings.Split(filter, "/")
	b := make([]byte, 0, len(filter)+8)
	for i, level := range levels {
		switch level {
		case "+":
			b = append(b, '*')
		case "#":
			below := string(b) + ">"
			if i == 0 {
				return []string{below}
			}
			return []string{below, string(b[:len(b)-1])}
		default:
			b = appendLevel(b, level)
		}
		if i < len(levels)-1 {
			b = append(b, '.')
		}
	}
	return []string{string(b)}
}

// Filter is the topic filter that takes every topic whose subject a pattern takes,
// and at most one more: the level above the last ">". ok is false if no topic has
// such a subject.
func Filter(pattern string) (filter string, ok bool) {
	b := make([]byte, 0, len(pattern))
	for token := range strings.SplitSeq(pattern, ".") {
		switch token {
		case "*":
			token = "+"
		case ">":
			token = "#"
		default:
			if token, ok = Topic(token); !ok || strings.ContainsAny(token, "+#") {
				return "", false
			}
		}
		b = append(append(b, token...), '/')
	}
	return string(b[:len(b)-1]), true
}
