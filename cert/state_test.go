package cert

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// A reporter is a target that signs reports.
type reporter struct {
	t *testing.T
	*TargetKey
}

func newReporter(t *testing.T, name string) reporter {
	seal, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	return reporter{t, &TargetKey{Name: name, Seal: seal}}
}

func (r reporter) signer() Signer {
	signer, err := r.Signer()
	if err != nil {
		r.t.Fatal(err)
	}
	return signer
}

// report is one of a generation, at a second.
func (r reporter) report(subject string, generation uint64, second int64) []byte {
	id := subject[strings.LastIndex(subject, ".")+1:]
	data, err := r.Sign(subject, Seen{Version: 1, Target: r.Name, ID: id, Generation: generation, At: time.Unix(second, 0).UTC()})
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// TestForgedReport tries to report in place of a target, by everything that somebody can
// do who may append.
func TestForgedReport(t *testing.T) {
	manager, err := NewManagerKey("acme", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := NewState([]Signer{manager.Signer()}, nil)
	seq := uint64(0)
	apply := func(subject string, data []byte) error {
		seq++
		return s.Apply(seq, subject, data)
	}
	revision := uint64(0)
	enroll := func(r reporter) error {
		subject := TargetSubject("g", r.Name)
		revision++
		data, err := manager.Sign(subject, Target{Version: 1, Group: "g", Name: r.Name, Public: r.Seal.Public(), Signer: r.signer(), Revision: revision})
		if err != nil {
			t.Fatal(err)
		}
		return apply(subject, data)
	}
	own, other, stranger, anew := newReporter(t, "lb-1"), newReporter(t, "lb-2"), newReporter(t, "lb-1"), newReporter(t, "lb-1")
	subject := SeenSubject("g", "lb-1", "id")
	want := func(generation uint64) {
		t.Helper()
		seen, ok := s.Seen("g", "lb-1", "id")
		if !ok || seen.Generation != generation || s.Version(subject) != seq {
			t.Errorf("after event %d it is %+v", seq, seen)
		}
	}
	// What comes before the target is known, is believed once it is.
	early := apply(subject, own.report(subject, 1, 100))
	if _, ok := s.Seen("g", "lb-1", "id"); ok {
		t.Error("somebody who is not known is believed")
	}
	if err := errors.Join(early, enroll(own), enroll(other), apply(subject, own.report(subject, 2, 200))); err != nil {
		t.Fatal(err)
	}
	want(2)
	_, unsigned, _ := bytes.Cut(own.report(subject, 3, 300), []byte("\n"))
	elsewhere := SeenSubject("g", "lb-1", "other")
	altered := own.report(subject, 3, 300)
	altered[len(altered)-20] ^= 1
	otherAsOwn := reporter{t, &TargetKey{Name: "lb-1", Seal: other.Seal}}
	for name, data := range map[string][]byte{
		"unsigned": unsigned, "by a stranger": stranger.report(subject, 3, 300), "by another target": otherAsOwn.report(subject, 3, 300),
		"altered": altered, "of another certificate": own.report(elsewhere, 3, 300), "of another group": own.report(SeenSubject("h", "lb-1", "id"), 3, 300),
		"the one before": own.report(subject, 1, 100), "as late as the last": own.report(subject, 3, 200), "nothing": nil, "garbage": []byte("x"),
		"without a time": own.report(subject, 3, 0),
	} {
		if err := apply(subject, data); !errors.Is(err, ErrSignature) && !errors.Is(err, ErrStale) && name != "without a time" || err == nil {
			t.Errorf("%s: %v", name, err)
		}
		want(2)
		if s.Problems()[subject] == nil {
			t.Errorf("%s: it is no problem", name)
		}
	}
	// The last one again is no news, and heals; so does the next.
	if err := apply(subject, s.Stored(subject)); err != nil || s.Problems()[subject] != nil {
		t.Errorf("restored: %v, %v", err, s.Problems()[subject])
	}
	want(2)
	if err := apply(subject, own.report(subject, 4, 201)); err != nil {
		t.Error(err)
	}
	want(4)
	// A target that enrolled anew has another key, and may have another clock.
	if err := errors.Join(enroll(anew), apply(subject, anew.report(subject, 5, 50))); err != nil {
		t.Error(err)
	}
	want(5)
	if err := apply(subject, own.report(subject, 6, 500)); !errors.Is(err, ErrSignature) {
		t.Errorf("the key of before: %v", err)
	}
	want(5)
	if err := apply("g.g.later.thing", []byte("anything")); err != nil { // of a later version
		t.Error(err)
	}
}

// TestReportsHeardEarly has what a target reports heard at every moment of its enrollments,
// and with it what strangers wrote in its place: what is known in the end is the same.
func TestReportsHeardEarly(t *testing.T) {
	manager, err := NewManagerKey("acme", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	own, anew, stranger := newReporter(t, "lb-1"), newReporter(t, "lb-1"), newReporter(t, "lb-1")
	subject, target := SeenSubject("g", "lb-1", "id"), TargetSubject("g", "lb-1")
	var records [][]byte
	for i, r := range []reporter{own, anew} {
		data, err := manager.Sign(target, Target{Version: 1, Group: "g", Name: "lb-1", Public: r.Seal.Public(), Signer: r.signer(), Revision: uint64(i + 1)})
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, data)
	}
	written := [][]byte{
		own.report(subject, 1, 100), stranger.report(subject, 9, 900), own.report(subject, 2, 200), anew.report(subject, 3, 50),
		stranger.report(subject, 8, 901), anew.report(subject, 4, 60), own.report(subject, 1, 100),
	}
	for first := range len(written) + 1 {
		for second := first; second <= len(written); second++ {
			for end, want := range map[int]error{len(written): ErrSignature, len(written) - 1: nil} { // a replay is the last, or is not
				s := NewState([]Signer{manager.Signer()}, nil)
				follower := s.Reports()
				for i := range end + 1 {
					for n, at := range []int{first, second} {
						if i == min(at, end) {
							if err := s.Apply(uint64(n+1), target, records[n]); err != nil {
								t.Fatal(err)
							}
						}
					}
					if i < end {
						_ = follower.Apply(uint64(i+1), subject, written[i])
					}
				}
				seen, ok := s.Seen("g", "lb-1", "id")
				if !ok || seen.Generation != 4 || !errors.Is(s.Problems()[subject], want) || s.Version(subject) != uint64(end) || follower.Seq() != uint64(end) || s.Seq() != 2 {
					t.Errorf("records before reports %d and %d of %d: %+v, %v, event %d", first, second, end, seen, s.Problems()[subject], s.Version(subject))
				}
			}
		}
	}
}

// TestFormerReports has reports among the records, as they were once: they count until there
// is one where they belong.
func TestFormerReports(t *testing.T) {
	own := newReporter(t, "lb-1")
	s := NewState([]Signer{own.signer()}, nil)
	former, subject := formerSubject("g", "lb-1", "id"), SeenSubject("g", "lb-1", "id")
	want := func(generation uint64) {
		t.Helper()
		if seen, ok := s.Seen("g", "lb-1", "id"); !ok || seen.Generation != generation {
			t.Errorf("it is %+v", seen)
		}
	}
	if err := s.Apply(7, former, own.report(former, 1, 100)); err != nil {
		t.Fatal(err)
	}
	want(1)
	if err := s.Reports().Apply(1, subject, own.report(former, 1, 100)); !errors.Is(err, ErrSignature) {
		t.Errorf("written again elsewhere: %v", err)
	}
	want(1)
	if err := s.Reports().Apply(2, subject, own.report(subject, 2, 50)); err != nil {
		t.Fatal(err)
	}
	want(2)
	if s.Version(subject) != 2 || s.Version(former) != 7 || s.Seq() != 7 {
		t.Errorf("events %d and %d of %d", s.Version(subject), s.Version(former), s.Seq())
	}
	again := NewState([]Signer{own.signer()}, nil)
	data, err := s.Marshal()
	if err := errors.Join(err, again.Unmarshal(data)); err != nil || again.Version(former) != 7 || again.Version(subject) != 0 {
		t.Errorf("a snapshot has event %d of the reports: %v", again.Version(subject), err)
	}
}

// TestSeenTooLong has a target report more than anybody wants to know.
func TestSeenTooLong(t *testing.T) {
	own := newReporter(t, "lb-1")
	s := NewState([]Signer{own.signer()}, nil)
	subject := SeenSubject("g", "lb-1", "id")
	for seq, length := range []int{maxError, maxSeen} {
		data, err := own.Sign(subject, Seen{Version: 1, Target: "lb-1", ID: "id", Generation: 1, At: time.Unix(int64(seq+1), 0), Error: strings.Repeat("é", length/2)})
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
			apply(ChallengeSubject(group, id), Challenge{Version: 1, Group: group, ID: id, Revision: 1, Until: time.Unix(1, 0)})
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
	// A challenge is taken back by a signature only, and the next one of its subject is newer.
	subject := ChallengeSubject("web", "c")
	apply(subject, Challenge{Version: 1, Group: "web", ID: "c", Revision: 1, Until: time.Unix(1, 0)})
	if err := s.Apply(seq+1, subject, nil); !errors.Is(err, ErrSignature) || len(s.Challenges("web")) != 3 {
		t.Errorf("taken back by nobody: %d challenges, %v", len(s.Challenges("web")), err)
	}
	seq++
	apply(subject, Challenge{Version: 1, Group: "web", ID: "c", Revision: 2})
	if c, ok := s.Challenge("web", "c"); !ok || c.Revision != 2 || len(s.Challenges("web")) != 2 {
		t.Errorf("taken back: %+v, %d challenges", c, len(s.Challenges("web")))
	}
}
