package certmanager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

const (
	// restFactor is how many times as long as a pass took it is not repeated.
	restFactor = 5
	// minRest is for how long it is not at least: events come in bursts.
	minRest = 20 * time.Millisecond
	// When an authority is asked again of a renewal, if it says nothing of it, does
	// not answer, or has no such question.
	renewalAgain, renewalRetry, renewalNever = 6 * time.Hour, time.Hour, 24 * time.Hour
	// deadManEvery is how often the dead man's switch is told.
	deadManEvery = time.Hour
)

// loop looks at everything, again and again, until ctx ends.
func (s *session) loop(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		next := s.pass(ctx)
		rest := max(minRest, restFactor*time.Since(began))
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-time.After(max(0, min(s.m.o.Every, next.Sub(s.now())))):
		}
	}
}

// exhaust makes passes until there is nothing left that can be done now.
func (s *session) exhaust(ctx context.Context) error {
	for {
		select { // what woke us before this pass is seen by it
		case <-s.wake:
		default:
		}
		s.pass(ctx)
		if s.idle() && !s.waiting() {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-time.After(min(s.m.o.Every, s.m.o.Lease/4)):
		}
	}
}

// waiting reports whether something is due that cannot be begun yet: somebody else
// works on it, or the hour's orders are spent.
func (s *session) waiting() bool {
	if _, err := s.configured(); err != nil {
		return false
	}
	due, _ := s.due()
	return len(due) > 0
}

// A candidate is a certificate whose next generation is due.
type candidate struct {
	record *cert.Record
	plan   plan
}

// due are the certificates that are due, the most urgent first, and when the next will
// be. Those that are as urgent come in another order at each manager, so that they do
// not all want the same one.
func (s *session) due() (due []candidate, next time.Time) {
	now := s.now()
	next = now.Add(s.m.o.Every)
	for _, r := range s.state.Records("") {
		p, ok := planFor(r, now)
		switch {
		case !ok:
		case p.At.After(now):
			if p.At.Before(next) {
				next = p.At
			}
		default:
			due = append(due, candidate{r, p})
		}
	}
	slices.SortFunc(due, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.plan.Urgency, b.plan.Urgency), cmp.Compare(share(s.holder, a.record.ID), share(s.holder, b.record.ID)))
	})
	return due, next
}

// pass begins all that can be done now, and returns when there will be more.
func (s *session) pass(ctx context.Context) time.Time {
	if s.clock.due() {
		s.begin(ctx, "clock", s.side, func(ctx context.Context) { s.clock.ask(ctx, s.ledgers) })
	}
	s.tidy(ctx)
	due, next := s.due()
	settings, err := s.configured()
	s.setTrouble("configuration", err)
	if err == nil {
		s.beginDue(ctx, settings, due)
		s.beginQuestions(ctx, settings)
	}
	s.mu.Lock()
	s.lastPass = time.Now()
	s.mu.Unlock()
	return next
}

// beginDue lets workers loose on what is due.
func (s *session) beginDue(ctx context.Context, settings *Settings, due []candidate) {
	s.mu.Lock()
	s.queue = due
	s.mu.Unlock()
	for i := range min(cap(s.pool), len(due)) {
		s.begin(ctx, fmt.Sprintf("worker %d", i), s.pool, func(ctx context.Context) {
			for {
				r := s.take(settings)
				if r == nil || ctx.Err() != nil {
					return
				}
				s.alone("obtain "+r.ID, func() {
					err := s.obtain(ctx, r.Group, r.ID)
					if err != nil && !errors.Is(err, errHeld) && !errors.Is(err, errLost) {
						s.setAgain("attempt "+r.ID, s.now().Add(s.m.o.Every)) // if not even the failure could be written
					}
				})
			}
		})
	}
}

// take returns the most urgent certificate that can be worked on now: nobody does, and
// its issuer has a place left in the hour's orders. Nil: there is none.
func (s *session) take(settings *Settings) *cert.Record {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return nil
		}
		r := s.queue[0].record
		s.queue = s.queue[1:]
		room := true
		if names := settings.issuersFor(r.Policy); len(names) > 0 && (r.Lease == nil || r.Lease.Order == nil) {
			o := s.issuers[names[0]]
			room = o == nil || o.limiter.Tokens() >= 1
		}
		s.mu.Unlock()
		if room && s.free(r) && s.dueAgain("attempt "+r.ID, time.Time{}) {
			return r
		}
	}
}

// tidy goes on with groups, roll-outs, revocations and what was left behind.
func (s *session) tidy(ctx context.Context) {
	for subject := range s.state.Problems() {
		if s.overwritten(subject) != nil {
			s.begin(ctx, "restore "+subject, s.side, func(ctx context.Context) { s.setTrouble("record "+subject, s.restore(ctx, subject)) })
		}
	}
	for _, group := range s.groups() {
		s.begin(ctx, "group "+group, s.side, func(ctx context.Context) { s.setTrouble("group "+group, s.reconcile(ctx, group)) })
	}
	rolling := map[string]bool{}
	for _, r := range s.all() {
		if r.Next != nil && !r.Removed {
			rolling[r.Group] = true
		}
		if len(r.Revoking) > 0 && (r.Removed || r.Current != nil && r.Next == nil && r.Current.Generation > r.Revoking[0].Generation) && s.dueAgain("revoke "+r.ID, time.Time{}) {
			s.begin(ctx, "revoke "+r.ID, s.side, func(ctx context.Context) { s.revoke(ctx, r) })
		}
	}
	for group := range rolling {
		s.begin(ctx, "roll out "+group, s.side, func(ctx context.Context) { s.rollOut(ctx, group) })
	}
	for _, c := range s.state.Challenges("") {
		if s.now().After(c.At.Add(challengeTime)) {
			s.begin(ctx, cert.ChallengeSubject(c.Group, c.ID), s.side, func(ctx context.Context) { s.setTrouble("challenge "+c.ID, s.withdraw(ctx, c)) })
		}
	}
}

// restore writes a record again that somebody wrote over with something that is not
// believed. The ledger keeps only the last events of a subject: without that, who starts
// anew would not find it some day.
func (s *session) restore(ctx context.Context, subject string) error {
	if cert.IsReport(subject) { // its target may have another key by now
		if err := s.ledgers.Settle(ctx); err != nil {
			return err
		}
	}
	err := s.put(ctx, subject, func() (any, error) {
		record := s.overwritten(subject)
		if record == nil || s.state.Problems()[subject] == nil {
			return nil, errUnchanged
		}
		return record, nil
	})
	switch {
	case errors.Is(err, errUnchanged):
		return nil
	case err == nil:
		s.m.log.Warn("record restored that somebody wrote over", "subject", subject)
	}
	return err
}

// overwritten is the last record of a subject that is believed, to be written again; nil
// if there is none that could be missed.
func (s *session) overwritten(subject string) any {
	words := strings.Split(subject, ".")
	switch {
	case subject == cert.ConfigSubject:
		if before, ok := s.state.Config(); ok {
			c := *before
			c.Revision++
			return &c
		}
	case len(words) == 3 && words[2] == "key":
		if before, ok := s.state.GroupKey(words[1]); ok {
			g := *before
			g.Revision++
			return &g
		}
	case len(words) == 4 && (cert.IsReport(subject) || words[0] == "seen"):
		if report := s.state.Stored(subject); report != nil {
			return signed(report)
		}
	case len(words) == 4 && words[2] == "target":
		if before, ok := s.state.Target(words[1], words[3]); ok {
			t := *before
			t.Revision++
			return &t
		}
	case len(words) == 4 && words[2] == "cert":
		if before, ok := s.state.Record(words[1], words[3]); ok {
			r := *before
			r.Revision++
			return &r
		}
	}
	return nil
}

// beginQuestions asks authorities of renewals and revocations, and tells the dead man's
// switch.
func (s *session) beginQuestions(ctx context.Context, settings *Settings) {
	for _, r := range s.state.Records("") {
		if b := r.Current; b != nil && !r.Policy.Imported && r.Renew == "" {
			first := time.Time{}
			if b.Renewal != nil {
				first = b.Renewal.Again
			}
			if s.dueAgain("renewal "+b.Leaf, first) {
				s.begin(ctx, "renewal "+r.ID, s.open, func(ctx context.Context) { s.askRenewal(ctx, r) })
			}
		}
	}
	if s.dueAgain("lists", time.Time{}) || s.unlisted() {
		s.begin(ctx, "lists", s.open, func(ctx context.Context) {
			s.watchLists(ctx)
			s.setAgain("lists", s.now().Add(min(s.m.o.Lists, time.Hour)))
			s.forget()
		})
	}
	s.mu.Lock()
	failing := slices.ContainsFunc(slices.Collect(maps.Keys(s.trouble)), func(what string) bool { return what != "dead man" && !strings.HasPrefix(what, "list ") })
	s.mu.Unlock()
	if settings.DeadMan.URL != "" && !failing && s.dueAgain("dead man", time.Time{}) {
		s.begin(ctx, "dead man", s.open, func(ctx context.Context) {
			every := deadManEvery
			if d, err := time.ParseDuration(settings.DeadMan.Every); err == nil {
				every = d
			}
			began := s.now()
			err := s.checkDeadMan(ctx, settings.DeadMan)
			if s.setTrouble("dead man", err); err != nil {
				every = min(every, time.Minute)
			}
			s.setAgain("dead man", began.Add(every))
		})
	}
}

// unlisted reports whether there is a certificate that no list was read for yet.
func (s *session) unlisted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := false
	for _, r := range s.state.Records("") {
		if r.Current == nil {
			continue
		}
		what := "lists " + r.Current.Leaf
		if _, known := s.again[what]; !known {
			s.again[what] = s.now()
			fresh = true
		}
	}
	return fresh
}

// forget drops what was to be asked long ago, and was not: it is of certificates that
// are no more.
func (s *session) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.again, func(_ string, at time.Time) bool { return s.now().Sub(at) > 2*renewalNever })
}

// askRenewal asks the authority when it wants a certificate to be renewed, and writes
// what is new in that.
func (s *session) askRenewal(ctx context.Context, seen *cert.Record) {
	now := s.now()
	again := now.Add(renewalRetry)
	defer func() { s.setAgain("renewal "+seen.Current.Leaf, again) }()
	o, err := s.issuer(ctx, seen.Current.Issuer)
	if err != nil {
		return // a finding of its own, once it is due
	}
	chain, err := parseChain(seen.Current.Chain)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	answer, err := o.issuer.Renewal(ctx, chain[0])
	if errors.Is(err, ErrNoRenewal) {
		again = now.Add(renewalNever)
		return
	}
	if err != nil {
		s.m.log.Debug("authority not asked of a renewal", "certificate", seen.ID, "error", err)
		return
	}
	if answer.Again.IsZero() {
		answer.Again = now.Add(renewalAgain).UTC()
	}
	if again = answer.Again; again.Before(now.Add(time.Minute)) {
		again = now.Add(time.Minute)
	}
	s.mu.Lock()
	once := s.recording // its memory is the ledger
	s.mu.Unlock()
	if old := seen.Current.Renewal; old != nil && old.Start.Equal(answer.Start) && old.End.Equal(answer.End) {
		if !once {
			return
		}
		answer.Selected = old.Selected
	}
	if answer.Selected.IsZero() {
		answer.Selected = selected(seen.ID, answer)
	}
	_, err = s.amend(ctx, seen.Group, seen.ID, cert.Scheduled, func(r *cert.Record) error {
		if r.Removed || r.Current == nil || r.Current.Leaf != seen.Current.Leaf {
			return errUnchanged
		}
		if old := r.Current.Renewal; old != nil && (seen.Current.Renewal == nil || !old.Again.Equal(seen.Current.Renewal.Again)) {
			return errUnchanged // another manager asked
		}
		b := *r.Current
		b.Renewal = &answer
		r.Current = &b
		return nil
	})
	if err != nil {
		again = now.Add(time.Minute)
	}
}
