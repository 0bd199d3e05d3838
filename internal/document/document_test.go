package document

import (
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// TestEscape checks that nothing that is printed can control a terminal.
func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain é 日本 🚀":         "plain é 日本 🚀",
		"a\tb\nc\rd":           `a\tb\nc\rd`,
		"\x1b]0;title\a":       `\x1b]0;title\x07`,
		"\u009b2J\x7f":         `\x9b2J\x7f`,
		"\xff\xfe":             `\xff\xfe`,
		"\ufffd":               "\ufffd",
		"abc\u202edcba\u2028x": `abc\u202edcba\u2028x`,
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, not %q", in, got, want)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		s := string(rapid.SliceOf(rapid.Byte()).Draw(r, "bytes"))
		if i := strings.IndexFunc(Escape(s), unicode.IsControl); i >= 0 {
			r.Fatalf("Escape(%q) = %q has a control character", s, Escape(s))
		}
	})
}
