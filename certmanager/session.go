package certmanager

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// appendTime bounds one write to the ledger.
	appendTime = 30 * time.Second
	// maxConflicts is how often a write is decided again, because others were faster.
	maxConflicts = 20
	// sideTasks is how many things are tidied up at once, and how many questions to
	// authorities are open.
	sideTasks = 16
	// maxRequests is how many requests are answered at once.
	maxRequests = 64
	// defaultPerHour is how many orders a manager places with one issuer.
	defaultPerHour = 600
)

var (
	// errUnchanged ends a change that has nothing to write.
	errUnchanged = errors.New("there is nothing to write")
	// errHeld says that another manager works on a certificate.
	errHeld = errors.New("another manager works on it")
	// errLost says that a certificate is not ours to work on any more.
	errLost = errors.New("it is not ours to work on any more")
	// errNoConfig says that managers have nothing to work with.
	errNoConfig = errors.New("there is no configuration")
)

// A session is one run of a manager over a connection.
type session struct {
	m       *Manager
	ctx     context.Context // of the run, for what goes on when who asked for it is gone
	nc      *nats.Conn
	key     *cert.ManagerKey
	ledgers *cert.Ledgers
	state   *cert.State
	// holder is who this is in leases: never the same for two runs, so that nobody
	// takes the lease of another for its own.
	holder string
	wake   chan struct{}
	tasks  sync.WaitGroup
	pool   chan struct{} // a place for each certificate that is worked on
	side   chan struct{} // for each thing that is tidied up
	open   chan struct{} // for each question to an authority
	asked  chan struct{} // and for what somebody asked for and waits for

	clock   ledgerClock
	opening sync.Mutex // of issuers, one at a time

	mu        sync.Mutex
	changed   chan struct{}        // closed, and made anew, at each event
	sightings map[string]time.Time // of the last event of certificates and targets; monotonic, because no other clock can be trusted
	ending    bool                 // no task begins any more
	running   map[string]bool      // tasks, by what they do
	refused   bool                 // a task could not begin, and is to be tried when another ends
	queue     []candidate          // what is due, and nobody has begun
	listeners map[string][]chan<- string
	recording bool
	outcomes  []Outcome

	config   *cert.Config // that settings is of
	settings *Settings
	issuers  map[string]*opened

	again    map[string]time.Time // when to ask of a leaf's renewal, to revoke it, and so on
	waves    map[string]waveSince
	here     map[string]presence
	lists    map[string]*list
	trouble  map[string]string // what does not work, by what it is
	lastPass time.Time
}

// An opened issuer, and what it was opened with.
type opened struct {
	issuer   Issuer
	settings IssuerSettings
	dns      []DNSSettings
	limiter  *rate.Limiter
}

// is reports whether o was opened with these settings.
func (o *opened) is(settings IssuerSettings, dns []DNSSettings) bool {
	return reflect.DeepEqual(o.settings, settings) && reflect.DeepEqual(o.dns, dns)
}

func (m *Manager) open(ctx context.Context, nc *nats.Conn) (*session, error) {
	key, err := m.o.Key(ctx)
	if err != nil {
		return nil, fmt.Errorf("managing certificates: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("managing certificates: %w", err)
	}
	s := &session{
		m: m, nc: nc, key: key, state: cert.NewState([]cert.Signer{key.Signer()}, nil),
		holder: m.o.Name + "/" + cert.NewID(),
		wake:   make(chan struct{}, 1), pool: make(chan struct{}, m.o.Workers), side: make(chan struct{}, sideTasks),
		open: make(chan struct{}, sideTasks), asked: make(chan struct{}, maxRequests),
		changed: make(chan struct{}), sightings: map[string]time.Time{}, running: map[string]bool{},
		listeners: map[string][]chan<- string{}, issuers: map[string]*opened{}, again: map[string]time.Time{},
		waves: map[string]waveSince{}, here: map[string]presence{}, lists: map[string]*list{}, trouble: map[string]string{},
	}
	s.ledgers, err = cert.OpenLedgers(ctx, js, s.state, ledger.FollowOptions{Logger: m.log, OnEvent: s.onEvent})
	if err != nil {
		return nil, fmt.Errorf("managing certificates: %w", err)
	}
	return s, nil
}

// now is the time that everything is decided by.
func (s *session) now() time.Time {
	if s.m.o.Now != nil {
		return s.m.o.Now()
	}
	if now, ok := s.clock.now(); ok {
		return now
	}
	return s.m.wall()
}

// onEvent is told of each event after it is in the state.
func (s *session) onEvent(e ledger.Event) {
	s.mu.Lock()
	if words := strings.Split(e.Subject, "."); len(words) == 4 && words[0] == "g" && (words[2] == "cert" || words[2] == "target") {
		s.sightings[e.Subject] = time.Now()
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.poke()
}

// poke makes the loop look again.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// silence is for how long this manager has seen no event of a subject.
func (s *session) silence(subject string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.sightings[subject])
}

// until waits until an event makes done true.
func (s *session) until(ctx context.Context, done func() bool) error {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if done() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// signed is a record that somebody signed already.
type signed []byte

// put writes what decide returns as the new record of subject, signed, unless it is
// signed already. When somebody was faster, decide is asked again, with the state as it is then.
func (s *session) put(ctx context.Context, subject string, decide func() (any, error)) error {
	ctx, cancel := context.WithTimeout(ctx, appendTime)
	defer cancel()
	for n := 0; ; n++ {
		version := s.state.Version(subject)
		record, err := decide()
		if err != nil {
			return err
		}
		var data []byte
		switch r := record.(type) {
		case signed:
			data = r
		default:
			if data, err = s.key.Sign(subject, record); err != nil {
				return err
			}
		}
		seq, err := s.ledgers.Append(ctx, subject, version, data)
		switch {
		case err == nil:
			return s.ledgers.Wait(ctx, subject, seq)
		case !errors.Is(err, ledger.ErrConflict) || n == maxConflicts:
			return err
		}
		if err := s.until(ctx, func() bool { return s.state.Version(subject) != version }); err != nil {
			return err
		}
	}
}

// amend writes the next event of a certificate. change gets a copy of its record, of
// which it may set fields, but not what they point to.
func (s *session) amend(ctx context.Context, group, id string, event cert.Event, change func(*cert.Record) error) (*cert.Record, error) {
	subject := cert.CertSubject(group, id)
	var written *cert.Record
	err := s.put(ctx, subject, func() (any, error) {
		before, ok := s.state.Record(group, id)
		if !ok {
			return nil, fmt.Errorf("changing certificate %q: %w", id, errLost)
		}
		r := *before
		if err := change(&r); err != nil {
			return nil, err
		}
		r.Version, r.Revision, r.Event, r.At, r.By = recordVersion, before.Revision+1, event, s.now().UTC(), s.m.o.Name
		written = &r
		return written, nil
	})
	if errors.Is(err, errUnchanged) {
		r, _ := s.state.Record(group, id)
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	s.record(written)
	return written, nil
}

// record keeps what was done for who asked for all of it at once.
func (s *session) record(r *cert.Record) {
	if r.Event == cert.Leased || r.Event == cert.Ordered {
		return
	}
	o := Outcome{ID: r.ID, Names: r.Policy.Names, Event: r.Event}
	if r.Failure != nil {
		o.Detail = r.Failure.Detail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recording {
		s.outcomes = append(s.outcomes, o)
	}
}

// all are the records of certificates, removed ones too.
func (s *session) all() []*cert.Record {
	s.mu.Lock()
	var subjects []string
	for subject := range s.sightings {
		subjects = append(subjects, subject)
	}
	s.mu.Unlock()
	var all []*cert.Record
	for _, subject := range subjects {
		if words := strings.Split(subject, "."); len(words) == 4 && words[2] == "cert" {
			if r, ok := s.state.Record(words[1], words[3]); ok {
				all = append(all, r)
			}
		}
	}
	return all
}

// everTargets are the targets of a group, removed ones too.
func (s *session) everTargets(group string) []*cert.Target {
	s.mu.Lock()
	var names []string
	for subject := range s.sightings {
		if name, ok := strings.CutPrefix(subject, cert.TargetSubject(group, "")); ok {
			names = append(names, name)
		}
	}
	s.mu.Unlock()
	slices.Sort(names)
	var all []*cert.Target
	for _, name := range names {
		if t, ok := s.state.Target(group, name); ok {
			all = append(all, t)
		}
	}
	return all
}

// configured returns the settings as they are now.
func (s *session) configured() (*Settings, error) {
	c, ok := s.state.Config()
	if !ok {
		return nil, errNoConfig
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config != c {
		settings, err := openSettings(s.key, c)
		if err != nil {
			return nil, err
		}
		s.config, s.settings = c, settings
	}
	return s.settings, nil
}

// configure changes the settings.
func (s *session) configure(ctx context.Context, change func(before *Settings) (*Settings, error)) error {
	return s.put(ctx, cert.ConfigSubject, func() (any, error) {
		before, err := s.configured()
		if err != nil && !errors.Is(err, errNoConfig) {
			return nil, err
		}
		if before == nil {
			before = &Settings{}
		}
		after, err := change(before)
		if err != nil {
			return nil, err
		}
		c, _ := s.state.Config()
		return sealSettings(s.key, c, after)
	})
}

// keep replaces the secret of an issuer.
func (s *session) keep(ctx context.Context, name string, change func(kept string) (string, error)) (string, error) {
	var secret string
	err := s.configure(ctx, func(before *Settings) (*Settings, error) {
		after := *before
		after.Issuers = slices.Clone(before.Issuers)
		i := slices.IndexFunc(after.Issuers, func(issuer IssuerSettings) bool { return issuer.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("keeping the secret of issuer %q: it is not configured any more", name)
		}
		var err error
		if secret, err = change(after.Issuers[i].Secret); err != nil {
			return nil, err
		}
		if secret == after.Issuers[i].Secret {
			return nil, errUnchanged
		}
		after.Issuers[i].Secret = secret
		return &after, nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return "", err
	}
	return secret, nil
}

// issuer opens an issuer, or returns it if it is open.
func (s *session) issuer(ctx context.Context, name string) (*opened, error) {
	settings, err := s.configured()
	if err != nil {
		return nil, err
	}
	is, ok := settings.issuer(name)
	if !ok {
		return nil, fmt.Errorf("opening issuer %q: it is not configured", name)
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	s.mu.Lock()
	o := s.issuers[name]
	s.mu.Unlock()
	if o != nil && o.is(is, settings.DNS) {
		return o, nil
	}
	open, ok := s.m.o.Issuers[is.Type]
	if !ok {
		return nil, fmt.Errorf("opening issuer %q: this program knows no type %q", name, is.Type)
	}
	kept := is
	issuer, err := open(ctx, IssuerOptions{
		Settings: is, DNS: settings.DNS, Now: s.now, Logger: s.m.log.With("issuer", name),
		Keep: func(ctx context.Context, change func(string) (string, error)) (string, error) {
			secret, err := s.keep(ctx, name, change)
			s.mu.Lock()
			defer s.mu.Unlock()
			if err == nil {
				kept.Secret = secret
				if o := s.issuers[name]; o != nil && o.settings.Name == name {
					o.settings.Secret = secret
				}
			}
			return secret, err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("opening issuer %q: %w", name, err)
	}
	n := is.PerHour
	if n == 0 {
		n = defaultPerHour
	}
	fresh := &opened{issuer, kept, settings.DNS, rate.NewLimiter(rate.Limit(float64(n)/3600), max(1, n/10))}
	if o != nil && o.settings.PerHour == is.PerHour {
		fresh.limiter = o.limiter
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issuers[name] = fresh
	return fresh, nil
}

// begin runs a task in the background, if no other of that name runs and there is a
// place in places. It reports whether it does.
func (s *session) begin(ctx context.Context, name string, places chan struct{}, task func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || ctx.Err() != nil {
		return false
	}
	if s.running[name] {
		s.refused = true
		return false
	}
	select {
	case places <- struct{}{}:
	default:
		s.refused = true
		return false
	}
	s.running[name] = true
	s.tasks.Go(func() {
		defer func() {
			<-places
			s.mu.Lock()
			delete(s.running, name)
			again := s.refused || s.recording
			s.refused = false
			s.mu.Unlock()
			if again { // else the next event wakes the loop: a task that always ends in a pass would never rest
				s.poke()
			}
		}()
		task(ctx)
	})
	return true
}

// alone does something, unless it is being done.
func (s *session) alone(name string, do func()) {
	s.mu.Lock()
	busy := s.running[name]
	s.running[name] = true
	s.mu.Unlock()
	if busy {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, name)
	}()
	do()
}

// idle reports whether no task runs.
func (s *session) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.running) == 0
}

// dueAgain reports whether what is asked for once in a while is to be asked now.
func (s *session) dueAgain(what string, first time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.again[what]
	if !ok {
		at = first
	}
	return !s.now().Before(at)
}

func (s *session) setAgain(what string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.again[what] = at
}

// setTrouble keeps what does not work, for the findings; nil says that it does.
func (s *session) setTrouble(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.trouble, what)
	} else {
		s.trouble[what] = err.Error()
	}
}

// tell passes a step of the work on a certificate on to those who wait for it.
func (s *session) tell(id, step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners[id] {
		select {
		case l <- step:
		default: // who does not listen misses it
		}
	}
}

// listen returns what is told of a certificate, until stop is called.
func (s *session) listen(id string) (steps <-chan string, stop func()) {
	l := make(chan string, 64)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[id] = append(s.listeners[id], l)
	return l, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.listeners[id] = slices.DeleteFunc(s.listeners[id], func(other chan<- string) bool { return other == chan<- string(l) })
		if len(s.listeners[id]) == 0 {
			delete(s.listeners, id)
		}
	}
}
