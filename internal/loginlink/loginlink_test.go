package loginlink

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestOnce(t *testing.T) {
	var l Links
	now := time.Now()
	secret, ends := l.Add("FLEET/admin", now)
	if !ends.Equal(now.Add(Life)) || len(secret) < 30 {
		t.Errorf("the link is %q until %v", secret, ends)
	}
	if who := l.Redeem(secret+"x", now); who != "" {
		t.Errorf("another secret is of %q", who)
	}
	// However many try at once, one is let in.
	var in atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if l.Redeem(secret, now) == "FLEET/admin" {
				in.Add(1)
			}
		})
	}
	all.Wait()
	if in.Load() != 1 {
		t.Errorf("%d were let in by one link", in.Load())
	}
}

func TestLateAndMany(t *testing.T) {
	var l Links
	now := time.Now()
	late, _ := l.Add("late", now)
	if who := l.Redeem(late, now.Add(Life)); who != "" {
		t.Errorf("a link that has expired is of %q", who)
	}
	first, _ := l.Add("first", now)
	var last string
	for i := range most {
		last, _ = l.Add("last", now.Add(time.Duration(i+1)*time.Millisecond))
	}
	if l.Redeem(first, now) != "" || l.Redeem(last, now) != "last" || len(l.all) > most {
		t.Errorf("the oldest is there still, the newest is not, or there are %d", len(l.all))
	}
}

func TestTicket(t *testing.T) {
	key, now := []byte("a key of thirty-two bytes or so."), time.Now()
	text := Ticket(key, "acme/alice", now.Add(time.Hour), now)
	for what, bad := range map[string]string{
		"late":            Open(key, text, now.Add(TicketLife+time.Second)),
		"another key":     Open([]byte("another"), text, now),
		"no key":          Open(nil, Ticket(nil, "acme/alice", now.Add(time.Hour), now), now),
		"changed":         Open(key, text[:len(text)-2]+"AA", now),
		"nothing":         Open(key, "", now),
		"a link's secret": Open(key, "x", now),
		"ended":           Open(key, Ticket(key, "acme/alice", now.Add(-time.Second), now), now),
	} {
		if bad != "" {
			t.Errorf("%s: it is of %q", what, bad)
		}
	}
	if who := Open(key, text, now.Add(TicketLife-2*time.Second)); who != "acme/alice" {
		t.Errorf("it is of %q", who)
	}
}

func FuzzOpen(f *testing.F) {
	key, now := []byte("key"), time.Now()
	f.Add(Ticket(key, "acme/alice", now.Add(time.Hour), now))
	f.Add("t1.")
	f.Fuzz(func(t *testing.T, text string) {
		if who := Open(key, text, now); who != "" && who != "acme/alice" {
			t.Errorf("%q is of %q", text, who)
		}
	})
}
