package strangers

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"
)

// serve has a room of three before a server that knows whoever says so, until the test ends.
// Its connections are as from the addresses of from, in turn.
func serve(t *testing.T, r *Room, from ...string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ConnState: r.Watch, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Known") != "" {
			defer r.Known(q.RemoteAddr)()
		}
		_, _ = io.WriteString(w, q.RemoteAddr)
		_ = http.NewResponseController(w).Flush()
		if q.URL.Path == "/wait" {
			<-q.Context().Done()
		}
	})}
	var running sync.WaitGroup
	running.Go(func() { _ = srv.Serve(&renamed{Listener: ln, from: from}) })
	t.Cleanup(func() {
		_ = srv.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

// renamed says that its connections come from elsewhere.
type renamed struct {
	net.Listener
	from []string
	n    int
}

type renamedConn struct {
	net.Conn
	from string
}

func (r *renamed) Accept() (net.Conn, error) {
	conn, err := r.Listener.Accept()
	if err != nil || len(r.from) == 0 {
		return conn, err
	}
	r.n++
	return renamedConn{conn, r.from[(r.n-1)%len(r.from)]}, nil
}

func (c renamedConn) RemoteAddr() net.Addr { return fake(c.from) }

type fake string

func (f fake) Network() string { return "tcp" }
func (f fake) String() string  { return string(f) }

// A client is one connection.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{conn, bufio.NewReader(conn)}
}

// ask sends a request and returns the code of the answer.
func (c *client) ask(path, header string) (int, error) {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n"+header+"\r\n"); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, err
	}
	if path != "/wait" {
		_, err = io.Copy(io.Discard, answer.Body)
	}
	return answer.StatusCode, err
}

// idle reports whether no request is under way on a connection.
func (r *Room) idle(remote string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.web[remote]
	return v != nil && !v.active
}

// gone waits for the connection's end, and returns what it is told before.
func (c *client) gone() (string, error) {
	text, err := io.ReadAll(c.in)
	return string(text), err
}

// TestRoom ends the oldest of those who are too many, says why, and keeps who is known.
func TestRoom(t *testing.T) {
	var mu sync.Mutex
	var counts []int
	r := New(3, func(count int, err error) {
		mu.Lock()
		defer mu.Unlock()
		counts = append(counts, count)
		if !errors.Is(err, ErrTooMany) {
			t.Errorf("the operator is told of %v", err)
		}
	})
	addr := serve(t, r)
	known := dial(t, addr)
	if code, err := known.ask("/wait", "Known: yes\r\n"); code != http.StatusOK {
		t.Fatalf("%d %v", code, err)
	}
	var all []*client
	for range 6 {
		c := dial(t, addr)
		if code, err := c.ask("/", ""); code != http.StatusOK {
			t.Fatalf("who comes last is answered %d: %v", code, err)
		}
		// The server knows a moment later than the client that the answer is over.
		if !await.True(10*time.Second, func() bool { return r.idle(c.LocalAddr().String()) }) {
			t.Fatal("the answer does not end")
		}
		all = append(all, c)
	}
	for i, c := range all[:3] {
		if text, err := c.gone(); err != nil || !strings.HasPrefix(text, "HTTP/1.1 408 ") || !strings.Contains(text, "too many are connected") {
			t.Errorf("stranger %d was told %q: %v", i, text, err)
		}
	}
	for i, c := range all[3:] {
		if code, err := c.ask("/", ""); code != http.StatusOK {
			t.Errorf("stranger %d is answered %d: %v", i+3, code, err)
		}
	}
	// Who was known is as if it had just come.
	if code, err := all[3].ask("/", "Known: yes\r\n"); code != http.StatusOK {
		t.Fatalf("%d %v", code, err)
	}
	if code, err := dial(t, addr).ask("/", ""); code != http.StatusOK {
		t.Fatalf("%d %v", code, err)
	}
	if _, err := all[4].gone(); err != nil {
		t.Errorf("the oldest did not go: %v", err)
	}
	if code, err := all[3].ask("/", ""); code != http.StatusOK {
		t.Errorf("who was known is answered %d: %v", code, err)
	}
	_ = known.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := known.gone(); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("who is known was sent away: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(counts, []int{1}) {
		t.Errorf("the operator was told %v in one minute", counts)
	}
}

// TestNetworks takes from the network that has the most, so that who comes from another stays.
func TestNetworks(t *testing.T) {
	crowd := func(n string) string { return "[2001:db8:1:1::" + n + "]:1" }
	addr := serve(t, New(3, nil), "192.0.2.1:1", crowd("1"), crowd("2"), crowd("3"), crowd("4"), crowd("5"))
	var all []*client
	for range 6 {
		c := dial(t, addr)
		if code, err := c.ask("/", ""); code != http.StatusOK {
			t.Fatalf("%d %v", code, err)
		}
		all = append(all, c)
	}
	for _, i := range []int{1, 2, 3} {
		if _, err := all[i].gone(); err != nil {
			t.Errorf("%d of the crowd stays: %v", i, err)
		}
	}
	if code, err := all[0].ask("/", ""); code != http.StatusOK {
		t.Errorf("who was there before the crowd is answered %d: %v", code, err)
	}
}

// TestMuteStranger ends one that reads nothing and has an answer under way, and one whose
// request does not end.
func TestMuteStranger(t *testing.T) {
	addr := serve(t, New(1, nil))
	waits, slow := dial(t, addr), dial(t, addr)
	if code, err := waits.ask("/wait", ""); err == nil && code != http.StatusOK && code != http.StatusRequestTimeout {
		t.Fatalf("%d %v", code, err)
	}
	if _, err := io.WriteString(slow, "GET / HTTP/1.1\r\nHost:"); err != nil {
		t.Fatal(err)
	}
	if code, err := dial(t, addr).ask("/", ""); code != http.StatusOK {
		t.Errorf("who comes last is answered %d: %v", code, err)
	}
	for _, c := range []*client{waits, slow} {
		if _, err := c.gone(); err != nil && !errors.Is(err, context.Canceled) && strings.Contains(err.Error(), "timeout") {
			t.Errorf("it stays: %v", err)
		}
	}
}

// TestEnter has those come whom no protocol of HTTP serves: who is known does not go, and who
// has gone is not ended.
func TestEnter(t *testing.T) {
	r := New(2, nil)
	ended := make(chan string, 10)
	enter := func(name, remote string) *Guest { return r.Enter(remote, func() { ended <- name }) }
	gone := func(want string) {
		t.Helper()
		select {
		case got := <-ended:
			if got != want {
				t.Errorf("%q ends, and %q is the one to go", got, want)
			}
		case <-time.After(time.Minute):
			t.Errorf("%q does not end", want)
		}
	}
	enter("known", "192.0.2.1:1").Leave()
	enter("other", "192.0.2.2:1")
	gone1 := enter("gone", "192.0.2.1:2")
	gone1.Leave()
	gone1.Leave()
	enter("first", "192.0.2.1:3")
	enter("second", "192.0.2.1:4")
	gone("first")
	enter("third", "192.0.2.1:5")
	gone("second")
	enter("last", "192.0.2.3:1") // each network has one
	gone("other")
	if len(ended) > 0 {
		t.Errorf("%q ends, too", <-ended)
	}
}

// counted is a listener that lets in so many a second.
type counted struct {
	net.Listener
	rate int
}

func (c counted) Rate() int { return c.rate }

// TestFor makes room for those who come in a second, if that is more.
func TestFor(t *testing.T) {
	for _, c := range []struct{ rate, most, want int }{{500, 0, Most}, {5000, 0, 5000}, {5000, 256, 256}} {
		if got := For(counted{rate: c.rate}, c.most).most; got != c.want {
			t.Errorf("with %d a second there are %d, and should be %d", c.rate, got, c.want)
		}
	}
}

// TestNobody bounds nothing without a room, and forgets who is gone.
func TestNobody(t *testing.T) {
	var none *Room
	none.Known("192.0.2.1:1")()
	r := New(2, nil)
	r.Known("192.0.2.1:1")()
	addr := serve(t, r)
	for range 5 {
		c := dial(t, addr)
		if code, err := c.ask("/", "Connection: close\r\n"); code != http.StatusOK {
			t.Fatalf("%d %v", code, err)
		}
		if text, err := c.gone(); err != nil || text != "" {
			t.Errorf("%q %v", text, err)
		}
	}
	for text, want := range map[string]string{
		"192.0.2.1:1": "192.0.2.1", "[::ffff:192.0.2.1]:1": "192.0.2.1", "[2001:db8::1]:1": "2001:db8::/64", "[fe80::1%eth0]:1": "fe80::/64",
		"2001:db8::2": "2001:db8::/64", "[2001:db8::2]": "2001:db8::/64", "pipe": "pipe",
	} {
		if got := Network(text); got != want {
			t.Errorf("the network of %s is %s", text, got)
		}
	}
}
