//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/lease"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// writers compete for each of registers, and holders for the lease.
	writers, holders = 3, 3
	registers        = 3
	leaseTTL         = 6 * time.Second
	checkTimeout     = time.Minute
)

// An attempt is one call of Append; it is also what it writes.
type attempt struct {
	ID      int
	Subject string
	Expect  uint64
}

// An outcome is what became of an attempt: a version, or a conflict.
type outcome struct {
	version  uint64
	conflict bool
}

// A history records what concurrent clients of a ledger and of a lease did, and when.
type history struct {
	start time.Time

	mu      sync.Mutex
	ids     int
	known   map[string]uint64 // the latest version of each subject
	reasons map[int]string    // why an attempt was a conflict, and when
	decided []porcupine.Operation
	unknown []porcupine.Operation // without a return
	held    []porcupine.Operation
}

func newHistory() *history {
	return &history{start: time.Now(), known: map[string]uint64{}, reasons: map[int]string{}}
}

func (h *history) now() int64 { return time.Since(h.start).Nanoseconds() }

// write appends to a ledger of the account, of which there are copies, until ctx is done, mostly after what was last
// seen.
func (h *history) write(ctx context.Context, nc *nats.Conn, client, copies int) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	open, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, err := ledger.Open(open, js, ledger.Options{Stream: "HISTORY", Prefix: "history", Replicas: copies})
	if err != nil {
		return err
	}
	stream, err := js.Stream(open, "HISTORY")
	if err != nil {
		return fmt.Errorf("looking for the ledger: %w", err)
	}
	for pause(ctx, 100*time.Millisecond+rand.N(100*time.Millisecond)) == nil {
		h.mu.Lock()
		h.ids++
		in := attempt{ID: h.ids, Subject: fmt.Sprintf("r%d", rand.IntN(registers))}
		in.Expect = h.known[in.Subject]
		h.mu.Unlock()
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*tryTimeout)
		op := porcupine.Operation{ClientId: client, Input: in, Call: h.now()}
		version, err := l.Append(try, in.Subject, in.Expect, data)
		op.Return = h.now()
		cancel()
		h.wrote(op, in, version, err)
		if err != nil {
			h.look(ctx, stream, in.Subject)
		}
	}
	return nil
}

func (h *history) wrote(op porcupine.Operation, in attempt, version uint64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		op.Output = outcome{version: version}
		h.decided = append(h.decided, op)
		h.known[in.Subject] = max(h.known[in.Subject], version)
	case errors.Is(err, ledger.ErrConflict):
		op.Output = outcome{conflict: true}
		h.decided = append(h.decided, op)
		h.reasons[in.ID] = fmt.Sprintf("%s, from %s on for %v: %v", in.Subject, h.start.Add(time.Duration(op.Call)).Format(clock), time.Duration(op.Return-op.Call), err)
	case errors.Is(err, ledger.ErrUnknown):
		op.Return = math.MaxInt64
		h.unknown = append(h.unknown, op)
	}
}

// look finds out what there is after an attempt that failed. What it sees decides nothing.
func (h *history) look(ctx context.Context, s jetstream.Stream, subject string) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	m, err := s.GetLastMsgForSubject(ctx, "history."+subject)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[subject] = max(h.known[subject], m.Sequence)
}

// hold holds a lease for a moment, again and again, until ctx is done.
func (h *history) hold(ctx context.Context, nc *nats.Conn, client int) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	var all *lease.Leases
	if err := until(ctx, patience, "there are leases", func(ctx context.Context) (err error) {
		all, err = lease.Open(ctx, js, lease.Options{Stream: "HELD", Prefix: "held", TTL: leaseTTL})
		return err
	}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		began := h.now()
		_ = all.Hold(ctx, "one", fmt.Sprintf("holder%d", client), nil, func(held context.Context) error {
			had := h.now()
			_ = pause(held, time.Second+rand.N(5*time.Second))
			left := h.now()
			h.mu.Lock()
			defer h.mu.Unlock()
			// When it is free again is not known: after it was left.
			h.held = append(h.held,
				porcupine.Operation{ClientId: 2 * client, Input: true, Output: client, Call: began, Return: had},
				porcupine.Operation{ClientId: 2*client + 1, Input: false, Output: client, Call: left, Return: math.MaxInt64})
			return nil
		})
		_ = pause(ctx, rand.N(time.Second))
	}
	return nil
}

// register is the sequential specification of a subject of a ledger: one version, which is
// replaced by whoever names it.
func register() porcupine.Model {
	return porcupine.Model{
		Partition: func(all []porcupine.Operation) (parts [][]porcupine.Operation) {
			bySubject := map[string][]porcupine.Operation{}
			for _, op := range all {
				s := op.Input.(attempt).Subject
				bySubject[s] = append(bySubject[s], op)
			}
			for _, part := range bySubject {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() any { return uint64(0) },
		Step: func(state, input, output any) (bool, any) {
			version, in, out := state.(uint64), input.(attempt), output.(outcome)
			if out.conflict {
				return in.Expect != version, version
			}
			return in.Expect == version && out.version > version, out.version
		},
	}
}

// judge checks the ledger's history against what the ledger holds, and that of the lease for
// two who had it at once. ledger is read from its leader when nothing else happens.
func (h *history) judge(ctx context.Context, nc *nats.Conn) (wrong []string, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	stored := map[int]uint64{}
	last := map[string]uint64{}
	err = until(ctx, patience, "the ledger is read", func(ctx context.Context) error {
		clear(stored)
		clear(last)
		wrong = nil
		s, err := js.Stream(ctx, "HISTORY")
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
			m, err := s.GetMsg(ctx, seq)
			if err != nil {
				return err
			}
			var in attempt
			if err := json.Unmarshal(m.Data, &in); err != nil {
				return err
			}
			if in.Expect != last[in.Subject] {
				wrong = append(wrong, fmt.Sprintf("event %d of %s is written after %d, and %d was the last", seq, in.Subject, in.Expect, last[in.Subject]))
			}
			if stored[in.ID] != 0 {
				wrong = append(wrong, fmt.Sprintf("attempt %d is stored as %d and %d", in.ID, stored[in.ID], seq))
			}
			stored[in.ID], last[in.Subject] = seq, seq
		}
		return nil
	})
	if err != nil {
		return wrong, err
	}
	return append(wrong, h.check(stored)...), nil
}

func (h *history) check(stored map[int]uint64) (wrong []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ops := h.decided
	for _, op := range h.decided {
		in, out := op.Input.(attempt), op.Output.(outcome)
		if stored[in.ID] != out.version {
			wrong = append(wrong, fmt.Sprintf("attempt %d was told %+v and is stored as %d: %s", in.ID, out, stored[in.ID], h.reasons[in.ID]))
		}
	}
	for _, op := range h.unknown { // those that were not stored took no effect
		if version := stored[op.Input.(attempt).ID]; version != 0 {
			op.Output = outcome{version: version}
			ops = append(ops, op)
		}
	}
	if got := porcupine.CheckOperationsTimeout(register(), ops, checkTimeout); got != porcupine.Ok {
		wrong = append(wrong, fmt.Sprintf("the history of the ledger is linearizable: %v", got))
	}
	// Somebody holds the lease, or nobody: 0.
	one := porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, output any) (bool, any) {
			if input.(bool) {
				return state.(int) == 0, output.(int) + 1
			}
			return state.(int) == output.(int)+1, 0
		},
	}
	if got := porcupine.CheckOperationsTimeout(one, h.held, checkTimeout); got != porcupine.Ok {
		wrong = append(wrong, fmt.Sprintf("the lease had one holder at a time: %v", got))
	}
	return wrong
}
