package cert

import (
	"encoding/json"
	"strings"
	"testing"
)

// Every Seen takes the place of the one before: it has no revision.
func TestSeenAgain(t *testing.T) {
	s := NewState(nil, nil)
	subject := SeenSubject("g", "lb-1", "id")
	for seq := uint64(1); seq <= 3; seq++ {
		data, err := json.Marshal(Seen{Version: 1, Target: "lb-1", ID: "id", Generation: seq})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(seq, subject, data); err != nil {
			t.Error(err)
		}
		if seen, ok := s.Seen("g", "lb-1", "id"); !ok || seen.Generation != seq {
			t.Errorf("after event %d it is %+v", seq, seen)
		}
	}
	for seq := uint64(4); seq <= 5; seq++ { // of a later version
		if err := s.Apply(seq, "g.g.later.thing", []byte("anything")); err != nil {
			t.Error(err)
		}
	}
}

// TestSeenTooLong has a target report more than anybody wants to know.
func TestSeenTooLong(t *testing.T) {
	s := NewState(nil, nil)
	subject := SeenSubject("g", "lb-1", "id")
	for seq, length := range []int{maxError, maxSeen} {
		data, err := json.Marshal(Seen{Version: 1, Target: "lb-1", ID: "id", Generation: 1, Error: strings.Repeat("é", length/2)})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(uint64(seq+1), subject, data); (err != nil) != (length == maxSeen) {
			t.Errorf("a report with an error of %d bytes: %v", length, err)
		}
	}
	if seen, ok := s.Seen("g", "lb-1", "id"); !ok || len(seen.Error) != maxError || s.Version(subject) != 2 {
		t.Errorf("what is known is %+v, of event %d", seen, s.Version(subject))
	}
}
