package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/fleetbus/fleetbus/internal/await"
)

// attempt is one call of Append; it is also the record that it writes.
type attempt struct {
	ID      int
	Subject string
	Expect  uint64
}

// result is what became of an attempt: a version, or a conflict.
type result struct {
	version  uint64
	conflict bool
}

// history records concurrent attempts.
type history struct {
	start   time.Time
	mu      sync.Mutex
	ids     int
	known   map[string][]uint64 // the versions of each subject, as they were won
	decided []porcupine.Operation
	unknown []porcupine.Operation // without a return
	errs    []error
}

func newHistory() *history {
	return &history{start: time.Now(), known: map[string][]uint64{"a": {0}, "b": {0}}}
}

// append makes one attempt, mostly after the last version known.
func (h *history) append(ctx context.Context, l *Ledger, client int, patience time.Duration) {
	h.mu.Lock()
	h.ids++
	subject := []string{"a", "b"}[rand.IntN(2)]
	versions := h.known[subject]
	in := attempt{h.ids, subject, versions[len(versions)-1]}
	if rand.IntN(8) == 0 {
		in.Expect = versions[rand.IntN(len(versions))]
	}
	h.mu.Unlock()
	data, _ := json.Marshal(in)

	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	op := porcupine.Operation{ClientId: client, Input: in, Call: time.Since(h.start).Nanoseconds()}
	version, err := l.Append(ctx, subject, in.Expect, data)
	op.Return = time.Since(h.start).Nanoseconds()

	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		op.Output = result{version: version}
		h.decided = append(h.decided, op)
		h.learn(subject, version)
	case errors.Is(err, ErrConflict):
		op.Output = result{conflict: true}
		h.decided = append(h.decided, op)
	case errors.Is(err, ErrUnknown) && errors.Is(err, context.DeadlineExceeded):
		op.Return = math.MaxInt64
		h.unknown = append(h.unknown, op)
	case errors.Is(err, context.DeadlineExceeded): // known not to be written
	default:
		h.errs = append(h.errs, err)
	}
}

// learn notes a version that was won. h.mu is held.
func (h *history) learn(subject string, version uint64) {
	if versions := h.known[subject]; version > versions[len(versions)-1] {
		h.known[subject] = append(versions, version)
	}
}

// observe makes the history know the versions that followers see, so that
// attempts go on after an outcome that stayed unknown.
func (h *history) observe(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.learn(e.Subject, e.Seq)
}

// register is the sequential specification: one version per subject, replaced by
// whoever names it.
var register = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		bySubject := make(map[string][]porcupine.Operation)
		for _, op := range all {
			subject := op.Input.(attempt).Subject
			bySubject[subject] = append(bySubject[subject], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range bySubject {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		version, in, out := state.(uint64), input.(attempt), output.(result)
		if out.conflict {
			return in.Expect != version, version
		}
		return in.Expect == version && out.version > version, out.version
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

// check, when all clients are done, compares the history with what the ledger holds and with what f made of it.
func (h *history) check(t *testing.T, l *Ledger, f *following) {
	t.Helper()
	all := events(t, l)
	if err := f.Wait(within(t, 30*time.Second), uint64(len(all))); err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, err := range h.errs {
		t.Error(err)
	}
	stored := make(map[int]uint64) // version by attempt
	last := make(map[string]record)
	for _, e := range all {
		var in attempt
		if err := json.Unmarshal(e.Data, &in); err != nil {
			t.Fatal(err)
		}
		if in.Expect != last[e.Subject].Version {
			t.Errorf("event %d of %q expected %d to be the last, %d was", e.Seq, e.Subject, in.Expect, last[e.Subject].Version)
		}
		if stored[in.ID] != 0 {
			t.Errorf("attempt %d was stored twice: %d and %d", in.ID, stored[in.ID], e.Seq)
		}
		stored[in.ID] = e.Seq
		last[e.Subject] = record{e.Seq, string(e.Data)}
	}
	ops := h.decided
	for _, op := range h.decided {
		if want := op.Output.(result).version; stored[op.Input.(attempt).ID] != want {
			t.Errorf("%+v was told %d, stored as %d", op.Input, want, stored[op.Input.(attempt).ID])
		}
		delete(stored, op.Input.(attempt).ID)
	}
	landed := 0
	for _, op := range h.unknown { // those that were not stored took no effect
		if version := stored[op.Input.(attempt).ID]; version != 0 {
			op.Output = result{version: version}
			ops = append(ops, op)
			landed++
			delete(stored, op.Input.(attempt).ID)
		}
	}
	if len(stored) != 0 {
		t.Errorf("stored though known not to be: %v", stored)
	}
	t.Logf("%d events, %d decided, %d unknown of which %d were stored", len(all), len(h.decided), len(h.unknown), landed)
	if got := porcupine.CheckOperationsTimeout(register, ops, 30*time.Second); got != porcupine.Ok {
		t.Errorf("linearizable: %v", got)
	}
	if rows := f.state.rows(); fmt.Sprint(rows) != fmt.Sprint(last) {
		t.Errorf("the follower has %v, the ledger %v", rows, last)
	}
}

func TestLinearizable(t *testing.T) {
	s := startServer(t, server.Options{})
	near := open(t, s.ClientURL(), Options{})
	h := newHistory()
	f := follow(t, near, FollowOptions{OnEvent: h.observe})
	defer f.stop()

	var proxies []*proxy
	var clients sync.WaitGroup
	ctx := within(t, 120*time.Second)
	for client := range 4 {
		p := startProxy(t, s)
		proxies = append(proxies, p)
		l := open(t, p.url(), Options{})
		clients.Go(func() {
			for range 50 {
				h.append(ctx, l, client, 150*time.Millisecond)
			}
		})
	}
	stop := make(chan struct{})
	var spoiler sync.WaitGroup
	spoiler.Go(func() {
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			switch p := proxies[rand.IntN(len(proxies))]; rand.IntN(4) {
			case 0:
				p.mute()
			case 1:
				p.deaf()
			default:
				p.cut()
			}
		}
	})
	clients.Wait()
	close(stop)
	spoiler.Wait()
	for _, p := range proxies { // nothing may arrive while the ledger is read
		p.close()
	}
	if !await.True(20*time.Second, func() bool { return s.NumClients() == 1 }) {
		t.Fatal("the clients were not gone in 20 s")
	}
	h.append(ctx, near, 0, 20*time.Second) // stored after whatever the engine still had in hand
	h.check(t, near, f)
}

func BenchmarkAppend(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprintf("sync=%v", sync), func(b *testing.B) {
			s := startServer(b, server.Options{SyncAlways: sync})
			l := open(b, s.ClientURL(), Options{})
			data := make([]byte, 1024)
			version := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if version, err = l.Append(b.Context(), "user.orders.ann", version, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
