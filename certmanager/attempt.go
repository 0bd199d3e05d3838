package certmanager

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

// The steps of an attempt, as they stand in a Failure.
const (
	stepLease   = "lease"
	stepOrder   = "order"
	stepVerify  = "verify"
	stepDeliver = "deliver"
)

const (
	// triesPerIssuer is how many attempts in a row fail at one issuer before the next
	// one is tried first.
	triesPerIssuer = 2
	// longAfter is a pause that an authority asks for which is not waited for if
	// another issuer can be tried.
	longAfter = 10 * time.Minute
	// maxOrderAge is how old an order may be to be resumed.
	maxOrderAge = 6 * 24 * time.Hour
)

// An attempt is the work on the next generation of a certificate, under a lease.
type attempt struct {
	s          *session
	group, id  string
	generation uint64
	reason     cert.Reason
	reused     bool // the private key is that of the generation before

	mu      sync.Mutex
	renewed time.Time // when the last write began that renewed the lease
}

// free reports whether this manager may take the lease of a certificate: nobody has it,
// or who has it was silent for longer than it may be.
func (s *session) free(r *cert.Record) bool {
	l := r.Lease
	return l == nil || l.Holder == "" || l.Holder == s.holder || s.silence(cert.CertSubject(r.Group, r.ID)) > s.m.o.Lease
}

// nextGeneration is the number of the next one.
func nextGeneration(r *cert.Record) uint64 {
	n := r.Withdrawn
	for _, b := range []*cert.Bundle{r.Current, r.Next} {
		if b != nil {
			n = max(n, b.Generation)
		}
	}
	return n + 1
}

// newLease is a lease of this manager on the next generation of r. An order that was
// placed for it stays.
func (s *session) newLease(r *cert.Record) *cert.Lease {
	l := &cert.Lease{Holder: s.holder, Generation: nextGeneration(r), Until: s.now().Add(s.m.o.Lease).UTC()}
	if old := r.Lease; old != nil && old.Generation == l.Generation && old.Order != nil && s.now().Sub(old.Order.Placed) < maxOrderAge {
		l.Order = old.Order
	}
	return l
}

// obtain makes one attempt at the next generation of a certificate, if it is due and
// nobody else works on it. It returns errHeld if somebody does, errLost if it is not due
// any more, and else why the attempt failed, which is in the ledger then.
func (s *session) obtain(ctx context.Context, group, id string) error {
	var p plan
	var leased time.Time
	r, err := s.amend(ctx, group, id, cert.Leased, func(r *cert.Record) error {
		var due bool
		if p, due = planFor(r, s.now()); !due || p.At.After(s.now()) {
			return errLost
		}
		if !s.free(r) {
			return errHeld
		}
		r.Lease = s.newLease(r)
		leased = time.Now()
		return nil
	})
	if err != nil {
		return err
	}
	return s.work(ctx, r, p.Reason, leased)
}

// work goes on from a lease of this manager, the write of which began at leased.
func (s *session) work(ctx context.Context, r *cert.Record, reason cert.Reason, leased time.Time) error {
	began := time.Now()
	a := &attempt{s: s, group: r.Group, id: r.ID, generation: r.Lease.Generation, reason: reason, renewed: leased}
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	bounded, stop := context.WithTimeout(working, s.m.o.Attempt)
	defer stop()
	var beats sync.WaitGroup
	beats.Go(func() { a.beat(bounded, cancel) })
	issuer, err := a.run(bounded, r)
	if err != nil && bounded.Err() != nil {
		if cause := context.Cause(bounded); !errors.Is(err, errLost) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	}
	cancel(nil)
	beats.Wait()
	log := s.m.log.With("certificate", a.id, "name", r.Policy.Names[0], "generation", a.generation)
	switch {
	case err == nil:
		log.Info("certificate obtained", "issuer", issuer, "reason", reason, "took", time.Since(began).Round(time.Millisecond))
		return nil
	case errors.Is(err, errLost):
		log.Warn("work on a certificate given up", "error", err)
		return err
	case ctx.Err() != nil:
		return errors.Join(err, a.release(ctx))
	}
	log.Warn("certificate not obtained", "issuer", issuer, "error", err)
	return errors.Join(err, a.fail(ctx, issuer, err))
}

// write writes an event of the attempt, if the lease is still its own.
func (a *attempt) write(ctx context.Context, event cert.Event, change func(*cert.Record) error) (*cert.Record, error) {
	a.mu.Lock() // its own events do not come in each other's way
	defer a.mu.Unlock()
	return a.s.amend(ctx, a.group, a.id, event, func(r *cert.Record) error {
		l := r.Lease
		if r.Removed || l == nil || l.Holder != a.s.holder || l.Generation != a.generation {
			return errLost
		}
		return change(r)
	})
}

// every is how often the lease is renewed, and a quarter of how long it lasts.
func (a *attempt) every() time.Duration { return a.s.m.o.Lease / 4 }

// age is how long ago the lease was renewed.
func (a *attempt) age() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.renewed)
}

// beat renews the lease. It ends the attempt before another manager can take it for
// silent, by a clock that nobody sets.
func (a *attempt) beat(ctx context.Context, cancel context.CancelCauseFunc) {
	timer := time.NewTimer(a.every())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		left := 3*a.every() - a.age()
		bounded, stop := context.WithTimeout(ctx, left)
		err := a.renew(bounded)
		stop()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errLost) || err != nil && a.age() >= 3*a.every():
			cancel(fmt.Errorf("%w: %w", errLost, err))
			return
		}
		timer.Reset(a.every())
	}
}

// renew renews the lease.
func (a *attempt) renew(ctx context.Context) error {
	began := time.Now()
	_, err := a.write(ctx, cert.Leased, func(r *cert.Record) error {
		l := *r.Lease
		l.Until = a.s.now().Add(a.s.m.o.Lease).UTC()
		r.Lease = &l
		return nil
	})
	if err == nil {
		a.mu.Lock()
		a.renewed = began
		a.mu.Unlock()
	}
	return err
}

// release lets go of the lease, with the order, for the next to go on at once.
func (a *attempt) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_, err := a.write(ctx, cert.Leased, func(r *cert.Record) error {
		r.Lease = &cert.Lease{Generation: a.generation, Until: a.s.now().UTC(), Order: r.Lease.Order}
		return nil
	})
	return err
}

// run tries the issuers, and writes what one of them issued. It returns which it was,
// or the last one.
func (a *attempt) run(ctx context.Context, r *cert.Record) (string, error) {
	settings, err := a.s.configured()
	if err != nil {
		return "", err
	}
	names := settings.issuersFor(r.Policy)
	if len(names) == 0 {
		return "", errNoConfig
	}
	first := 0
	if r.Failure != nil {
		first = r.Failure.Attempts / triesPerIssuer % len(names)
	}
	order := r.Lease.Order
	if order != nil {
		for i, name := range names {
			if name == order.Issuer {
				first = i
			}
		}
	}
	var failures []error
	var name string
	for i := range names {
		name = names[(first+i)%len(names)]
		if order != nil && order.Issuer != name {
			order = nil
		}
		err := a.issue(ctx, r, settings, name, order)
		if err == nil {
			return name, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", name, err))
		if !elsewhereNow(err, a.s.now()) || ctx.Err() != nil {
			break
		}
		a.s.tell(a.id, fmt.Sprintf("%s does not issue it: %v", name, err))
	}
	return name, errors.Join(failures...)
}

// elsewhereNow reports whether another issuer is to be tried at once.
func elsewhereNow(err error, now time.Time) bool {
	var p *Problem
	return errors.As(err, &p) && (p.Permanent || p.After.After(now.Add(longAfter)))
}

// issue obtains the generation from one issuer. order is what was ordered there; nil if
// nothing was.
func (a *attempt) issue(ctx context.Context, r *cert.Record, settings *Settings, name string, order *cert.Order) error {
	o, err := a.s.issuer(ctx, name)
	if err != nil {
		return err
	}
	key, pkcs8, sealed, err := a.keyFor(r, settings, order)
	if err != nil {
		return err
	}
	request := Order{
		Names: r.Policy.Names, Key: key, Profile: cmp.Or(r.Policy.Profile, o.settings.Profile), Methods: settings.methodsFor(r.Policy),
		Progress: func(step string) { a.s.tell(a.id, step) },
		Present: func(ctx context.Context, c cert.Challenge) (func(context.Context), error) {
			return a.s.present(ctx, a.group, c)
		},
	}
	placed, lost := a.s.now().UTC(), 0
	if order != nil {
		request.State, request.Unanswered, placed, lost = order.State, order.State == "", order.Placed, order.Lost
	}
	if request.State == "" {
		if err := o.limiter.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for a place in the hour's orders: %w", err)
		}
	}
	if r.Current != nil {
		if chain, err := parseChain(r.Current.Chain); err == nil && r.Current.Issuer == name {
			request.Replaces = chain[0]
		}
	}
	request.Save = func(ctx context.Context, state string) error {
		_, err := a.write(ctx, cert.Ordered, func(r *cert.Record) error {
			l := *r.Lease
			l.Order = &cert.Order{Issuer: name, State: state, Key: sealed, Placed: placed, Lost: lost}
			r.Lease = &l
			return nil
		})
		return err
	}
	request.Placing = func(ctx context.Context, again bool) error {
		if placed = a.s.now().UTC(); again {
			lost++
			a.s.m.log.Warn("order placed once more: nobody knows of the one before", "certificate", a.id, "issuer", name, "lost", lost)
		}
		return request.Save(ctx, "")
	}
	if request.State == "" && a.age() > a.every() { // nothing is ordered on a lease that may have been taken
		if err := a.renew(ctx); err != nil {
			return err
		}
	}
	a.s.tell(a.id, "asking "+name)
	issued, err := o.issuer.Issue(ctx, request)
	if err != nil {
		return err
	}
	certs, err := verifyChain(issued.Chain, key.Public(), r.Policy.Names, a.s.now())
	if err != nil {
		return &Problem{Step: stepVerify, Permanent: true, Err: err}
	}
	bundle := newBundle(certs, r.Policy.Names)
	bundle.Issuer, bundle.Profile = name, request.Profile
	return a.publish(ctx, settings, bundle, pkcs8)
}

// keyFor is the private key of the generation: that of its order, or that of the
// generation before if the policy says so, or a new one; with its encoding, plain and
// sealed to the managers.
func (a *attempt) keyFor(r *cert.Record, settings *Settings, order *cert.Order) (key crypto.Signer, pkcs8 []byte, sealed cert.Sealed, err error) {
	what := "order " + a.id + " " + strconv.FormatUint(a.generation, 10)
	if order != nil {
		if pkcs8, err = a.s.key.Open(what, order.Key); err != nil {
			return nil, nil, sealed, err
		}
		key, err = parseKey(pkcs8)
		a.reused = r.Policy.ReuseKey // it may have been
		return key, pkcs8, order.Key, err
	}
	if r.Policy.ReuseKey && r.Current != nil && a.reason != cert.ReasonRevoked && a.reason != cert.ReasonRekey {
		if pkcs8, err = a.s.openBundle(r); err == nil {
			key, err = parseKey(pkcs8)
			a.reused = true
		}
	} else {
		key, err = newKey(cmp.Or(r.Policy.KeyType, settings.Defaults.KeyType, "p256"))
		if err == nil {
			pkcs8, err = x509.MarshalPKCS8PrivateKey(key)
		}
	}
	if err == nil {
		sealed, err = a.s.key.Seal(what, pkcs8)
	}
	return key, pkcs8, sealed, err
}

// publish seals the generation and writes it, for the first wave or for all.
func (a *attempt) publish(ctx context.Context, settings *Settings, b *cert.Bundle, pkcs8 []byte) error {
	if err := a.s.ensureKey(ctx, a.group); err != nil {
		return err
	}
	w := a.s.watcher(ctx, a.group)
	w.seen = a.s.reports(a.group, a.id)
	a.s.tell(a.id, "publishing it")
	_, err := a.write(ctx, cert.Obtained, func(r *cert.Record) error {
		b.Generation, b.Reason = a.generation, a.reason
		if err := a.s.sealBundle(r, b, pkcs8); err != nil {
			return err
		}
		if compromised := a.reused && (r.Renew == cert.ReasonRevoked || r.Renew == cert.ReasonRekey); !compromised {
			r.Renew = ""
		}
		stage(r, b, firstWave(r, cmp.Or(r.Policy.Waves, settings.Defaults.Waves, "waves"), w), a.s.now())
		r.Lease = nil
		if f := r.Failure; r.Next == nil || f != nil && f.Step != stepDeliver { // it is not delivered yet
			r.Failure = nil
		}
		return nil
	})
	return err
}

// stage gives a generation to the targets of a first wave, or to all if that is nil.
func stage(r *cert.Record, b *cert.Bundle, first *cert.Wave, now time.Time) {
	if r.Current != nil {
		b.Replaces = r.Current.Leaf
	}
	if first == nil {
		r.Current, r.Next, r.Wave, r.Refused = b, nil, nil, nil
		return
	}
	first.Since = now.UTC()
	r.Next, r.Wave = b, first
}

func published(r *cert.Record) string {
	if r.Wave != nil {
		return fmt.Sprintf("generation %d goes to %s first", r.Next.Generation, strings.Join(r.Wave.Targets, ", "))
	}
	return fmt.Sprintf("generation %d is for all targets of %s", r.Current.Generation, r.Group)
}

// fail writes that the attempt failed, and when the next may be.
func (a *attempt) fail(ctx context.Context, issuer string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), appendTime)
	defer cancel()
	f := cert.Failure{Step: stepOrder, Issuer: issuer, Detail: bounded(err.Error()), At: a.s.now().UTC()}
	p, after := problemOf(err)
	if p != nil {
		f.Step, f.Problem = cmp.Or(p.Step, stepOrder), p.Type
	} else if errors.Is(err, errNoConfig) {
		f.Step = stepLease
	}
	_, err = a.write(ctx, cert.Failed, func(r *cert.Record) error {
		f.Attempts = 1
		if r.Failure != nil {
			f.Attempts = r.Failure.Attempts + 1
		}
		f.Next = f.At.Add(backoff(r.ID, f.Step, f.Attempts))
		if after.After(f.Next) {
			f.Next = after.UTC()
		}
		order := r.Lease.Order
		if p != nil && (spent(p) || order != nil && order.State == "" && !p.Unanswered) {
			order = nil
		}
		r.Failure, r.Lease = &f, nil
		if order != nil { // nobody's, for the next attempt to go on with
			r.Lease = &cert.Lease{Generation: a.generation, Until: f.At, Order: order}
		}
		return nil
	})
	a.s.tell(a.id, "failed: "+f.Detail)
	return err
}

// problemOf is the last problem of a failed attempt, and the first moment at which one
// of the issuers allows another.
func problemOf(err error) (last *Problem, after time.Time) {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for i, err := range all {
		var p *Problem
		if !errors.As(err, &p) {
			last, after = nil, time.Time{}
			continue
		}
		last = p
		if i == 0 || p.After.Before(after) {
			after = p.After
		}
	}
	return last, after
}

// spent reports whether a problem is the end of an order. What could not be asked, and
// what the authority could not do just then, is not.
func spent(p *Problem) bool {
	switch p.Type {
	case "", acmeError + "rateLimited", acmeError + "serverInternal", acmeError + "badNonce", acmeError + "orderNotReady":
		return p.Permanent
	}
	return true
}

const acmeError = "urn:ietf:params:acme:error:"

// maxDetail bounds what others say in a record.
const maxDetail = 1000

func bounded(text string) string {
	if len(text) > maxDetail {
		return text[:maxDetail] + "…"
	}
	return text
}
