package certmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

// presenceTime is how long it is believed which targets are there.
const presenceTime = time.Second

// A presence is who answered, of those who were asked, and when.
type presence struct {
	at    time.Time
	asked []string
	names map[string]bool
}

// A waveSince is when this manager first saw a wave, by its monotonic clock.
type waveSince struct {
	wave string
	at   time.Time
}

// enrolled are the names of the targets of a group that have a key.
func (s *session) enrolled(group string) []string {
	var names []string
	for _, t := range s.state.Targets(group) {
		if len(t.Public) > 0 && t.Group == group {
			names = append(names, t.Name)
		}
	}
	return names
}

// ask asks the targets of a group who has the challenge of a token, or who is there if
// that is empty. It returns when all that are expected have answered, or after the time that
// they have for it.
func (s *session) ask(ctx context.Context, group, token string, expected []string) map[string]bool {
	answered := map[string]bool{}
	ctx, cancel := context.WithTimeout(ctx, s.m.o.Answer)
	defer cancel()
	inbox := s.nc.NewInbox()
	sub, err := s.nc.SubscribeSync(inbox)
	if err != nil {
		return answered
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	if err := s.nc.PublishRequest(cert.AskSubject(group), inbox, []byte(token)); err != nil {
		return answered
	}
	for missing := len(expected); missing > 0; {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil || len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
			break
		}
		if name := string(msg.Data); slices.Contains(expected, name) && !answered[name] {
			answered[name] = true
			missing--
		}
	}
	return answered
}

// presentTargets are the enrolled targets of a group that are there.
func (s *session) presentTargets(ctx context.Context, group string) map[string]bool {
	s.mu.Lock()
	p, ok := s.here[group]
	s.mu.Unlock()
	enrolled := s.enrolled(group)
	if ok && time.Since(p.at) < presenceTime && slices.Equal(p.asked, enrolled) {
		return p.names
	}
	names := s.ask(ctx, group, "", enrolled)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.here[group] = presence{time.Now(), enrolled, names}
	return names
}

// watcher is what is known of the targets of a group. What they serve of a certificate,
// its caller adds.
func (s *session) watcher(ctx context.Context, group string) watcher {
	return watcher{targets: s.enrolled(group), present: s.presentTargets(ctx, group)}
}

// watchers is watcher, which looks at each group once.
func (s *session) watchers(ctx context.Context) func(group string) watcher {
	known := map[string]watcher{}
	return func(group string) watcher {
		w, ok := known[group]
		if !ok {
			w = s.watcher(ctx, group)
			known[group] = w
		}
		return w
	}
}

// reports are what targets were seen serving of a certificate.
func (s *session) reports(group, id string) func(target string) *cert.Seen {
	return func(target string) *cert.Seen {
		seen, _ := s.state.Seen(group, target, id)
		return seen
	}
}

// rollOut goes on with what is rolled out to a group.
func (s *session) rollOut(ctx context.Context, group string) {
	w := s.watcher(ctx, group)
	for _, r := range s.state.Records(group) {
		if r.Next == nil || r.Wave == nil {
			continue
		}
		w.seen = s.reports(group, r.ID)
		v := judge(r, w, s.waited(r), s.m.o.Wave, s.now())
		if v.Wave == nil && !v.Done && v.Failed == "" {
			continue
		}
		if err := s.advance(ctx, r, v); err != nil {
			s.setTrouble("rollout "+r.ID, err)
			continue
		}
		s.setTrouble("rollout "+r.ID, nil)
	}
}

// waited is how long this manager has seen a wave going on.
func (s *session) waited(r *cert.Record) time.Duration {
	wave := fmt.Sprintf("%d %d %v", r.Next.Generation, r.Wave.Number, r.Wave.Targets)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waves[r.ID].wave != wave {
		s.waves[r.ID] = waveSince{wave, time.Now()}
	}
	return time.Since(s.waves[r.ID].at)
}

// advance writes what was decided on a roll-out, unless it is another one by now.
func (s *session) advance(ctx context.Context, seen *cert.Record, v verdict) error {
	event := cert.Advanced
	if v.Failed != "" {
		event = cert.RolledBack
	}
	r, err := s.amend(ctx, seen.Group, seen.ID, event, func(r *cert.Record) error {
		if r.Next == nil || r.Wave == nil || r.Next.Generation != seen.Next.Generation || !slices.Equal(r.Wave.Targets, seen.Wave.Targets) {
			return errLost
		}
		switch {
		case v.Failed != "":
			rollBack(r, v, s.now())
		case v.Done:
			r.Current, r.Next, r.Wave, r.Failure, r.Refused = r.Next, nil, nil, nil, nil
		default:
			r.Wave = v.Wave
			r.Wave.Since = s.now().UTC()
		}
		return nil
	})
	if errors.Is(err, errLost) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.waves, r.ID)
	s.mu.Unlock()
	if v.Failed != "" {
		s.m.log.Error("certificate taken back", "certificate", r.ID, "name", r.Policy.Names[0], "generation", r.Withdrawn, "error", v.Failed)
		s.tell(r.ID, "failed: it was taken back: "+v.Failed)
		return nil
	}
	return nil
}

// rollBack takes the next generation back.
func rollBack(r *cert.Record, v verdict, now time.Time) {
	f := cert.Failure{Step: stepDeliver, Issuer: r.Next.Issuer, Detail: bounded(v.Failed), Attempts: 1, At: now.UTC()}
	if r.Failure != nil {
		f.Attempts = r.Failure.Attempts + 1
	}
	f.Next = f.At.Add(backoff(r.ID, stepDeliver, f.Attempts))
	r.Failure, r.Withdrawn, r.Next, r.Wave = &f, r.Next.Generation, nil, nil
	refused := slices.Concat(r.Refused, v.By)
	slices.Sort(refused)
	r.Refused = slices.Compact(refused)
}

// groupSecret opens a generation of a group's key.
func (s *session) groupSecret(g *cert.GroupKey, generation uint64) (*cert.Key, error) {
	sealed, ok := g.Keys[generation]
	if !ok {
		return nil, fmt.Errorf("opening key %d of group %q: it is not kept any more", generation, g.Group)
	}
	return s.key.OpenKey(g.Group, generation, sealed)
}

// openBundle opens the private key of what r has now, in PKCS #8.
func (s *session) openBundle(r *cert.Record) ([]byte, error) {
	g, ok := s.state.GroupKey(r.Group)
	if !ok {
		return nil, fmt.Errorf("opening certificate %q: group %q has no key", r.ID, r.Group)
	}
	key, err := s.groupSecret(g, r.Current.KeyGeneration())
	if err != nil {
		return nil, err
	}
	return key.Open(r.ID, r.Current)
}

// sealBundle seals the private key of b to the group of r.
func (s *session) sealBundle(r *cert.Record, b *cert.Bundle, pkcs8 []byte) error {
	g, ok := s.state.GroupKey(r.Group)
	if !ok {
		return fmt.Errorf("sealing certificate %q: group %q has no key", r.ID, r.Group)
	}
	key, err := s.groupSecret(g, g.Generation)
	if err != nil {
		return err
	}
	return key.Seal(r.ID, b, pkcs8)
}

// ensureKey makes the first key of a group.
func (s *session) ensureKey(ctx context.Context, group string) error {
	if _, ok := s.state.GroupKey(group); ok {
		return nil
	}
	return s.rotate(ctx, group, 0)
}

// rotate makes the key after that of a generation, unless there is one already. It
// drops those that no certificate needs.
func (s *session) rotate(ctx context.Context, group string, after uint64) error {
	err := s.put(ctx, cert.KeySubject(group), func() (any, error) {
		g := cert.GroupKey{Version: recordVersion, Group: group}
		if before, ok := s.state.GroupKey(group); ok {
			g = *before
		}
		if g.Generation != after {
			return nil, errUnchanged
		}
		keys := map[uint64]cert.Sealed{}
		needed := s.needed(group)
		for generation, sealed := range g.Keys {
			if needed[generation] || generation == g.Generation { // somebody may be sealing with it
				keys[generation] = sealed
			}
		}
		g.Generation++
		g.Revision++
		sealed, err := s.key.SealKey(cert.NewKey(group, g.Generation))
		if err != nil {
			return nil, err
		}
		keys[g.Generation] = sealed
		g.Keys = keys
		return &g, nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// needed are the generations of a group's key that certificates are sealed with.
func (s *session) needed(group string) map[uint64]bool {
	needed := map[uint64]bool{}
	for _, r := range s.state.Records(group) {
		for _, b := range []*cert.Bundle{r.Current, r.Next} {
			if b != nil {
				needed[b.KeyGeneration()] = true
			}
		}
	}
	return needed
}

// groups are all that the ledger knows of.
func (s *session) groups() []string {
	groups := map[string]bool{}
	for _, g := range s.state.GroupKeys() {
		groups[g.Group] = true
	}
	for _, t := range s.state.Targets("") {
		groups[t.Group] = true
	}
	return slices.Sorted(maps.Keys(groups))
}

// reconcile makes of a group what its targets call for: each has the group's keys; one
// that was removed does not have the present one; and what it could open is obtained
// anew. Whoever was stopped in the middle leaves the rest to the next who calls it.
func (s *session) reconcile(ctx context.Context, group string) error {
	g, ok := s.state.GroupKey(group)
	if !ok {
		if len(s.enrolled(group)) == 0 {
			return nil
		}
		if err := s.ensureKey(ctx, group); err != nil {
			return err
		}
		g, _ = s.state.GroupKey(group)
	}
	for _, t := range s.everTargets(group) {
		if _, knows := t.Keys[g.Generation]; !t.Removed || !knows {
			continue
		}
		if err := s.rotate(ctx, group, g.Generation); err != nil {
			return err
		}
		g, _ = s.state.GroupKey(group)
	}
	var errs []error
	for _, t := range s.state.Targets(group) {
		if t.Group == group && len(t.Public) > 0 && !maps.EqualFunc(t.Keys, g.Keys, func(cert.Sealed, cert.Sealed) bool { return true }) {
			errs = append(errs, s.wrap(ctx, group, t.Name, nil))
		}
	}
	for _, r := range s.state.Records(group) {
		if r.Current != nil && r.Current.KeyGeneration() < g.Generation && r.Renew == "" && r.Next == nil && !r.Policy.Imported {
			errs = append(errs, s.rekey(ctx, r, g.Generation))
		}
	}
	return errors.Join(errs...)
}

// rekey asks for a certificate with another private key, because a target that was
// removed knows the present one.
func (s *session) rekey(ctx context.Context, r *cert.Record, generation uint64) error {
	_, err := s.amend(ctx, r.Group, r.ID, cert.Requested, func(r *cert.Record) error {
		if r.Removed || r.Renew != "" || r.Current == nil || r.Current.KeyGeneration() >= generation {
			return errUnchanged
		}
		r.Renew, r.Failure = cert.ReasonRekey, nil
		return nil
	})
	return err
}

// wrap gives a target the keys of its group, and takes its own, if it comes to enroll;
// nil leaves what they are.
func (s *session) wrap(ctx context.Context, group, name string, own *targetKeys) error {
	err := s.put(ctx, cert.TargetSubject(group, name), func() (any, error) {
		before, ok := s.state.Target(group, name)
		g, keyed := s.state.GroupKey(group)
		if !ok || before.Removed || !keyed {
			return nil, errUnchanged
		}
		t := *before
		if own != nil && t.Signer == "" && (len(t.Public) == 0 || bytes.Equal(own.Public, t.Public)) {
			t.Public, t.Signer, t.Joined = own.Public, own.Signer, s.now().UTC()
		}
		if own != nil && (!bytes.Equal(own.Public, t.Public) || own.Signer != t.Signer) {
			return nil, fmt.Errorf("enrolling target %q of group %q: %w", name, group, errOtherKey)
		}
		if len(t.Public) == 0 {
			return nil, errUnchanged
		}
		t.Keys = map[uint64]cert.Sealed{}
		for generation := range g.Keys {
			if sealed, ok := before.Keys[generation]; ok {
				t.Keys[generation] = sealed
				continue
			}
			key, err := s.groupSecret(g, generation)
			if err != nil {
				return nil, err
			}
			if t.Keys[generation], err = key.SealTo(name, t.Public); err != nil {
				return nil, err
			}
		}
		t.Version = recordVersion
		t.Revision++
		return &t, nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

var errOtherKey = errors.New("it has enrolled with another key")

const (
	// challengeTime is how long an authority may look for a challenge, and targets answer
	// for it a day longer: their clocks may be wrong.
	challengeTime = time.Hour
	challengeLife = 24*time.Hour + challengeTime
)

// present makes a challenge known to the targets of a group, and returns when every
// one of them that is there would answer it.
func (s *session) present(ctx context.Context, group string, c cert.Challenge) (func(context.Context), error) {
	if c.Token == "" {
		return nil, fmt.Errorf("presenting the challenge for %q: it has no token", c.Name)
	}
	c.Version, c.Group, c.At = recordVersion, group, s.now().UTC()
	if least := c.At.Add(challengeLife); c.Until.Before(least) {
		c.Until = least
	}
	there := slices.Sorted(maps.Keys(s.ask(ctx, group, "", s.enrolled(group))))
	if len(there) == 0 {
		return nil, fmt.Errorf("presenting the challenge for %q: no target of group %q is there to answer the authority", c.Name, group)
	}
	if err := s.post(ctx, &c); err != nil {
		return nil, err
	}
	cleanup := func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), appendTime)
		defer cancel()
		s.setTrouble("challenge "+c.ID, s.withdraw(ctx, &c))
	}
	missing := there
	for deadline := time.Now().Add(20 * s.m.o.Answer); ; {
		began := time.Now()
		answered := s.ask(ctx, group, c.Token, missing)
		missing = slices.DeleteFunc(slices.Clone(missing), func(name string) bool { return answered[name] })
		if len(missing) == 0 {
			return cleanup, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			cleanup(ctx)
			return nil, errors.Join(fmt.Errorf("presenting the challenge for %q: %s did not take it over", c.Name, strings.Join(missing, ", ")), ctx.Err())
		}
		select { // targets that answer nobody at once are not asked at once
		case <-ctx.Done():
		case <-time.After(time.Until(began.Add(s.m.o.Answer / 4))):
		}
	}
}

// post writes a challenge under the first subject of its group that is free. So there are
// no more subjects than there were challenges at once, and what the ledger keeps of them
// is bounded.
func (s *session) post(ctx context.Context, c *cert.Challenge) error {
	for n := 1; ; n++ {
		c.ID = strconv.Itoa(n)
		subject := cert.ChallengeSubject(c.Group, c.ID)
		err := errHeld
		s.alone("post "+subject, func() { // or our own would come in each other's way
			err = s.put(ctx, subject, func() (any, error) {
				before, ok := s.state.Challenge(c.Group, c.ID)
				if ok && !before.Until.IsZero() {
					return nil, errHeld
				}
				if c.Revision = 1; ok {
					c.Revision = before.Revision + 1
				}
				return c, nil
			})
		})
		if !errors.Is(err, errHeld) {
			return err
		}
	}
}

// withdraw takes a challenge back.
func (s *session) withdraw(ctx context.Context, c *cert.Challenge) error {
	err := s.put(ctx, cert.ChallengeSubject(c.Group, c.ID), func() (any, error) {
		now, ok := s.state.Challenge(c.Group, c.ID)
		if !ok || now.Token != c.Token {
			return nil, errUnchanged // another has its place
		}
		return cert.Challenge{Version: recordVersion, Revision: now.Revision + 1, Group: c.Group, ID: c.ID}, nil
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// enrollment is what a target gets for its key.
type enrollment struct {
	Groups  []string      `json:"groups"`
	Signers []cert.Signer `json:"signers"`
}

// targetKeys are the public keys of a target: the one to seal to, and the one by which
// its reports are known.
type targetKeys struct {
	Public []byte      `json:"public"`
	Signer cert.Signer `json:"signer"`
}

// enroll takes the keys of a target of that name, which nobody else may send.
func (s *session) enroll(ctx context.Context, name string, data []byte) (any, error) {
	request, err := decode[targetKeys](data)
	if err != nil {
		return nil, err
	}
	return s.enrollTarget(ctx, name, &request)
}
