package openstack

import (
	"path"
	"strings"
	"testing"
	"unicode"
)

// TestHostileHosts reads hosts whose names lead elsewhere, or do something where they are shown:
// none is taken, and what is told of them is short and does nothing.
func TestHostileHosts(t *testing.T) {
	for _, name := range []string{
		"../../etc/x", "..", ".", "/etc/passwd", "a/../../b", "a..b", ".a", "a.", "a\\..\\b", "C:x", "~root", "-rf", "$(id)", "`id`", "a;b", "a%2f..%2fb", "a\x00b", "a\x1b[31mb", "a\u202eb", "a\u2028b", "a\u009b2J",
		"{service}", "{host}", "a=b", "a@b", "a:b", "a?b", "\xff\xfe", strings.Repeat("a", 254), strings.Repeat("a.", 5000), strings.Repeat("\x1b", 200), "ok \x1b]0;x\a", "ok " + strings.Repeat("x", 100_000),
	} {
		hosts, err := ParseHosts("hosts", []byte(name+" compute\n"))
		if err == nil {
			t.Errorf("there are hosts %q", hosts)
			continue
		}
		text := err.Error()
		if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' }); i >= 0 {
			t.Errorf("what is told of %.40q has a character that does something: %.200q", name, text)
		}
		if len(text) > 2000 {
			t.Errorf("%d bytes are told of %.40q", len(text), name)
		}
	}
	if _, err := ParseHosts("hosts", []byte(strings.Repeat("x\n", 1<<20))); err == nil || len(err.Error()) > 100_000 {
		t.Errorf("a file of another sort: %d bytes are told", len(err.Error()))
	}
	// What is taken makes files below its own directory.
	p := planned(t, request(t, "cmp1.example.net compute\nA--b.c network,controller\n", "nova", "neutron"))
	for _, step := range p.Steps() {
		if step.Kind == "file" && (path.Clean(step.Name) != step.Name || path.IsAbs(step.Name) || strings.HasPrefix(step.Name, "..")) {
			t.Errorf("a plan has file %q", step.Name)
		}
	}
}
