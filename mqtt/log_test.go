package mqtt

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestLog has a client do the same wrong thing very often: the operator is told it once
// in a while, and how often it was.
func TestLog(t *testing.T) {
	to, from := connected(t)
	defer to.Close()
	defer from.Close()
	var lines bytes.Buffer
	s := &session{
		p: &Protocol{Logger: slog.New(slog.NewJSONHandler(&lines, nil))}, id: "pub", conn: to,
		login: &fleetbus.Session{Principal: identity.Principal{Account: "acme", Name: "device"}},
	}
	const many = 1000
	for range many {
		s.log("refused", "subject", "a.b", "code", packet.NotAuthorized.String())
		s.log("refused", "subject", "a.b", "code", packet.TopicNameInvalid.String())
		s.log("not stored", "error", errors.New("no room"))
	}
	s.said.mu.Lock()
	for reason, last := range s.said.all {
		last.at = last.at.Add(-2 * sayEvery)
		s.said.all[reason] = last
	}
	s.said.mu.Unlock()
	s.log("not stored", "error", errors.New("no room"))
	type line struct {
		Msg, Client, Code, Error string
		Omitted                  int
	}
	want := []line{
		{Msg: "refused", Client: "pub", Code: packet.NotAuthorized.String()}, {Msg: "refused", Client: "pub", Code: packet.TopicNameInvalid.String()},
		{Msg: "not stored", Client: "pub", Error: "no room"}, {Msg: "not stored", Client: "pub", Error: "no room", Omitted: many - 1},
	}
	d := json.NewDecoder(&lines)
	for i, want := range want {
		var got line
		if err := d.Decode(&got); err != nil || got != want {
			t.Errorf("line %d: %+v %v, not %+v", i, got, err, want)
		}
	}
	if d.More() {
		t.Errorf("more lines: %s", &lines)
	}
}

// TestSaid says when a reason may be said again.
func TestSaid(t *testing.T) {
	var s said
	now := time.Now()
	for i, c := range []struct {
		after   time.Duration
		reason  string
		omitted int
		may     bool
	}{
		{0, "a", 0, true}, {0, "b", 0, true}, {sayEvery - 1, "a", 0, false}, {sayEvery, "a", 1, true}, {sayEvery, "a", 0, false}, {3 * sayEvery, "b", 0, true}, {3 * sayEvery, "a", 1, true},
	} {
		if omitted, may := s.may(c.reason, now.Add(c.after)); omitted != c.omitted || may != c.may {
			t.Errorf("%d: %d %v", i, omitted, may)
		}
	}
}
