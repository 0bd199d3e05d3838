package tunnel

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestMain(m *testing.M) { await.Main(m) }

// ends opens a tunnel between two connections of a server.
func ends(t *testing.T) (a, b net.Conn, hello []byte, ofA *nats.Conn) {
	t.Helper()
	return endsFor(t, func() time.Duration { return time.Hour })
}

// endsFor has left say for how long nobody takes the place of b.
func endsFor(t *testing.T, left func() time.Duration) (a, b net.Conn, hello []byte, ofA *nats.Conn) {
	t.Helper()
	s := fleetbustest.Start(t)
	one, other := s.Dial("acme", "left"), s.Dial("acme", "right")
	came := make(chan net.Conn, 1)
	said := make(chan []byte, 1)
	if _, err := Listen(other, "owner", left, func(hello []byte, c net.Conn) { said <- hello; came <- c }); err != nil {
		t.Fatal(err)
	}
	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}
	a, err := Dial(t.Context(), one, "owner", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	hello, b = <-said, <-came
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b, hello, one
}

// TestCarries sends much both ways at once.
func TestCarries(t *testing.T) {
	a, b, hello, _ := ends(t)
	if string(hello) != "hello" {
		t.Errorf("got %q", hello)
	}
	const size = 8 << 20
	results := make(chan error, 4)
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 100_003)
				if _, err := pair[0].Write(rest[:n]); err != nil {
					results <- err
					return
				}
				rest = rest[n:]
			}
			results <- nil
		}()
		go func() {
			got := make([]byte, size)
			_, err := io.ReadFull(pair[1], got)
			if err == nil && !bytes.Equal(got, sent) {
				err = errors.New("other bytes came than were sent")
			}
			results <- err
		}()
	}
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if _, err := a.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(b); err != nil || string(rest) != "last" {
		t.Errorf("got %q, %v after the other end closed", rest, err)
	}
	if _, err := b.Write([]byte("x")); err == nil {
		t.Error("it can be written to after the other end closed")
	}
}

// TestWaits bounds what is under way to who does not read, and keeps deadlines.
func TestWaits(t *testing.T) {
	a, b, _, _ := ends(t)
	if err := a.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := a.Write(make([]byte, 2*window))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > window {
		t.Errorf("wrote %d bytes to who does not read, %v", n, err)
	}
	if err := a.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read with a deadline that has passed: %v", err)
	}
	read := make(chan error, 1)
	if err := a.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := a.Read(make([]byte, 1))
		read <- err
	}()
	if err := a.SetReadDeadline(time.Now()); err != nil { // while it waits
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline that is set while it is read: %v", err)
	}
	if err := a.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.CopyN(io.Discard, b, int64(n)+1)
		b.Close()
	}()
	if _, err := a.Write([]byte("x")); err != nil {
		t.Errorf("once it is read: %v", err)
	}
	if err := a.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the other: %v", err)
	}
}

// TestLost ends a stream of which a part is missing, or whose end is gone.
func TestLost(t *testing.T) {
	a, b, _, of := ends(t)
	to := b.(*conn).inbox
	if err := of.Publish(to, []byte{data, 7, 'x'}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("a part is missing: %v", err)
	}
	for _, garbage := range [][]byte{nil, {taken}, {99, 1}, {taken, 0xff}, {data}} {
		if err := of.Publish(a.(*conn).inbox, garbage); err != nil {
			t.Fatal(err)
		}
	}
	of.Close()
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("the bus is gone: %v", err)
	}
	if _, err := Dial(t.Context(), of, "owner", nil); err == nil {
		t.Error("a tunnel over a connection that is closed")
	}
}

// TestHolds has an end that stood still pass nothing on that the other may have given up.
func TestHolds(t *testing.T) {
	var none atomic.Bool
	a, b, _, _ := endsFor(t, func() time.Duration {
		if none.Load() {
			return 0
		}
		return time.Hour
	})
	here := a.(*conn)
	if !here.holds() || here.until.Load() > int64(time.Since(here.born)+grant) {
		t.Errorf("what comes first holds until %v", time.Duration(here.until.Load()))
	}
	standStill := func() { here.until.Store(0) }
	standStill()
	if here.holds() || !here.Holds() || !here.holds() {
		t.Error("it is not asked whether the other end is there, which is")
	}
	none.Store(true)
	standStill()
	holds := make(chan bool)
	go func() { holds <- here.Holds() }()
	select {
	case is := <-holds:
		t.Errorf("it holds while nothing is granted: %v", is)
	case <-time.After(beat / 4):
	}
	none.Store(false)
	if !<-holds {
		t.Error("it does not hold once it is granted")
	}
	standStill()
	none.Store(true)
	go func() { holds <- here.Holds() }()
	b.Close()
	if <-holds {
		t.Error("it holds, and the other end is gone")
	}
}

// TestGivesUpLate has a stream whose other end is not there any more, or lost a part, end when
// that cannot pass on anything.
func TestGivesUpLate(t *testing.T) {
	for name, harm := range map[string]func(a, b *conn, of *nats.Conn) error{
		"nobody listens": func(a, _ *conn, _ *nats.Conn) error { return a.sub.Unsubscribe() },
		"a part is lost": func(_, b *conn, of *nats.Conn) error { return of.Publish(b.inbox, []byte{data, 7, 'x'}) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, _, of := ends(t)
			if err := harm(a.(*conn), b.(*conn), of); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			if a.(*conn).holds() {
				t.Error("the other end may still pass on what it has")
			}
		})
	}
}

// TestNobody says so.
func TestNobody(t *testing.T) {
	nc := fleetbustest.Start(t).Dial("acme", "left")
	if _, err := Dial(t.Context(), nc, "owner", nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("got %v", err)
	}
}

// FuzzHear has the other end say anything.
func FuzzHear(f *testing.F) {
	for _, seed := range [][]byte{{data, 0, 'x'}, {taken, 0x80, 1}, {alive}, {alive, 9}, {granted, 9, 9}, {end}, {data, 0xff, 0xff}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &conn{nc: new(nats.Conn), sub: new(nats.Subscription), timer: time.NewTimer(time.Hour)}
		c.changed.L = &c.mu
		c.hear(&nats.Msg{Data: b})
		if len(c.in) > window || c.taken > c.written {
			t.Error(fmt.Sprint(len(c.in), c.taken))
		}
		if to, rest, ok := cutHello(b); ok && len(to)+len(rest) >= len(b) {
			t.Error("more than there is")
		}
	})
}
