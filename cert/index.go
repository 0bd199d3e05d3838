package cert

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// maxName is the longest name that is looked for: RFC 1035's 253 characters, and a dot.
const maxName = 254

// An index finds certificates by the names that clients ask for. It does not change
// once it is made, so that a handshake needs no lock.
type index struct {
	// names are whole names; wildcards are what comes behind "*.".
	names, wildcards map[string]choices
	addresses        map[netip.Addr]choices
	addressed        [32]byte // a hash of all in addresses
	// fallback is for who asks for no name, or one that nobody has.
	fallback [2]choices
}

// Choices are all that is for a name, what is preferred first. That one is here too, so
// that most handshakes look no further.
type choices struct {
	first    *tls.Certificate
	from, to int64
	mixed    bool // which one it is depends on what the client can
	all      []*candidate
}

func (l *choices) add(c *candidate) {
	l.all = append(l.all, c)
	slices.SortFunc(l.all, prefer)
	l.first, l.from, l.to = l.all[0].tls, l.all[0].from, l.all[0].to
	l.mixed = slices.ContainsFunc(l.all, func(o *candidate) bool { return o.key != c.key || o.key == "" && len(l.all) > 1 })
}

// A candidate is a certificate, ready to be served.
type candidate struct {
	tls        *tls.Certificate
	from, to   int64 // when it is valid, in Unix seconds
	generation uint64
	id         string
	key        string   // what tells for which clients it is; "" if that has to be asked
	mark       [32]byte // its hash
}

func newCandidate(c *tls.Certificate, id string, generation uint64) *candidate {
	kind := ""
	switch k := c.Leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		kind = k.Curve.Params().Name
	case *rsa.PublicKey:
		kind = "rsa"
	}
	return &candidate{tls: c, from: c.Leaf.NotBefore.Unix(), to: c.Leaf.NotAfter.Unix(), generation: generation, id: id, key: kind, mark: sha256.Sum256(c.Leaf.Raw)}
}

// prefer orders candidates: the one that was issued last comes first.
func prefer(a, b *candidate) int {
	return cmp.Or(cmp.Compare(b.from, a.from), cmp.Compare(b.generation, a.generation), cmp.Compare(a.id, b.id))
}

// newIndex makes an index. Without a name, or with one that nobody has, a client gets
// what it would get for the fallback name; nothing if that is empty.
func newIndex(all []*installed, fallback string) *index {
	x := &index{names: make(map[string]choices, len(all)), wildcards: map[string]choices{}, addresses: map[netip.Addr]choices{}}
	for _, c := range all {
		for _, name := range c.names {
			if parent, ok := strings.CutPrefix(name, "*."); ok {
				put(x.wildcards, parent, c.candidate)
			} else if ip, err := netip.ParseAddr(name); err == nil {
				put(x.addresses, ip.Unmap(), c.candidate)
			} else {
				put(x.names, name, c.candidate)
			}
		}
	}
	for _, ip := range slices.SortedFunc(maps.Keys(x.addresses), netip.Addr.Compare) {
		for _, c := range x.addresses[ip].all {
			x.addressed = sha256.Sum256(append(x.addressed[:], c.mark[:]...))
		}
	}
	var buf [maxName]byte
	if name := ask(fallback, &buf); name.text != "" {
		x.fallback[0], x.fallback[1] = name.in(x.names), name.parentIn(x.wildcards)
	}
	return x
}

func put[K comparable](m map[K]choices, key K, c *candidate) {
	l := m[key]
	l.add(c)
	m[key] = l
}

// lookup returns what is served to who says hello; nil if nothing is.
func (x *index) lookup(hello *tls.ClientHelloInfo, now int64) *tls.Certificate {
	// What has the name itself goes before what has it by a wildcard, and that before
	// what everybody gets; but what is valid goes before what is not.
	var buf [maxName]byte
	name := ask(hello.ServerName, &buf)
	named := name.in(x.names)
	if !named.mixed && named.from <= now && now < named.to {
		return named.first
	}
	wild := name.parentIn(x.wildcards)
	if named.all == nil && wild.all == nil && len(x.addresses) > 0 && hello.Conn != nil {
		named = x.addresses[localAddress(hello.Conn)]
	}
	lists := [4][]*candidate{named.all, wild.all, x.fallback[0].all, x.fallback[1].all}
	for _, all := range lists {
		if c := choose(all, hello, now); c != nil {
			return c
		}
	}
	for _, all := range lists {
		if c := choose(all, hello, 0); c != nil {
			return c // not valid, but nobody has a better one
		}
	}
	for _, all := range lists {
		if len(all) > 0 {
			return all[0].tls
		}
	}
	return nil
}

// choose returns the first that is valid, unless now is 0, and that the client can use.
func choose(all []*candidate, hello *tls.ClientHelloInfo, now int64) *tls.Certificate {
	for _, c := range all {
		if (now == 0 || c.from <= now && now < c.to) && (len(all) == 1 || supports(hello, c.tls)) {
			return c.tls
		}
	}
	return nil
}

// supports reports whether the client can use a certificate, whatever it is for.
func supports(hello *tls.ClientHelloInfo, c *tls.Certificate) bool {
	nameless := *hello
	nameless.ServerName = "" // the default is for names that it has not
	return nameless.SupportsCertificate(c) == nil
}

// A name that is asked for. Where it is not what certificates have, lower is.
type askedName struct {
	text  string
	lower []byte
	dot   int // the first one; -1 if there is none
}

// ask reads a name that a client asks for: it is empty if that can be nobody's. buf is
// room for one that has to be changed.
func ask(text string, buf *[maxName]byte) askedName {
	if len(text) > maxName {
		return askedName{}
	}
	text = strings.TrimSuffix(text, ".")
	name, plain := askedName{text: text, dot: -1}, true
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 0x80:
			labels, err := aLabels(text)
			if err != nil || len(labels) > maxName {
				return askedName{}
			}
			return askedName{text: labels, dot: strings.IndexByte(labels, '.')}
		case 'A' <= c && c <= 'Z':
			plain = false
		case c == '.' && name.dot < 0:
			name.dot = i
		}
	}
	if plain {
		return name
	}
	for i := range len(text) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	name.lower = buf[:len(text)]
	return name
}

// in is what the name has itself.
func (n askedName) in(m map[string]choices) choices {
	if n.lower != nil {
		return m[string(n.lower)]
	}
	return m[n.text]
}

// parentIn is what the name has without its first label.
func (n askedName) parentIn(m map[string]choices) choices {
	switch {
	case n.dot <= 0:
		return choices{}
	case n.lower != nil:
		return m[string(n.lower[n.dot+1:])]
	}
	return m[n.text[n.dot+1:]]
}

// aLabels is a name as certificates have it: lower case, without the last dot, and
// A-labels for whatever is not ASCII.
func aLabels(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if !strings.ContainsFunc(name, func(r rune) bool { return r >= 0x80 }) {
		return strings.ToLower(name), nil
	}
	star := ""
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		star, name = "*.", rest
	}
	name, err := ToASCII(name)
	return star + name, err
}

// localAddress is where the client connected to.
func localAddress(conn net.Conn) netip.Addr {
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
