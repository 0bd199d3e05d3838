package change

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Key names what changed, as the path to it: {"customers", "42"} is row 42 of
// customers, and {"customers"} everything in it. A part may hold any bytes. The
// zero value is the whole source.
type Key []string

// String is the key as it stands in subjects, patterns and documents: the parts,
// escaped, joined by dots. In a part, every byte but letters, digits, "-" and "_"
// is written %XX, in upper-case hexadecimal; an empty part is a lone "%".
// ParseKey is the way back.
func (k Key) String() string {
	if !slices.ContainsFunc(k, func(part string) bool { return !plain(part) }) {
		return strings.Join(k, ".")
	}
	var b strings.Builder
	for i, part := range k {
		if i > 0 {
			b.WriteByte('.')
		}
		escape(&b, part)
	}
	return b.String()
}

// escaped says of which bytes a part may consist that are not written %XX.
func unescaped(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func plain(part string) bool {
	for i := range len(part) {
		if !unescaped(part[i]) {
			return false
		}
	}
	return part != ""
}

func escape(b *strings.Builder, part string) {
	if part == "" {
		b.WriteByte('%')
		return
	}
	for i := range len(part) {
		if c := part[i]; unescaped(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(b, "%%%02X", c)
		}
	}
}

// errKey says what is wrong with the text of a key.
var errKey = errors.New("not a key: parts joined by dots, and every byte but letters, digits, - and _ written %XX")

// ParseKey reads what Key.String wrote. The empty string is the whole source.
// Nothing else is accepted, so that a key has one text only.
func ParseKey(s string) (Key, error) {
	if s == "" {
		return nil, nil
	}
	parts := strings.Split(s, ".")
	for i, part := range parts {
		if plain(part) {
			continue
		}
		raw, err := unescape(part)
		if err != nil {
			return nil, fmt.Errorf("reading key %q: %w", clip(s), err)
		}
		parts[i] = raw
	}
	return parts, nil
}

func unescape(part string) (string, error) {
	if part == "%" {
		return "", nil
	}
	raw := make([]byte, 0, len(part))
	for i := 0; i < len(part); i++ {
		if unescaped(part[i]) {
			raw = append(raw, part[i])
			continue
		}
		if part[i] != '%' || i+2 >= len(part) {
			return "", errKey
		}
		digits := part[i+1 : i+3]
		c, err := hex.DecodeString(digits)
		if err != nil || unescaped(c[0]) || strings.ToUpper(digits) != digits {
			return "", errKey
		}
		raw = append(raw, c[0])
		i += 2
	}
	if len(raw) == 0 {
		return "", errKey
	}
	return string(raw), nil
}

// clip keeps a text from strangers short in an error.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// within reports whether k is prefix or lies below it.
func (k Key) within(prefix Key) bool {
	if len(k) < len(prefix) {
		return false
	}
	for i, part := range prefix {
		if k[i] != part {
			return false
		}
	}
	return true
}

// A pattern says which keys a watcher wants: the text of a key in which "*" stands
// for one part and a last ">" for one or more.
type pattern []string

// ErrPattern says that a pattern cannot be read.
var ErrPattern = errors.New("not a pattern")

// parsePattern reads a pattern; the empty one is ">".
func parsePattern(s string) (pattern, error) {
	if s == "" {
		s = ">"
	}
	tokens := strings.Split(s, ".")
	for i, token := range tokens {
		if token == "*" || token == ">" && i == len(tokens)-1 {
			continue
		}
		if _, err := ParseKey(token); err != nil || token == "" {
			return nil, fmt.Errorf("reading pattern %q: %w: %q is neither a part of a key, nor *, nor a last >", clip(s), ErrPattern, clip(token))
		}
	}
	return tokens, nil
}

func (p pattern) String() string { return strings.Join(p, ".") }

// touches reports whether a key that p wants can be prefix or lie below it.
func (p pattern) touches(prefix Key) bool {
	for i, part := range prefix {
		if i == len(p) {
			return false
		}
		switch p[i] {
		case ">":
			return true
		case "*":
		default:
			if p[i] != (Key{part}).String() {
				return false
			}
		}
	}
	return true
}
