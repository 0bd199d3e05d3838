package cert

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// SnapshotOf is a snapshot of a store that knows a state and serves nothing yet.
func SnapshotOf(state []byte) []byte {
	out := binary.AppendUvarint([]byte(snapshotMagic), uint64(len(state)))
	return append(out, state...)
}

// Apply has the store take an event of a group, as if it came from the ledger.
func (s *Store) Apply(group string, seq uint64, subject string, data []byte) error {
	return s.groups[group].Apply(seq, subject, data)
}

// Install looks at what came.
func (s *Store) Install() { s.install() }

// RunAlone installs and delivers without a bus, and reports to nobody, until ctx ends.
func (s *Store) RunAlone(ctx context.Context) {
	s.Complete()
	s.RunPart(ctx)
}

// Complete says that no more is to come of what the ledger had.
func (s *Store) Complete() {
	for _, g := range s.groups {
		g.complete()
	}
}

// RunPart is as RunAlone, but does not Complete.
func (s *Store) RunPart(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { s.keepInstalled(ctx, nil) })
	all.Go(func() { s.keepDelivered(ctx) })
	all.Wait()
}

// Lookup finds one of candidates by an index of its own.
func Lookup(all []Candidate, fallback string, hello *tls.ClientHelloInfo, now time.Time) *tls.Certificate {
	var list []*installed
	for i, c := range all {
		list = append(list, &installed{candidate: newCandidate(c.TLS, fmt.Sprint(i), c.Generation), names: c.Names})
	}
	return newIndex(list, fallback).lookup(hello, now.Unix())
}

// A Candidate is a certificate for Lookup.
type Candidate struct {
	TLS        *tls.Certificate
	Names      []string
	Generation uint64
}

// Recheck is how often a program is looked at again.
const Recheck = recheck

// Unmarshal loads the snapshot of a group.
func (s *Store) Unmarshal(group string, data []byte) error { return s.groups[group].Unmarshal(data) }

// Marshal is the snapshot of a group.
func (s *Store) Marshal(group string) ([]byte, error) { return s.groups[group].Marshal() }

// Seq is the last event that was applied to a group.
func (s *Store) Seq(group string) uint64 { return s.groups[group].Seq() }

// KeepTime keeps the clock, as Run does.
func (s *Store) KeepTime(ctx context.Context) { s.keepTime(ctx) }
