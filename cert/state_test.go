package cert

import (
	"encoding/json"
	"errors"
	"slices"
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

// TestList asks what groups have of a kind: it is no other group's, and no other kind's.
func TestList(t *testing.T) {
	key, err := NewManagerKey("acme", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s, seq := NewState([]Signer{key.Signer()}, nil), uint64(0)
	apply := func(subject string, record any) {
		data, err := key.Sign(subject, record)
		seq++
		if err := errors.Join(err, s.Apply(seq, subject, data)); err != nil {
			t.Fatal(err)
		}
	}
	groups := []string{"cert", "key", "web"} // two of them are called as kinds are
	for _, group := range groups {
		apply(KeySubject(group), GroupKey{Version: 1, Group: group, Revision: 1})
		for _, id := range []string{"b", "a"} {
			apply(CertSubject(group, id), Record{Version: 1, Group: group, ID: id, Revision: 1})
			apply(TargetSubject(group, id), Target{Version: 1, Group: group, Name: id, Revision: 1})
			apply(ChallengeSubject(group, id), Challenge{Version: 1, Group: group, ID: id, Revision: 1})
		}
	}
	again := NewState([]Signer{key.Signer()}, nil)
	data, err := s.Marshal()
	if err := errors.Join(err, again.Unmarshal(data)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{s, again} {
		all := func(group string) (found []string) {
			for _, r := range s.Records(group) {
				found = append(found, CertSubject(r.Group, r.ID))
			}
			for _, r := range s.Targets(group) {
				found = append(found, TargetSubject(r.Group, r.Name))
			}
			for _, r := range s.Challenges(group) {
				found = append(found, ChallengeSubject(r.Group, r.ID))
			}
			return found
		}
		var every []string
		for _, group := range groups {
			want := []string{
				CertSubject(group, "a"), CertSubject(group, "b"), TargetSubject(group, "a"), TargetSubject(group, "b"),
				ChallengeSubject(group, "a"), ChallengeSubject(group, "b"),
			}
			if got := all(group); !slices.Equal(got, want) {
				t.Errorf("of group %s: %q", group, got)
			}
			every = append(every, want...)
		}
		got := all("")
		slices.Sort(got)
		if slices.Sort(every); !slices.Equal(got, every) {
			t.Errorf("of all groups: %q", got)
		}
		if n := len(s.GroupKeys()); n != len(groups) {
			t.Errorf("%d keys of %d groups", n, len(groups))
		}
	}
	// Of a challenge that is over its version is left, for the next one of the subject.
	apply(ChallengeSubject("web", "c"), Challenge{Version: 1, Group: "web", ID: "c", Revision: 1})
	if err := s.Apply(seq+1, ChallengeSubject("web", "c"), nil); err != nil || len(s.Challenges("web")) != 2 || s.Version(ChallengeSubject("web", "c")) != seq+1 {
		t.Errorf("%d challenges, %v", len(s.Challenges("web")), err)
	}
}
