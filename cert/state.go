package cert

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/ledger"
)

// maxOthers bounds how many reports by other keys than the target's are kept for when its
// record is heard later than they are.
const maxOthers = 8

// ErrStale is returned by Apply for a record that is no newer than the one before:
// somebody wrote an old one again.
var ErrStale = errors.New("it is older than what is known")

// A State is what a ledger of certificates says, after some event. NewState makes
// one, and a ledger.Follower fills it. It believes nothing that no manager signed, and
// of a target's reports what is signed by the key in the target's record. It is safe for
// concurrent use; what the things that it returns point to is shared and not to be
// changed. It takes reports from their own ledger by Reports.
type State struct {
	signers []Signer
	keep    func(subject string) bool

	mu      sync.RWMutex
	seq     uint64                      // of the records
	reports uint64                      // of the reports
	entries map[string]map[string]entry // by place and subject
}

// An entry is the last record of a subject that could be believed.
type entry struct {
	version uint64 // the last event of the subject, believed or not
	data    []byte // nil: no event could be believed yet, or the record was removed
	value   any    // of data: *Record, *GroupKey, *Target, *Challenge, *Config or *Seen
	signer  Signer // of a *Seen
	err     error  // why the last event was not believed

	// others are the last reports by other keys than the target's, which it could have
	// enrolled with meanwhile: its record may be heard later. There are maxOthers at most.
	others []entry
}

// NewState returns an empty State that believes what one of signers signed. It keeps
// the subjects that keep says, all of them if that is nil.
func NewState(signers []Signer, keep func(subject string) bool) *State {
	if keep == nil {
		keep = func(string) bool { return true }
	}
	return &State{signers: slices.Clone(signers), keep: keep, entries: map[string]map[string]entry{}}
}

// place is where the entry of a subject is: with all of its group and kind, so that who
// asks for those need not look at all others.
func place(subject string) string {
	at := 0
	for range 3 {
		dot := strings.IndexByte(subject[at:], '.')
		if dot < 0 {
			return subject
		}
		at += dot + 1
	}
	return subject[:at-1]
}

// entry is that of a subject. s.mu is held.
func (s *State) entry(subject string) entry { return s.entries[place(subject)][subject] }

// set sets the entry of a subject. s.mu is held.
func (s *State) set(subject string, e entry) {
	at := place(subject)
	if s.entries[at] == nil {
		s.entries[at] = map[string]entry{}
	}
	s.entries[at][subject] = e
}

// Apply folds event seq into the state: see ledger.State. An event that cannot be
// read or believed leaves the record before it in place, and an unknown one is kept
// for later versions to read.
func (s *State) Apply(seq uint64, subject string, data []byte) error {
	var e entry
	if s.keep(subject) {
		e = s.read(subject, data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if IsReport(subject) {
		s.reports = max(s.reports, seq)
	} else {
		s.seq = max(s.seq, seq)
	}
	if !s.keep(subject) {
		return nil
	}
	before := s.entry(subject)
	e.version, e.others = seq, before.others
	if _, ok := e.value.(*Seen); ok && e.err == nil {
		switch {
		case s.believes(subject, e.signer):
		case s.target(subject) != nil:
			before.others, e.err = addOther(before.others, e), strange(subject)
		case before.data != nil && before.signer != e.signer: // whose it is will be known
			e.others = addOther(before.others, before)
		}
	}
	again := bytes.Equal(before.data, data) // somebody restored it
	if n := revision(e.value); e.err == nil && !again && n > 0 && before.data != nil && before.signer == e.signer && n <= revision(before.value) {
		e.err = fmt.Errorf("reading %q: revision %d after %d: %w", subject, revision(e.value), revision(before.value), ErrStale)
	}
	if e.err == nil && e.data == nil {
		e.err = fmt.Errorf("reading %q: no record is removed without a signature: %w", subject, ErrSignature)
	}
	if e.err != nil {
		before.version, before.err = seq, e.err
		s.set(subject, before)
		return e.err
	}
	s.set(subject, e)
	if t, ok := e.value.(*Target); ok {
		s.know(t)
	}
	return nil
}

// strange is why a report is not believed that another than the target signed.
func strange(subject string) error {
	return fmt.Errorf("reading %q: %w: it is not the key of the target", subject, ErrSignature)
}

// addOther adds a report by another key.
func addOther(others []entry, e entry) []entry {
	e.others = nil
	others = append(slices.Clone(others), e)
	return others[max(0, len(others)-maxOthers):]
}

// know looks again at what was heard of a target, when its record has come. s.mu is held.
func (s *State) know(t *Target) {
	for subject, last := range s.entries[place(SeenSubject(t.Group, t.Name, ""))] {
		heard, best := addOther(last.others, last), -1
		for i, e := range heard {
			if s.believes(subject, e.signer) && (best < 0 || revision(e.value) > revision(heard[best].value)) {
				best = i
			}
		}
		if best >= 0 && best < len(heard)-1 {
			e := heard[best]
			if e.others, e.err = slices.Delete(heard, best, best+1), nil; e.version != last.version {
				e.version, e.err = last.version, strange(subject)
			}
			last = e
		}
		s.set(subject, last)
	}
}

// target is the record of the target that a report is of; nil if it is not known. s.mu
// is held.
func (s *State) target(report string) *Target {
	words := strings.Split(report, ".")
	t, _ := s.entry(TargetSubject(words[1], words[2])).value.(*Target)
	return t
}

// believes reports whether signer is who signs a target's report. s.mu is held.
func (s *State) believes(report string, signer Signer) bool {
	t := s.target(report)
	return slices.Contains(s.signers, signer) || t != nil && t.Signer == signer
}

// read decodes what stands under subject, if it can be believed.
func (s *State) read(subject string, data []byte) entry {
	if len(data) == 0 {
		return entry{}
	}
	words := strings.Split(subject, ".")
	report := words[0] == "report" || words[0] == "seen"
	if report && len(data) > maxSeen {
		return entry{err: fmt.Errorf("reading %q: it has %d bytes, and %d are allowed", subject, len(data), maxSeen)}
	}
	e := entry{data: bytes.Clone(data)}
	if report {
		if len(words) != 4 {
			return e
		}
		// Whose key it is, is asked when it is known: the target's record may come later.
		payload, signer, err := signedBy(subject, data, func(Signer) bool { return true })
		seen := &Seen{}
		if err == nil {
			err = json.Unmarshal(payload, seen)
		}
		if err == nil && (seen.Target != words[2] || seen.ID != words[3] || seen.At.Before(time.Unix(1, 0))) {
			err = fmt.Errorf("reading %q: it is about %q of %q, at %s", subject, seen.ID, seen.Target, seen.At)
		}
		e.value, e.signer, e.err = seen, signer, err
		return e
	}
	var value any
	var named func() bool
	switch {
	case subject == ConfigSubject:
		value, named = &Config{}, func() bool { return true }
	case len(words) == 4 && words[0] == "g" && words[2] == "cert":
		r := &Record{}
		value, named = r, func() bool { return r.Group == words[1] && r.ID == words[3] }
	case len(words) == 3 && words[0] == "g" && words[2] == "key":
		k := &GroupKey{}
		value, named = k, func() bool { return k.Group == words[1] }
	case len(words) == 4 && words[0] == "g" && words[2] == "target":
		t := &Target{}
		value, named = t, func() bool { return t.Group == words[1] && t.Name == words[3] }
	case len(words) == 4 && words[0] == "g" && words[2] == "challenge":
		c := &Challenge{}
		value, named = c, func() bool { return c.Group == words[1] && c.ID == words[3] }
	default:
		return e // of a later version
	}
	payload, err := Verify(s.signers, subject, data)
	if err != nil {
		e.err = err
		return e
	}
	if err := json.Unmarshal(payload, value); err != nil {
		e.err = fmt.Errorf("reading %q: %w", subject, err)
		return e
	}
	if !named() {
		e.err = fmt.Errorf("reading %q: it is the record of another subject", subject)
		return e
	}
	e.value = value
	return e
}

// revision is the revision of a record; 0 if it has none, and is newer than the one
// before: records of a later version.
func revision(value any) uint64 {
	switch v := value.(type) {
	case *Record:
		return v.Revision
	case *GroupKey:
		return v.Revision
	case *Target:
		return v.Revision
	case *Challenge:
		return v.Revision
	case *Config:
		return v.Revision
	case *Seen:
		return uint64(v.At.UnixNano())
	}
	return 0
}

// Seq is the last event of the ledger of certificates that was applied.
func (s *State) Seq() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seq
}

// Version is the last event of subject, which is what a writer must expect.
func (s *State) Version(subject string) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entry(subject).version
}

// Problems are why the last events of subjects were not believed, by subject.
func (s *State) Problems() map[string]error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	problems := map[string]error{}
	for _, entries := range s.entries {
		for subject, e := range entries {
			if e.err != nil {
				problems[subject] = e.err
			}
		}
	}
	return problems
}

func get[T any](s *State, subject string) (*T, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	value, ok := s.entry(subject).value.(*T)
	return value, ok
}

// list returns all records of a kind of a group, of every group if that is empty,
// sorted by subject.
func list[T any](s *State, group, kind string) []*T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := map[string]*T{}
	take := func(entries map[string]entry) {
		for subject, e := range entries {
			if value, ok := e.value.(*T); ok {
				found[subject] = value
			}
		}
	}
	if group != "" {
		take(s.entries["g."+group+"."+kind])
	} else {
		for at, entries := range s.entries {
			if strings.HasPrefix(at, "g.") && strings.HasSuffix(at, "."+kind) {
				take(entries)
			}
		}
	}
	all := make([]*T, 0, len(found))
	for _, subject := range slices.Sorted(maps.Keys(found)) {
		all = append(all, found[subject])
	}
	return all
}

// Record returns the certificate of that id, even if it was removed.
func (s *State) Record(group, id string) (*Record, bool) {
	return get[Record](s, CertSubject(group, id))
}

// Records returns the certificates of a group, of every group if that is empty,
// without those that were removed.
func (s *State) Records(group string) []*Record {
	all := slices.DeleteFunc(list[Record](s, group, "cert"), func(r *Record) bool { return r.Removed })
	slices.SortStableFunc(all, func(a, b *Record) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// GroupKey returns the key of a group.
func (s *State) GroupKey(group string) (*GroupKey, bool) { return get[GroupKey](s, KeySubject(group)) }

// GroupKeys returns the keys of all groups.
func (s *State) GroupKeys() []*GroupKey { return list[GroupKey](s, "", "key") }

// Target returns a target of a group, even if it was removed.
func (s *State) Target(group, name string) (*Target, bool) {
	return get[Target](s, TargetSubject(group, name))
}

// Targets returns the targets of a group, of every group if that is empty, without
// those that were removed.
func (s *State) Targets(group string) []*Target {
	return slices.DeleteFunc(list[Target](s, group, "target"), func(t *Target) bool { return t.Removed })
}

// Challenge returns the challenge of that id, even if it was taken back.
func (s *State) Challenge(group, id string) (*Challenge, bool) {
	return get[Challenge](s, ChallengeSubject(group, id))
}

// Challenges returns the challenges of a group, of every group if that is empty, without
// those that were taken back.
func (s *State) Challenges(group string) []*Challenge {
	return slices.DeleteFunc(list[Challenge](s, group, "challenge"), func(c *Challenge) bool { return c.Until.IsZero() })
}

// Seen returns what a target was seen serving of a certificate.
func (s *State) Seen(group, target, id string) (*Seen, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, subject := range []string{SeenSubject(group, target, id), formerSubject(group, target, id)} {
		if e := s.entry(subject); s.believes(subject, e.signer) {
			if seen, ok := e.value.(*Seen); ok {
				return seen, true
			}
		}
	}
	return nil, false
}

// Stored returns the last record of subject that can be believed, as it stands in the
// ledger; nil if there is none.
func (s *State) Stored(subject string) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.entry(subject)
	if _, ok := e.value.(*Seen); ok && !s.believes(subject, e.signer) {
		return nil
	}
	return e.data
}

// Config returns the configuration of the managers, sealed.
func (s *State) Config() (*Config, bool) { return get[Config](s, ConfigSubject) }

// A marshaled State begins with this; then come its sequence number, and each subject
// with its version and data, each length before what it is of.
const stateMagic = "fleetbus-certs-1\n"

// Reports is the state as the follower of the ledger of reports takes it.
func (s *State) Reports() ledger.State { return reports{s} }

// reports are a State, of which there is no snapshot.
type reports struct{ *State }

// Seq is the last report that was applied.
func (r reports) Seq() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.reports
}

var errNoSnapshot = errors.New("there are no snapshots of reports")

// Marshal fails.
func (r reports) Marshal() ([]byte, error) { return nil, errNoSnapshot }

// Unmarshal fails.
func (r reports) Unmarshal([]byte) error { return errNoSnapshot }

// Marshal returns the state, without reports, and with everything sealed and signed as it
// is in the ledger.
func (s *State) Marshal() ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	size := len(stateMagic)
	var subjects []string
	for _, entries := range s.entries {
		for subject, e := range entries {
			if IsReport(subject) {
				continue
			}
			subjects = append(subjects, subject)
			size += len(subject) + len(e.data) + 3*binary.MaxVarintLen32
		}
	}
	slices.Sort(subjects)
	out := make([]byte, 0, size)
	out = append(out, stateMagic...)
	out = binary.AppendUvarint(out, s.seq)
	for _, subject := range subjects {
		e := s.entry(subject)
		out = binary.AppendUvarint(out, e.version)
		out = binary.AppendUvarint(out, uint64(len(subject)))
		out = append(out, subject...)
		out = binary.AppendUvarint(out, uint64(len(e.data)))
		out = append(out, e.data...)
	}
	return out, nil
}

// Unmarshal replaces the state by a marshaled one. It believes no more than Apply: a
// record without a good signature is left out, whoever wrote the file.
func (s *State) Unmarshal(data []byte) error {
	rest, ok := bytes.CutPrefix(data, []byte(stateMagic))
	if !ok {
		return errors.New("reading certificates: it is no state of certificates")
	}
	number := func() uint64 {
		n, size := binary.Uvarint(rest)
		if size <= 0 {
			ok = false
			return 0
		}
		rest = rest[size:]
		return n
	}
	text := func() []byte {
		n := number()
		if n > uint64(len(rest)) {
			ok = false
			return nil
		}
		head := rest[:n]
		rest = rest[n:]
		return head
	}
	seq := number()
	var subjects []string
	var found []entry
	for ok && len(rest) > 0 {
		e := entry{version: number()}
		subject := string(text())
		e.data = text()
		if s.keep(subject) {
			subjects, found = append(subjects, subject), append(found, e)
		}
	}
	if !ok {
		return errors.New("reading certificates: the state is cut off")
	}
	s.readAll(subjects, found)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq, s.entries = seq, map[string]map[string]entry{}
	for i, subject := range subjects {
		s.set(subject, found[i])
	}
	return nil
}

// readAll decodes many entries at once: verifying ten thousand signatures is most of
// what a start costs.
func (s *State) readAll(subjects []string, found []entry) {
	workers := runtime.GOMAXPROCS(0)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(found); i += workers {
				e := s.read(subjects[i], found[i].data)
				if e.err != nil {
					e.data, e.value = nil, nil
				}
				e.version = found[i].version
				found[i] = e
			}
		})
	}
	wg.Wait()
}
