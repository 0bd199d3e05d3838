package certmanager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/cert"
)

// recordVersion is the version of the records that a manager writes.
const recordVersion = 1

// OpenIssuer opens an issuer of a type. It is called when the issuer is first needed,
// and again when its settings have changed.
type OpenIssuer func(ctx context.Context, o IssuerOptions) (Issuer, error)

// IssuerOptions are what an issuer is opened with.
type IssuerOptions struct {
	// Settings as they are configured; Secret is empty if none is kept yet.
	Settings IssuerSettings
	// DNS has the providers that are configured.
	DNS []DNSSettings
	// Keep replaces the secret: change gets the one that is kept, empty if none is, and
	// returns the one to keep, which Keep returns. It is called again if another
	// manager was faster.
	Keep func(ctx context.Context, change func(kept string) (string, error)) (string, error)
	// Now is the clock that managers agree on. It is never nil.
	Now func() time.Time
	// Logger is never nil.
	Logger *slog.Logger
}

// Options make a Manager.
type Options struct {
	// Name of this manager. Each has another. It is one word, for people: two that have
	// the same by mistake do no harm.
	Name string
	// Key is the key of the account's managers. It is asked for when a run begins.
	Key func(ctx context.Context) (*cert.ManagerKey, error)
	// Issuers are how issuers are opened, by the type in their settings.
	Issuers map[string]OpenIssuer
	// HTTP is for revocation lists and the dead man's switch. Default: a client that
	// gives up after 30 s.
	HTTP *http.Client
	// Logger is told of what was obtained and what failed. Default: nobody is.
	Logger *slog.Logger

	// Workers is how many certificates are worked on at once. Default 16.
	Workers int
	// Every is how often everything is looked at, besides when something happens.
	// Default 15 s.
	Every time.Duration
	// Lease is how long another manager waits for one that works on a certificate and
	// is silent. Default 2 minutes.
	Lease time.Duration
	// Attempt is how long one attempt may take. Default 20 minutes.
	Attempt time.Duration
	// Wave is how long the targets of a wave may take to serve a new generation.
	// Default 5 minutes.
	Wave time.Duration
	// Lists is how often revocation lists are read. Default 6 h.
	Lists time.Duration
	// Answer is how long targets have to answer that they are there, and twenty
	// times as long they have to answer for a challenge. Default 1 s.
	Answer time.Duration
	// Now is the clock that validity, renewals and pauses are judged by. Leases are not.
	// Default: the clock of the ledger, so that all managers agree on what is due,
	// however wrong their own is.
	Now func() time.Time
}

// A Manager obtains certificates and looks after them. New makes one. It is a service
// of a server, or of any program: everything that it knows is in the ledger. Only one
// Run or Once at a time; everything else is safe for concurrent use.
type Manager struct {
	o    Options
	log  *slog.Logger
	wall func() time.Time // of this machine

	mu sync.Mutex
	s  *session // of the run that goes on; nil: none does
}

// New makes a Manager, and opens nothing.
func New(o Options) (*Manager, error) {
	if !cert.IsToken(o.Name) {
		return nil, fmt.Errorf("making a manager of certificates: %q is no name: letters, digits, dashes and underscores make one", o.Name)
	}
	if o.Key == nil {
		return nil, errors.New("making a manager of certificates: it has no key")
	}
	o.HTTP = cmp.Or(o.HTTP, &http.Client{Timeout: 30 * time.Second})
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	o.Workers = cmp.Or(max(o.Workers, 0), 16)
	o.Every = cmp.Or(o.Every, 15*time.Second)
	o.Lease = cmp.Or(o.Lease, 2*time.Minute)
	o.Attempt = cmp.Or(o.Attempt, 20*time.Minute)
	o.Wave = cmp.Or(o.Wave, 5*time.Minute)
	o.Lists = cmp.Or(o.Lists, 6*time.Hour)
	o.Answer = cmp.Or(o.Answer, time.Second)
	m := &Manager{o: o, log: o.Logger.With("manager", o.Name), wall: o.Now}
	if m.wall == nil {
		m.wall = time.Now
	}
	return m, nil
}

// types are those of issuers that are known.
func (m *Manager) types() []string { return slices.Sorted(maps.Keys(m.o.Issuers)) }

// Run looks after the certificates of the account that nc belongs to, and answers on
// the bus who asks for something, until ctx ends. What it began then, others or a later
// run go on with. It fails if the ledger cannot be used.
func (m *Manager) Run(ctx context.Context, nc *nats.Conn) error {
	return m.with(ctx, nc, func(ctx context.Context, s *session) error {
		stop, err := s.serve(ctx)
		if err != nil {
			return err
		}
		defer stop()
		s.loop(ctx)
		return nil
	})
}

// with opens a session for do, and ends it.
func (m *Manager) with(ctx context.Context, nc *nats.Conn, do func(context.Context, *session) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s, err := m.open(ctx, nc)
	if err != nil && ctx.Err() != nil {
		return nil // Once tells of it
	}
	if err != nil {
		return err
	}
	follow, stopFollowing := context.WithCancel(context.WithoutCancel(ctx)) // what is let go is still followed
	defer stopFollowing()
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		if err := s.ledgers.Run(follow); err != nil {
			cancel(err)
		}
	}()
	s.ctx = ctx
	m.set(s)
	defer m.set(nil)
	select {
	case <-s.ledgers.CaughtUp():
		s.clock.ask(ctx, s.ledgers)
		err = do(ctx, s)
	case <-ctx.Done():
	}
	ended := context.Cause(ctx)
	cancel(nil)
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.tasks.Wait()
	stopFollowing()
	<-followed
	switch {
	case err != nil:
		return err
	case ended != nil && !errors.Is(ended, context.Canceled) && !errors.Is(ended, context.DeadlineExceeded):
		return fmt.Errorf("managing certificates: %w", ended)
	}
	return nil
}

func (m *Manager) set(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.s = s
}

func (m *Manager) session() *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.s
}

// An Outcome is something that a manager did.
type Outcome struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	// Event that it wrote.
	Event  cert.Event `json:"event"`
	Detail string     `json:"detail,omitempty"`
}

// Once does everything that is due, resumes what was begun and left, and returns what it
// did: for cron, and for services that run a function. Of a roll-out it does what can be
// done now. The error is that of the whole, not of a certificate.
func (m *Manager) Once(ctx context.Context, nc *nats.Conn) ([]Outcome, error) {
	var done []Outcome
	err := m.with(ctx, nc, func(ctx context.Context, s *session) error {
		s.mu.Lock()
		s.recording = true
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			done = s.outcomes
			s.mu.Unlock()
		}()
		return s.exhaust(ctx)
	})
	return done, cmp.Or(err, ctx.Err())
}
