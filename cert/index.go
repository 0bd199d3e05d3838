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

	"golang.org/x/net/idna"
)

// maxName is the longest name that is looked for: RFC 1035's 253 characters, and a dot.
const maxName = 254

// An index finds certificates by the names that clients ask for. It does not change
// once it is made, so that a handshake needs no lock.
type index struct {
	// names are whole names; wildcards are what comes behind "*.".
	names, wildcards map[string][]*candidate
	addresses        map[netip.Addr][]*candidate
	addressed        [32]byte // a hash of all in addresses
	// fallback is for who asks for no name, or one that nobody has.
	fallback [2][]*candidate
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
	x := &index{names: make(map[string][]*candidate, len(all)), wildcards: map[string][]*candidate{}, addresses: map[netip.Addr][]*candidate{}}
	for _, c := range all {
		for _, name := range c.names {
			name, _ = aLabels(name)
			if parent, ok := strings.CutPrefix(name, "*."); ok {
				x.wildcards[parent] = append(x.wildcards[parent], c.candidate)
			} else if ip, err := netip.ParseAddr(name); err == nil {
				x.addresses[ip.Unmap()] = append(x.addresses[ip.Unmap()], c.candidate)
			} else if name != "" {
				x.names[name] = append(x.names[name], c.candidate)
			}
		}
	}
	for _, list := range x.names {
		slices.SortFunc(list, prefer)
	}
	for _, list := range x.wildcards {
		slices.SortFunc(list, prefer)
	}
	for _, ip := range slices.SortedFunc(maps.Keys(x.addresses), netip.Addr.Compare) {
		slices.SortFunc(x.addresses[ip], prefer)
		for _, c := range x.addresses[ip] {
			x.addressed = sha256.Sum256(append(x.addressed[:], c.mark[:]...))
		}
	}
	if fallback != "" {
		var buf [maxName]byte
		x.fallback[0], x.fallback[1] = x.find(fallback, &buf)
	}
	return x
}

// lookup returns what is served to who says hello; nil if nothing is.
func (x *index) lookup(hello *tls.ClientHelloInfo, now int64) *candidate {
	// What has the name itself goes before what has it by a wildcard, and that before
	// what everybody gets; but what is valid goes before what is not.
	var buf [maxName]byte
	named, wild := x.find(hello.ServerName, &buf)
	if named == nil && wild == nil && len(x.addresses) > 0 && hello.Conn != nil {
		named = x.addresses[localAddress(hello.Conn)]
	}
	lists := [4][]*candidate{named, wild, x.fallback[0], x.fallback[1]}
	for _, list := range lists {
		if c := choose(list, hello, now); c != nil {
			return c
		}
	}
	for _, list := range lists {
		for _, c := range list {
			if len(list) == 1 || hello.SupportsCertificate(c.tls) == nil {
				return c // not valid, but nobody has a better one
			}
		}
	}
	for _, list := range lists {
		if len(list) > 0 {
			return list[0]
		}
	}
	return nil
}

// choose returns the first of list that is valid and that the client can use.
func choose(list []*candidate, hello *tls.ClientHelloInfo, now int64) *candidate {
	mixed := false
	for _, c := range list {
		mixed = mixed || c.key != list[0].key || c.key == ""
	}
	for _, c := range list {
		// If all are of a kind, there is nothing to choose by what the client can.
		if c.from <= now && now < c.to && (!mixed || len(list) == 1 || hello.SupportsCertificate(c.tls) == nil) {
			return c
		}
	}
	return nil
}

// find returns who has the name itself, and who has it by a wildcard of one label. buf
// is room for a name that has to be changed first.
func (x *index) find(name string, buf *[maxName]byte) (named, wild []*candidate) {
	if name == "" || len(name) > maxName {
		return nil, nil
	}
	if name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	plain, dot := true, -1
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 0x80:
			labels, err := aLabels(name)
			if err != nil || len(labels) > maxName {
				return nil, nil
			}
			parent := labels[strings.IndexByte(labels, '.')+1:]
			if parent == labels {
				return x.names[labels], nil
			}
			return x.names[labels], x.wildcards[parent]
		case 'A' <= c && c <= 'Z':
			plain = false
		case c == '.' && dot < 0:
			dot = i
		}
	}
	if plain {
		if dot > 0 {
			wild = x.wildcards[name[dot+1:]]
		}
		return x.names[name], wild
	}
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	lower := buf[:len(name)]
	if dot > 0 {
		wild = x.wildcards[string(lower[dot+1:])]
	}
	return x.names[string(lower)], wild
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
	name, err := idna.Lookup.ToASCII(name)
	return star + name, err
}

// localAddress is where the client connected to.
func localAddress(conn net.Conn) netip.Addr {
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
