package change

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestKeyText(t *testing.T) {
	for text, key := range map[string]Key{
		"":                     nil,
		"customers":            {"customers"},
		"customers.42":         {"customers", "42"},
		"a%2Eb.c%20d":          {"a.b", "c d"},
		"%":                    {""},
		"%.%":                  {"", ""},
		"%2A.%3E":              {"*", ">"},
		"%00%0A%7F":            {"\x00\n\x7f"},
		"k%C3%B6ln":            {"köln"},
		"%25":                  {"%"},
		"A-Z_09":               {"A-Z_09"},
		"%FF":                  {"\xff"},
		"%24SYS.%24JS.%24KV":   {"$SYS", "$JS", "$KV"},
		"public%2Eorders.1.2.": nil,
	} {
		got, err := ParseKey(text)
		if strings.HasSuffix(text, ".") {
			if err == nil {
				t.Errorf("%q was read as %q", text, got)
			}
			continue
		}
		if err != nil || !slices.Equal(got, key) {
			t.Errorf("%q was read as %q: %v", text, got, err)
		}
		if key.String() != text {
			t.Errorf("%q is written %q, not %q", key, key, text)
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for _, text := range []string{".", "a.", ".a", "a..b", "a b", "*", ">", "a.*", "a%", "%4", "%4g", "%2e", "%41", "%%", "%any", "a\x00", "ä", "a.%any.b"} {
		if key, err := ParseKey(text); err == nil {
			t.Errorf("%q was read as %q", text, key)
		}
	}
}

func TestKeyIsReversible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := Key(rapid.SliceOfN(rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }), 1, 5).Draw(t, "key"))
		text := key.String()
		if strings.ContainsAny(text, " *>\r\n\t\x00") {
			t.Fatalf("%q cannot be a subject", text)
		}
		back, err := ParseKey(text)
		if err != nil || !slices.Equal(back, key) {
			t.Fatalf("%q became %q, and then %q: %v", key, text, back, err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"", "a.b", "%2E", "%", "%%", "%any.x", "a%C3%B6"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, err := ParseKey(s)
		if err == nil && key.String() != s {
			t.Errorf("%q was read as %q, which is written %q", s, key, key)
		}
	})
}

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern string
		prefix  Key
		touches bool
	}{
		{"", nil, true},
		{">", Key{"a"}, true},
		{"a.*", nil, true},
		{"a.*", Key{"a"}, true},
		{"a.*", Key{"b"}, false},
		{"a.*", Key{"a", "1"}, true},
		{"a.*", Key{"a", "1", "2"}, false},
		{"a.>", Key{"a", "1", "2"}, true},
		{"*.1", Key{"a"}, true},
		{"*.1", Key{"a", "2"}, false},
		{"a%2Eb", Key{"a.b"}, true},
		{"a%2Eb", Key{"a"}, false},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if p.touches(c.prefix) != c.touches {
			t.Errorf("%q touches %q: %v", c.pattern, c.prefix, !c.touches)
		}
	}
	for _, s := range []string{".", "a.", "a..b", ">.a", "a b", "a*", "%2e"} {
		if _, err := parsePattern(s); err == nil {
			t.Errorf("pattern %q was accepted", s)
		}
	}
}
