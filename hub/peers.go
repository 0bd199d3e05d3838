package hub

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// maxOrigins bounds the origins that a link knows.
	maxOrigins = 4096
	// askAgain is how soon an origin may be asked again, and repeatAgain how soon it
	// does as it is asked; each time that it did not help, twice as long, up to
	// maxAgain times.
	askAgain, repeatAgain = time.Second, 500 * time.Millisecond
	maxAgain              = 32
)

// An asking is the last one for what comes after a message.
type asking struct {
	after uint64
	at    time.Time
	times int // that were of no help
}

// again notes an asking, if it is not too soon.
func (a asking) again(after uint64, pause time.Duration) (asking, bool) {
	if after != a.after {
		a.times = 0
	}
	if time.Since(a.at) < pause*time.Duration(min(1<<min(a.times, 16), maxAgain)) {
		return a, false
	}
	return asking{after, time.Now(), a.times + 1}, true
}

// A telling is what a link tells the others of itself, every second.
type telling struct {
	// Origin names its queue; before the colon, the node.
	Origin string `json:"origin"`
	// Last is the last message of its own that the hub has taken.
	Last uint64 `json:"last"`
	// First is the first message that it can send again.
	First uint64 `json:"first"`
	// Have is the last message of each other origin that it has.
	Have map[string]uint64 `json:"have,omitempty"`
	// Ask has an origin send again everything after that message of its own.
	Ask map[string]uint64 `json:"ask,omitempty"`
}

// peer is what is known of another link.
type peer struct {
	Heard time.Time `json:"heard"`
	// Has is the last message of this node's that it has, or need not have.
	Has uint64 `json:"has"`
}

// told is what another link told last, and what was here of it then.
type told struct{ last, have uint64 }

// nodeOf is the name of an origin's node.
func nodeOf(origin string) string {
	node, _, _ := strings.Cut(origin, ":")
	return node
}

// announce tells the other links of this one; ask, if it is not empty, is asked to
// repeat.
func (s *session) announce(ask string) error {
	t := telling{Origin: s.q.origin}
	s.run.mu.Lock()
	t.Last, t.First = s.record.Last, s.first
	t.Have = s.record.Have
	if ask != "" {
		t.Ask = map[string]uint64{ask: s.record.Have[ask]}
	}
	data, err := json.Marshal(t)
	s.run.mu.Unlock()
	if err != nil {
		return fmt.Errorf("telling other links of this one: %w", err)
	}
	p := &packet.Publish{Message: packet.Message{Topic: []byte(s.o.base() + controlTopic), Payload: data}}
	if err := s.c.send(p); err != nil {
		return fmt.Errorf("telling other links of this one: %w", err)
	}
	return nil
}

// ask asks an origin to send again what comes after a message, but not too often.
func (s *session) ask(origin string, have uint64) {
	s.run.mu.Lock()
	a, due := s.asked[origin].again(have, askAgain)
	s.asked[origin] = a
	s.run.mu.Unlock()
	if !due {
		return
	}
	s.log.Info("messages are missing, and asked for again", "node", nodeOf(origin), "after", have)
	s.count(func(v *view) { v.repeats++ })
	_ = s.announce(origin) // an error is the connection's, which reading finds
}

// readTelling reads what another link tells.
func readTelling(payload []byte) (t telling, ok bool) {
	if json.Unmarshal(payload, &t) != nil || !isOrigin(t.Origin) || len(t.Have) > maxOrigins {
		return telling{}, false
	}
	return t, true
}

// hear takes what another link tells.
func (s *session) hear(payload []byte) {
	t, ok := readTelling(payload)
	if !ok || t.Origin == s.q.origin {
		return
	}
	s.run.mu.Lock()
	before, again := s.told[t.Origin]
	p, known := s.record.Peers[t.Origin]
	if !known && len(s.record.Peers) >= maxOrigins {
		s.run.mu.Unlock()
		return
	}
	p.Heard = time.Now()
	if has, knows := t.Have[s.q.origin]; knows {
		p.Has = has
	} else if !known {
		p.Has = s.record.Last
	}
	s.record.Peers[t.Origin] = p
	have, met := s.in.have[t.Origin]
	if !met && len(s.in.have) < maxOrigins {
		// What it sent before they met is not missed.
		s.in.have[t.Origin], s.record.Have[t.Origin] = t.Last, t.Last
		have = t.Last
	}
	// A message may be on its way for one second, and not for two.
	missing := again && before.last > have && before.have == have
	gone := missing && t.First > have+1
	if gone {
		s.in.have[t.Origin] = min(t.Last, t.First-1)
		s.record.Have[t.Origin] = s.in.have[t.Origin]
		have = s.in.have[t.Origin]
	}
	s.told[t.Origin] = told{t.Last, have}
	s.dirty = true
	s.run.mu.Unlock()
	switch {
	case gone:
		if err := s.lost(t.Origin); err != nil {
			s.log.Warn("watchers could not be told to look again", "error", err)
		}
	case missing:
		s.ask(t.Origin, have)
	}
	if after, asked := t.Ask[s.q.origin]; asked {
		s.repeat(t.Origin, after)
	}
}

// repeat sends again what another link lacks.
func (s *session) repeat(origin string, after uint64) {
	if after >= s.place().before {
		return
	}
	// What is sent again for another link, or for this one, may be all that it needs.
	s.out.mu.Lock()
	a, due := s.out.repeated[origin], s.out.held.IsZero() && !s.out.rewinding && time.Since(s.out.rewound) > repeatAgain
	if due {
		a, due = a.again(after, repeatAgain)
		s.out.repeated[origin] = a
	}
	s.out.mu.Unlock()
	if !due {
		return
	}
	s.log.Info("messages are sent again, which another link lacks", "node", nodeOf(origin), "after", after)
	s.out.rewind(place{after, after})
}
