package cert

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/ledger"
)

// history is how many events of a subject the ledger keeps: enough to see what
// happened to a certificate, and no more, because a fleet lives longer than a disk.
const history = 32

// OpenLedger opens the ledger of certificates of the account that js belongs to. It
// makes it if it is missing, on three nodes where there are three, which targets may not.
func OpenLedger(ctx context.Context, js jetstream.JetStream) (*ledger.Ledger, error) {
	return ledger.Open(ctx, js, ledgerOptions(Stream, Prefix))
}

// OpenReports is OpenLedger for the ledger of what targets report.
func OpenReports(ctx context.Context, js jetstream.JetStream) (*ledger.Ledger, error) {
	return ledger.Open(ctx, js, ledgerOptions(ReportStream, ReportPrefix))
}

func ledgerOptions(stream, prefix string) ledger.Options {
	return ledger.Options{
		Stream: stream, Prefix: prefix, History: history, Replicas: 3, OrOne: true,
		Metadata: map[string]string{"fleetbus.replicas": "auto"},
	}
}

// Ledgers are the ledger of certificates and that of reports, followed into one State.
// OpenLedgers makes one. Only one Run at a time; all else is safe for concurrent use.
type Ledgers struct {
	state            *State
	records, reports followed
	caughtUp         chan struct{}
	once             sync.Once
}

// A followed ledger.
type followed struct {
	*ledger.Ledger
	*ledger.Follower
}

// OpenLedgers opens both ledgers of the account that js belongs to, or makes what is
// missing. What o says holds for both, and OnEvent is called for both at once; there are
// no snapshots, and no filter.
func OpenLedgers(ctx context.Context, js jetstream.JetStream, state *State, o ledger.FollowOptions) (*Ledgers, error) {
	o.Snapshot, o.Filter = "", nil
	l := &Ledgers{state: state, caughtUp: make(chan struct{})}
	var err error
	if l.records.Ledger, err = OpenLedger(ctx, js); err != nil {
		return nil, err
	}
	if l.reports.Ledger, err = OpenReports(ctx, js); err != nil {
		return nil, err
	}
	if l.records.Follower, err = ledger.NewFollower(state, o); err != nil {
		return nil, err
	}
	l.reports.Follower, err = ledger.NewFollower(state.Reports(), o)
	return l, err
}

// Run follows both until ctx ends, and returns nil then. It fails as a ledger.Follower
// does.
func (l *Ledgers) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for _, f := range []followed{l.records, l.reports} {
		all.Go(func() {
			if err := f.Follower.Run(ctx, f.Ledger); err != nil {
				cancel(err)
			}
		})
		select { // reports are heard once it is known who may report
		case <-f.CaughtUp():
		case <-ctx.Done():
		}
	}
	if ctx.Err() == nil {
		l.once.Do(func() { close(l.caughtUp) })
	}
	all.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// CaughtUp is closed once everything was applied that was in either ledger when Run first
// saw it.
func (l *Ledgers) CaughtUp() <-chan struct{} { return l.caughtUp }

// of is the ledger that a subject is in.
func (l *Ledgers) of(subject string) followed {
	if IsReport(subject) {
		return l.reports
	}
	return l.records
}

// Append writes the next record of a subject into its ledger, as ledger.Ledger.Append
// does.
func (l *Ledgers) Append(ctx context.Context, subject string, expect uint64, data []byte) (uint64, error) {
	return l.of(subject).Append(ctx, subject, expect, data)
}

// Wait returns when event seq of the ledger of a subject, and all before it, were applied.
func (l *Ledgers) Wait(ctx context.Context, subject string, seq uint64) error {
	return l.of(subject).Wait(ctx, seq)
}

// Settle returns when all records were applied that there were when it was called: what is
// not believed of a report then was not heard too early.
func (l *Ledgers) Settle(ctx context.Context) error {
	seq, err := l.records.Last(ctx)
	if err != nil {
		return err
	}
	return l.records.Wait(ctx, seq)
}

// Now is the time by the clock of the ledger of certificates: see ledger.Ledger.Now.
func (l *Ledgers) Now(ctx context.Context) (time.Time, error) { return l.records.Now(ctx) }
