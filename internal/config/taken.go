package config

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// taken is what an import took over from the configuration of another product.
type taken struct {
	values map[string]string // by our paths, lists comma-separated
	notes  []string
}

func newTaken() taken { return taken{values: map[string]string{}} }

func (t *taken) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

func (t *taken) set(path string, texts ...string) {
	if text := strings.Join(texts, ","); text != "" {
		t.values[path] = text
	}
}

// addresses turns URLs into host:port.
func (t *taken) addresses(urls []string, port string) []string {
	var out []string
	for _, u := range urls {
		addr := u
		if _, rest, ok := strings.Cut(addr, "://"); ok {
			addr = rest
		}
		if i := strings.LastIndex(addr, "@"); i >= 0 {
			addr = addr[i+1:]
			t.note("the user and password in the URL of %s are left out: nodes and clients prove themselves by certificates and keys", addr)
		}
		addr, _, _ = strings.Cut(addr, "/")
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
		}
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// name makes a valid name of theirs.
func (t *taken) name(key, theirs string) string {
	ours := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, theirs)
	ours = strings.TrimLeft(ours, "-_")
	ours = ours[:min(len(ours), 63)]
	switch {
	case ours == "":
		t.note("%s %q cannot be a name here and is left out", key, theirs)
	case ours != theirs:
		t.note("%s %q became %q: a name has letters, digits, - and _ only", key, theirs, ours)
	}
	return ours
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
