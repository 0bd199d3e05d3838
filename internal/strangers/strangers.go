// Package strangers bounds the connections of HTTP on which nobody is known: each may come
// back with a request before it is idle for too long, so that time alone does not bound how
// many there are, and what they hold.
package strangers

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	// Most is how many connections without a known client a listener has at once, unless it
	// says another number. A stranger holds 55 KiB of a node by one, so that it is 30 MB.
	Most = 512
	// parting is how long a stranger may take to read why its connection ends.
	parting = time.Second
	// toldEvery is how often the operator is told.
	toldEvery = time.Minute
)

// ErrTooMany says why the connection of a stranger ends.
var ErrTooMany = errors.New("too many connections on which nobody is logged in")

// farewell is what it is sent, if it waits for no answer: 408 is what a server says of itself
// before it closes a connection, and clients come again (RFC 9110, 15.5.9).
const farewell = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"

// told is the body of it.
const told = `{"error":"too many are connected here who are not logged in","fix":"connect again, and log in with the first request"}` + "\n"

// A Room is the connections of one listener. When one more comes than there may be, that
// network loses its oldest which has the most of them: who has just come, to log in, gets
// its turn, whatever crowd stands there. Make it with New. It is safe for concurrent use, and
// a nil one bounds nothing.
type Room struct {
	most int
	tell func(count int, err error)

	mu     sync.Mutex
	guests map[string]*guest // by the address that they come from
	came   uint64
	ended  int // since the operator was told
	last   time.Time
}

// A guest is a connection.
type guest struct {
	conn    net.Conn
	network string
	came    uint64 // in which order, or when it was known last
	known   int    // requests under way of somebody who is known
	active  bool   // a request is under way
}

// New makes a Room for most connections of strangers, or for Most if it is 0. tell, unless it
// is nil, is called once in a while with how many connections were ended.
func New(most int, tell func(count int, err error)) *Room {
	if most == 0 {
		most = Most
	}
	return &Room{most: most, tell: tell, guests: map[string]*guest{}}
}

// For is New for a listener, whose method Crowded tells the operator if it has one.
func For(ln net.Listener, most int) *Room {
	teller, ok := ln.(interface{ Crowded(count int, err error) })
	if !ok {
		return New(most, nil)
	}
	return New(most, teller.Crowded)
}

// Watch is the ConnState of an http.Server.
func (r *Room) Watch(conn net.Conn, now http.ConnState) {
	remote := conn.RemoteAddr().String()
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[remote]
	switch now {
	case http.StateNew:
		r.came++
		r.guests[remote] = &guest{conn: conn, network: Network(remote), came: r.came}
		r.thin()
	case http.StateClosed, http.StateHijacked:
		if g != nil && g.conn == conn {
			delete(r.guests, remote)
		}
	default:
		if g != nil && g.conn == conn {
			g.active = now == http.StateActive
		}
	}
}

// Known says that a request from that address is of somebody who is known, until leave. The
// connection stays, however many strangers there are, and is as if it had just come then.
func (r *Room) Known(remote string) (leave func()) {
	if r == nil {
		return func() {}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.guests[remote]
	if g == nil {
		return func() {}
	}
	g.known++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		g.known--
		r.came++
		g.came = r.came
		if r.guests[remote] == g {
			r.thin()
		}
	}
}

// thin ends connections of strangers until there are no more than there may be. It is called
// with mu held.
func (r *Room) thin() {
	counts, all := map[string]int{}, 0
	for _, g := range r.guests {
		if g.known == 0 {
			counts[g.network]++
			all++
		}
	}
	for ; all > r.most; all-- {
		var first string
		var out *guest
		for remote, g := range r.guests {
			if g.known > 0 {
				continue
			}
			if out == nil || counts[g.network] > counts[out.network] || counts[g.network] == counts[out.network] && g.came < out.came {
				first, out = remote, g
			}
		}
		delete(r.guests, first)
		counts[out.network]--
		go out.end()
		r.ended++
	}
	if now := time.Now(); r.ended > 0 && r.tell != nil && now.Sub(r.last) >= toldEvery {
		r.tell(r.ended, ErrTooMany)
		r.ended, r.last = 0, now
	}
}

// end tells the other side why, unless it waits for an answer or speaks HTTP/2, and closes
// the connection.
func (g *guest) end() {
	secure, isTLS := g.conn.(*tls.Conn)
	if !g.active && !(isTLS && secure.ConnectionState().NegotiatedProtocol == "h2") {
		_ = g.conn.SetWriteDeadline(time.Now().Add(parting))
		_, _ = fmt.Fprintf(g.conn, farewell, len(told), told)
	}
	if isTLS {
		_ = secure.NetConn().SetDeadline(time.Now().Add(parting)) // it may not read
	}
	_ = g.conn.Close()
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
