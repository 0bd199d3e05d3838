package cert

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/ledger"
)

// A group is what a store knows of one group. It is the ledger.State of the group's
// follower: besides the records its snapshot has what is served, so that after a
// restart that is served again, even if a record came meanwhile that cannot be.
type group struct {
	name     string
	store    *Store
	subjects []string // that are followed
	state    *State
	follower *ledger.Follower

	// whole is closed once all is known that the ledger had at some time.
	whole     chan struct{}
	wholeOnce sync.Once

	mu   sync.Mutex
	keys map[uint64]*Key // of the group, by generation; opened once

	// seen is what the ledger of reports has of this target; nil: it has to be read
	// first. Only keepReported uses it.
	seen *State
}

func newGroup(s *Store, name string) (*group, error) {
	own := TargetSubject(name, s.o.Key.Name)
	certs, challenges := CertSubject(name, ""), ChallengeSubject(name, "")
	// Not the other targets: with their keys, a thousand of them are many.
	g := &group{name: name, store: s, keys: map[uint64]*Key{}, subjects: []string{certs + "*", challenges + "*", own}, whole: make(chan struct{})}
	g.state = NewState(s.o.Key.Signers, func(subject string) bool {
		return strings.HasPrefix(subject, certs) || strings.HasPrefix(subject, challenges) || subject == own
	})
	return g, g.follow()
}

// snapshotAfter is how long after a change a target starts with it while the bus is
// away. Nobody should lose more than the last moments to a power cut.
const snapshotAfter = 50 * time.Millisecond

// follow makes the follower of the group, which loads its snapshot.
func (g *group) follow() error {
	follower, err := ledger.NewFollower(g, ledger.FollowOptions{
		Snapshot: g.path(), Interval: snapshotAfter, Filter: g.subjects, Heartbeat: heartbeat, Logger: g.store.log.With("group", g.name),
	})
	if err != nil {
		return fmt.Errorf("loading the certificates of group %q: %w", g.name, err)
	}
	g.follower = follower
	return nil
}

// complete says that the group is whole from now on.
func (g *group) complete() { g.wholeOnce.Do(func() { close(g.whole) }) }

// isWhole reports whether it is. Whoever follows the group may ask.
func (g *group) isWhole() bool {
	select {
	case <-g.whole:
		return true
	case <-g.follower.CaughtUp():
		return true
	default:
		return false
	}
}

// path is where the snapshot is. A key that is of another target has another.
func (g *group) path() string {
	o := g.store.o
	if o.Dir == "" {
		return ""
	}
	return filepath.Join(o.Dir, o.Key.Account+"."+o.Key.Name+"."+g.name+".certs")
}

// rewind makes a follower that begins at the first event. What is known stays known,
// and what is older than that is not believed.
func (g *group) rewind() error {
	if path := g.path(); path != "" {
		payload, err := g.Marshal()
		if err == nil {
			err = ledger.WriteSnapshot(path, 0, payload)
		}
		if err != nil {
			return fmt.Errorf("following group %q from the first event: %w", g.name, err)
		}
	}
	g.state.mu.Lock()
	g.state.seq = 0
	g.state.mu.Unlock()
	return g.follow()
}

// Seq is the last event that was applied.
func (g *group) Seq() uint64 { return g.state.Seq() }

// Apply takes an event, and has the store look at what it is about.
func (g *group) Apply(seq uint64, subject string, data []byte) error {
	err := g.state.Apply(seq, subject, data)
	id, isCert := strings.CutPrefix(subject, CertSubject(g.name, ""))
	switch {
	case isCert:
		g.store.touch(certKey{g.name, id})
	case strings.HasPrefix(subject, ChallengeSubject(g.name, "")):
		g.store.answer()
	case subject == TargetSubject(g.name, g.store.o.Key.Name):
		if t, ok := g.state.Target(g.name, g.store.o.Key.Name); ok && t.Removed && err == nil {
			g.store.log.Warn("this target was removed: it serves what it has until that expires", "group", g.name)
		}
		g.store.touchAll(g)
	}
	return err
}

// record is the last record of a subject that could be believed, as it stands in the
// ledger, and why the last event could not.
func (g *group) record(subject string) (signed []byte, value any, err error) {
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	e := g.state.entry(subject)
	return e.data, e.value, e.err
}

// ids are all certificates of the group, removed ones too.
func (g *group) ids() []string {
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	prefix := CertSubject(g.name, "")
	var ids []string
	for subject := range g.state.entries[strings.TrimSuffix(prefix, ".")] {
		ids = append(ids, strings.TrimPrefix(subject, prefix))
	}
	return ids
}

// key opens a generation of the group's key.
func (g *group) key(generation uint64) (*Key, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k, ok := g.keys[generation]; ok {
		return k, nil
	}
	self := g.store.o.Key
	t, ok := g.state.Target(g.name, self.Name)
	if !ok {
		return nil, fmt.Errorf("it is sealed with key %d of the group, and target %q is not in it yet", generation, self.Name)
	}
	sealed, ok := t.Keys[generation]
	if !ok {
		return nil, fmt.Errorf("it is sealed with key %d of the group, which target %q was not given", generation, self.Name)
	}
	k, err := self.Seal.OpenKey(g.name, generation, self.Name, sealed)
	if err != nil {
		return nil, err
	}
	g.keys[generation] = k
	return k, nil
}

// unbelieved is an event that a State did not believe.
type unbelieved struct{ error }

// Unwrap returns why.
func (u unbelieved) Unwrap() error { return u.error }

// evaluate looks at the record of a certificate: it returns what is to be served from
// now on, which may be what is served already, and why that is not what the record
// wants.
func (g *group) evaluate(id string, served *installed, now time.Time) (*installed, error) {
	signed, value, problem := g.record(CertSubject(g.name, id))
	if problem != nil {
		problem = unbelieved{problem}
	}
	r, ok := value.(*Record)
	if !ok {
		return served, problem
	}
	if r.Removed {
		return nil, problem
	}
	b := wanted(r, g.store.o.Key.Name)
	if b == nil {
		return served, problem
	}
	if served != nil && served.bundle.Leaf == b.Leaf && served.generation == b.Generation && served.bundle.Key.To == b.Key.To && bytes.Equal(served.bundle.Key.Ciphertext, b.Key.Ciphertext) {
		again := *served
		again.bundle, again.signed = b, signed
		return &again, problem
	}
	next, err := g.install(id, r, b, served, served != nil && served.bundle.Leaf == b.Leaf, now)
	if err != nil {
		return served, fmt.Errorf("generation %d is refused: %w", b.Generation, err)
	}
	next.signed = signed
	return next, problem
}

func (g *group) install(id string, r *Record, b *Bundle, served *installed, trusted bool, now time.Time) (*installed, error) {
	if err := follows(r, b, served); err != nil {
		return nil, err
	}
	key, err := g.key(b.KeyGeneration())
	if err != nil {
		return nil, err
	}
	return verify(g.name, id, b, key, now, trusted)
}

// A snapshot begins with this; then come the state, with its length before it, and of
// each certificate that is served its id, its leaf, and its record as it was signed,
// which is empty if the state has it.
const snapshotMagic = "fleetbus-store-1\n"

// One of a group that is not whole yet begins with this instead.
const partMagic = "fleetbus-store-1-part\n"

// Marshal returns the records and what is served, with everything sealed and signed as
// it is in the ledger.
func (g *group) Marshal() ([]byte, error) {
	state, err := g.state.Marshal()
	if err != nil {
		return nil, err
	}
	magic := snapshotMagic
	if !g.isWhole() {
		magic = partMagic
	}
	out := append([]byte(magic), binary.AppendUvarint(nil, uint64(len(state)))...)
	out = append(out, state...)
	put := func(text []byte) {
		out = binary.AppendUvarint(out, uint64(len(text)))
		out = append(out, text...)
	}
	for _, i := range g.store.servedOf(g.name) {
		put([]byte(i.id))
		put([]byte(i.bundle.Leaf))
		if signed, _, _ := g.record(CertSubject(g.name, i.id)); bytes.Equal(signed, i.signed) {
			put(nil)
		} else {
			put(i.signed)
		}
	}
	return out, nil
}

// A past certificate is one that was served when a snapshot was written.
type past struct {
	id, leaf string
	signed   []byte
}

// Unmarshal loads what Marshal returned, and serves what was served then. It believes
// no more than Apply, whoever wrote the file.
func (g *group) Unmarshal(data []byte) error {
	rest, whole := bytes.CutPrefix(data, []byte(snapshotMagic))
	ok := whole
	if !whole {
		rest, ok = bytes.CutPrefix(data, []byte(partMagic))
	}
	if !ok {
		return errors.New("reading a snapshot of certificates: it is none")
	}
	next := func() []byte {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > uint64(len(rest)-size) {
			ok, rest = false, nil
			return nil
		}
		text := rest[size : size+int(n)]
		rest = rest[size+int(n):]
		return text
	}
	state := next()
	var all []past
	for ok && len(rest) > 0 {
		all = append(all, past{string(next()), string(next()), next()})
	}
	if !ok {
		return errors.New("reading a snapshot of certificates: it is cut off")
	}
	if err := g.state.Unmarshal(state); err != nil {
		return err
	}
	if whole {
		g.complete()
	}
	g.store.resume(g.name, all)
	return nil
}

// restore is a certificate that was served before, if it can be believed still.
func (g *group) restore(p past, now time.Time) (*installed, error) {
	subject := CertSubject(g.name, p.id)
	signed, value, _ := g.record(subject)
	r, _ := value.(*Record)
	if r != nil && r.Removed {
		return nil, errors.New("it was removed")
	}
	if len(p.signed) > 0 {
		payload, err := Verify(g.store.o.Key.Signers, subject, p.signed)
		if err != nil {
			return nil, err
		}
		r, signed = &Record{}, slices.Clone(p.signed)
		if err := json.Unmarshal(payload, r); err != nil {
			return nil, err
		}
	}
	if r == nil || r.ID != p.id || r.Group != g.name {
		return nil, errors.New("its record is missing")
	}
	for _, b := range []*Bundle{r.Next, r.Current} {
		if b != nil && b.Leaf == p.leaf {
			i, err := g.install(p.id, r, b, nil, true, now)
			if err != nil {
				return nil, err
			}
			i.signed = signed
			return i, nil
		}
	}
	return nil, errors.New("its record is about others")
}
