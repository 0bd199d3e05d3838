package broker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// TestPipe sends much each way at once, in pieces of any size.
func TestPipe(t *testing.T) {
	a, b := newPipe(new(sync.Pool))
	var both sync.WaitGroup
	for seed, way := range [][2]net.Conn{{a, b}, {b, a}} {
		random := rand.New(rand.NewPCG(uint64(seed), 2))
		sent := make([]byte, 3<<20)
		for i := range sent {
			sent[i] = byte(random.Uint32())
		}
		both.Go(func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+random.IntN(100_000))
				if _, err := way[0].Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		both.Go(func() {
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("it is not what was sent: %v", err)
			}
		})
	}
	both.Wait()
	if n, err := a.Write([]byte("last")); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	a.Close()
	if got, err := io.ReadAll(b); err != nil || string(got) != "last" {
		t.Errorf("%q %v", got, err)
	}
	for what, do := range map[string]func() (int, error){
		"writing to who is gone": func() (int, error) { return b.Write([]byte("x")) },
		"reading after the end":  func() (int, error) { return a.Read(make([]byte, 1)) },
	} {
		if n, err := do(); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: %d %v", what, n, err)
		}
	}
}

// TestPipeWaits has each end wait until its time is over, it is told otherwise, or the
// other end closes.
func TestPipeWaits(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(net.Conn) error
		by   func(net.Conn, time.Time) error
		then error // when the other end closes
	}{
		"read":  {func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }, net.Conn.SetReadDeadline, io.EOF},
		"write": {func(c net.Conn) error { _, err := c.Write(make([]byte, 2*pipeSize)); return err }, net.Conn.SetWriteDeadline, io.ErrClosedPipe},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newPipe(new(sync.Pool))
			if err := c.by(a, time.Now().Add(10*time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if err := c.do(a); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after its time: %v", err)
			}
			if err := c.by(a, time.Time{}); err != nil {
				t.Fatal(err)
			}
			waiting := make(chan error)
			go func() { waiting <- c.do(a) }()
			if err := c.by(a, time.Now().Add(-time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := <-waiting; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("told while it waits: %v", err)
			}
			if err := c.by(a, time.Time{}); err != nil {
				t.Fatal(err)
			}
			go func() { waiting <- c.do(a) }()
			b.Close()
			if err := <-waiting; !errors.Is(err, c.then) {
				t.Errorf("the other end closed: %v", err)
			}
		})
	}
}

// TestHold keeps what a client says from the engine, until it may hear it.
func TestPause(t *testing.T) {
	i := new(inside)
	connect := func() (client, engine *pipe) {
		client, engine = newPipe(&i.buffers)
		i.heard.Store(engine.in, nil)
		client.forget = func() { i.heard.Delete(engine.in) }
		return client, engine
	}
	read := func(from *pipe) chan string {
		got := make(chan string, 1)
		go func() {
			b := make([]byte, 10)
			n, err := from.Read(b)
			got <- fmt.Sprint(string(b[:n]), err)
		}()
		return got
	}
	client, engine := connect()
	urgent, hears := connect()
	urgent.forget()
	i.pause(true)
	for _, c := range []*pipe{client, urgent} {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-read(hears); got != "x<nil>" {
		t.Errorf("the urgent one is heard as %q", got)
	}
	engine.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if got := <-read(engine); got != os.ErrDeadlineExceeded.Error() {
		t.Errorf("one that pauses is heard as %q", got)
	}
	engine.SetReadDeadline(time.Time{})
	if _, err := engine.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if got := <-read(client); got != "y<nil>" {
		t.Errorf("one that pauses hears %q", got)
	}
	waits := read(engine)
	i.pause(false)
	if got := <-waits; got != "x<nil>" {
		t.Errorf("it paused, and is heard as %q", got)
	}
	// Who closes is let go, whenever that is.
	i.pause(true)
	waits = read(engine)
	client.Close()
	if got := <-waits; got != io.EOF.Error() {
		t.Errorf("one that pauses and closes is heard as %q", got)
	}
}
