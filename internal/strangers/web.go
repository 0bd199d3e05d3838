package strangers

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"
)

// parting is how long a stranger may take to read why its connection ends.
const parting = time.Second

// farewell is what it is sent, if it waits for no answer: 408 is what a server says of itself
// before it closes a connection, and clients come again (RFC 9110, 15.5.9).
const farewell = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"

// told is the body of it.
const told = `{"error":"too many are connected here who are not logged in","fix":"connect again, and log in with the first request"}` + "\n"

// A visit is a connection of HTTP.
type visit struct {
	*Guest
	conn   net.Conn
	active bool // a request is under way
}

// Watch is the ConnState of an http.Server.
func (r *Room) Watch(conn net.Conn, now http.ConnState) {
	remote := conn.RemoteAddr().String()
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.web[remote]
	switch now {
	case http.StateNew:
		v = &visit{conn: conn}
		r.web[remote] = v
		v.Guest = r.enter(remote, v.end)
	case http.StateClosed, http.StateHijacked:
		if v != nil && v.conn == conn {
			delete(r.web, remote)
			delete(r.guests, v.Guest)
		}
	default:
		if v != nil && v.conn == conn {
			v.active = now == http.StateActive
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
	v := r.web[remote]
	if v == nil || !r.guests[v.Guest] {
		return func() {}
	}
	v.known++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		v.known--
		r.came++
		v.came = r.came
		if r.guests[v.Guest] {
			r.thin()
		}
	}
}

// end tells the other side why, unless it waits for an answer or speaks HTTP/2, and closes
// the connection.
func (v *visit) end() {
	v.room.mu.Lock()
	active := v.active
	v.room.mu.Unlock()
	secure, isTLS := v.conn.(*tls.Conn)
	if !active && !(isTLS && secure.ConnectionState().NegotiatedProtocol == "h2") {
		_ = v.conn.SetWriteDeadline(time.Now().Add(parting))
		_, _ = fmt.Fprintf(v.conn, farewell, len(told), told)
	}
	if isTLS {
		_ = secure.NetConn().SetDeadline(time.Now().Add(parting)) // it may not read
	}
	_ = v.conn.Close()
}
