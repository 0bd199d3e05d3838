// Package strangers bounds what those cost whom nobody knows yet: how many connections of
// theirs a listener has, and how many of them wait to have a password verified.
package strangers

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// Most is how many connections without a known client a listener has at once, unless it
	// says another number. A stranger holds 57 KiB of a node by one, so that it is 30 MB.
	Most = 512
	// toldEvery is how often the operator is told.
	toldEvery = time.Minute
)

// ErrTooMany says why the connection of a stranger ends.
var ErrTooMany = errors.New("too many connections on which nobody is logged in")

// A Room is the connections of one listener. When one more comes than there may be, that
// network loses its oldest which has the most of them: who has just come, to log in, gets
// its turn, whatever crowd stands there. Make it with New. It is safe for concurrent use, and
// a nil one bounds nothing.
type Room struct {
	most int
	tell teller

	mu     sync.Mutex
	guests map[*Guest]bool
	web    map[string]*visit // of HTTP, by the address that they come from
	came   uint64
}

// A Guest is a connection in a Room.
type Guest struct {
	room    *Room
	network string
	end     func()
	came    uint64 // in which order, or when it was known last
	known   int    // requests under way of somebody who is known
}

// New makes a Room for most connections of strangers, or for Most if it is 0. tell, unless it
// is nil, is called once in a while with how many connections were ended.
func New(most int, tell func(count int, err error)) *Room {
	if most == 0 {
		most = Most
	}
	return &Room{most: most, tell: teller{tell: tell, why: ErrTooMany}, guests: map[*Guest]bool{}, web: map[string]*visit{}}
}

// For is New for a listener, whose method Crowded tells the operator if it has one. If most is
// 0, and the listener lets in more than Most a second, there is room for those of a second.
func For(ln net.Listener, most int) *Room {
	if l, ok := ln.(interface{ Rate() int }); ok && most == 0 {
		most = max(Most, l.Rate())
	}
	l, ok := ln.(interface{ Crowded(count int, err error) })
	if !ok {
		return New(most, nil)
	}
	return New(most, l.Crowded)
}

// Enter is for a connection that comes from that address, on which nobody is known. If it has to
// go, end is called, by a goroutine of its own.
func (r *Room) Enter(remote string, end func()) *Guest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.enter(remote, end)
}

// enter is Enter with mu held.
func (r *Room) enter(remote string, end func()) *Guest {
	r.came++
	g := &Guest{room: r, network: Network(remote), end: end, came: r.came}
	r.guests[g] = true
	r.thin()
	return g
}

// Leave is for when it is known who is there for good, or nobody is any more. It may be called again.
func (g *Guest) Leave() {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	delete(g.room.guests, g)
}

// thin ends connections of strangers until there are no more than there may be. It is called
// with mu held.
func (r *Room) thin() {
	counts, all := map[string]int{}, 0
	for g := range r.guests {
		if g.known == 0 {
			counts[g.network]++
			all++
		}
	}
	for ; all > r.most; all-- {
		var out *Guest
		for g := range r.guests {
			if g.known > 0 {
				continue
			}
			if out == nil || counts[g.network] > counts[out.network] || counts[g.network] == counts[out.network] && g.came < out.came {
				out = g
			}
		}
		delete(r.guests, out)
		counts[out.network]--
		go out.end()
		r.tell.one()
	}
}

// teller tells the operator how many there were, once in a while. Its mutex is its owner's.
type teller struct {
	tell  func(count int, err error)
	why   error
	count int // since it was told
	last  time.Time
}

// one counts one more.
func (t *teller) one() {
	t.count++
	if now := time.Now(); t.tell != nil && now.Sub(t.last) >= toldEvery {
		t.tell(t.count, t.why)
		t.count, t.last = 0, now
	}
}

// Network is the address that a connection is from, or the network of one customer: whoever
// has one address of IPv6 has as many as it likes.
func Network(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = strings.Trim(remote, "[]")
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if ip = ip.Unmap().WithZone(""); ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
