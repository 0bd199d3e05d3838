package certmanager

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// queue is what managers share their requests by.
	queue = "certmanager"
	// maxRequest bounds a request, with a chain and a key in it.
	maxRequest = 512 << 10
	// alive is how often a caller who waits hears something. Managers may answer a
	// request a hundred times.
	alive = 20 * time.Second
	// requestTime bounds the answer to a request, which may wait for authorities.
	requestTime = time.Hour
	// maxPart bounds what one message brings of an answer: the engine takes 1 MiB.
	maxPart = 512 << 10
	// maxProgress is how many steps are told of, so that the last answer gets through.
	maxProgress = 50
	// DefaultGroup is that of certificates and targets that name none.
	DefaultGroup = "default"
)

// A reply is one message of an answer: progress, or the last one.
type reply struct {
	admin.CertProgress
	admin.Reply
	// Part is the next part of Data, if that does not fit into one message.
	Part []byte `json:"part,omitempty"`
}

func progressReply(step string) reply {
	return reply{CertProgress: admin.CertProgress{Progress: &step}}
}

// A verb is what managers can be asked to do. progress may be called until it returns.
type verb func(ctx context.Context, s *session, data []byte, progress func(string)) (any, error)

func verbs() map[string]verb {
	return map[string]verb{
		"mk":           handle((*session).mk),
		"import":       confidential("import", handle((*session).importBundle)),
		"renew":        handle((*session).renew),
		"renewable":    handle((*session).renewable),
		"rm":           handle((*session).rm),
		"ls":           handle((*session).ls),
		"cat":          handle((*session).cat),
		"target.add":   handle((*session).addTarget),
		"target.rm":    handle((*session).removeTarget),
		"target.ls":    handle((*session).targets),
		"conf.update":  confidential("conf.update", handle((*session).updateConfig)),
		"conf.display": confidential("conf.display", handle((*session).displayConfig)),
		"status":       handle((*session).status),
		"root":         handle((*session).root),
		"public":       handle((*session).publicKey),
	}
}

func handle[In, Out any](do func(*session, context.Context, In, func(string)) (Out, error)) verb {
	return func(ctx context.Context, s *session, data []byte, progress func(string)) (any, error) {
		in, err := decode[In](data)
		if err != nil {
			return nil, err
		}
		return do(s, ctx, in, progress)
	}
}

func decode[T any](data []byte) (T, error) {
	var in T
	if len(data) > maxRequest {
		return in, admin.Errorf(admin.Invalid, "", "the request has %d bytes, and %d are allowed", len(data), maxRequest)
	}
	if len(data) == 0 {
		return in, nil
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return in, admin.Errorf(admin.Invalid, "", "the request cannot be read")
	}
	return in, nil
}

// serve answers requests until stop is called.
func (s *session) serve(ctx context.Context) (stop func(), err error) {
	table := verbs()
	prefix := cert.APISubject("")
	api, err := s.nc.QueueSubscribe(cert.APISubject(">"), queue, func(m *nats.Msg) {
		name, ok := strings.CutPrefix(m.Subject, prefix)
		if !ok || !asked(m) {
			return
		}
		s.answer(ctx, m, func(ctx context.Context, progress func(string)) (any, error) {
			do, ok := table[name]
			if !ok {
				return nil, admin.Errorf(admin.Invalid, "update the managers", "managers of this version know no request %q", name)
			}
			return do(ctx, s, m.Data, progress)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("answering requests for certificates: %w", err)
	}
	enroll, err := s.nc.QueueSubscribe(cert.EnrollSubject("*"), queue, func(m *nats.Msg) {
		name, ok := strings.CutPrefix(m.Subject, cert.EnrollSubject(""))
		if !ok || !asked(m) {
			return
		}
		s.answer(ctx, m, func(ctx context.Context, _ func(string)) (any, error) { return s.enroll(ctx, name, m.Data) })
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("answering targets that enroll: %w", err), api.Unsubscribe())
	}
	_ = s.nc.FlushTimeout(alive) // who is not connected now subscribes later
	return func() {
		_ = api.Unsubscribe() // the connection may be gone
		_ = enroll.Unsubscribe()
	}, nil
}

// asked reports whether somebody who may asks for m. What a stream republishes and a
// consumer delivers, the engine publishes itself, and asks nobody's permissions: it has
// no reply, or one that acknowledges it.
func asked(m *nats.Msg) bool { return m.Reply != "" && !strings.HasPrefix(m.Reply, "$JS.") }

// answer does what a message asks for, in the background.
func (s *session) answer(ctx context.Context, m *nats.Msg, do func(context.Context, func(string)) (any, error)) {
	respond := func(r reply) {
		if err := s.key.Answer(m, r); err != nil && ctx.Err() == nil {
			s.m.log.Warn("request not answered", "subject", m.Subject, "error", err)
		}
	}
	began := s.begin(ctx, "request "+cert.NewID(), s.asked, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, requestTime)
		defer cancel()
		s.tasks.Go(func() {
			tick := time.NewTicker(alive)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					respond(progressReply(""))
				}
			}
		})
		told := 0
		out, err := do(ctx, func(step string) {
			if told++; told <= maxProgress {
				respond(progressReply(step))
			}
		})
		var r reply
		if err == nil {
			r.Data, err = json.Marshal(out)
		}
		if err != nil {
			r.Error = refusal(err)
		}
		if len(r.Data) > maxPart {
			for part := range slices.Chunk(r.Data, maxPart) {
				more := progressReply("")
				more.Part = part
				respond(more)
			}
			r.Data = nil
		}
		respond(r)
	})
	if !began {
		respond(reply{Reply: admin.Reply{Error: admin.Errorf(admin.Unavailable, "try again in a minute", "the manager of certificates is stopping, or answers %d requests already", maxRequests)}})
	}
}

// refusal is err as callers get it.
func refusal(err error) *admin.Error {
	var e *admin.Error
	var p Problems
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &p):
		return admin.Errorf(admin.Invalid, "correct it and try again", "%v", p)
	case errors.Is(err, errNoConfig):
		return admin.Errorf(admin.Invalid, "fleetbus conf update < config.json", "managers of certificates have no configuration yet")
	case errors.Is(err, ledger.ErrConflict):
		return admin.Errorf(admin.Conflict, "try again", "%v", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, ledger.ErrUnknown):
		return admin.Errorf(admin.Unavailable, "look with fleetbus cert ls, and try again", "%v", err)
	}
	return admin.Errorf(admin.Failed, "", "%v", err)
}

// hearsay is how long a manager waits for a certificate that it does not know, or for
// its first configuration: who asks may have it from another manager, of a moment ago.
const hearsay = time.Second

// configuredSoon is configured, which it waits for.
func (s *session) configuredSoon(ctx context.Context) (settings *Settings, err error) {
	ctx, cancel := context.WithTimeout(ctx, hearsay)
	defer cancel()
	if s.until(ctx, func() bool {
		settings, err = s.configured()
		return !errors.Is(err, errNoConfig)
	}) != nil {
		return nil, errNoConfig
	}
	return settings, err
}

// find returns the certificate of an id, in whatever group.
func (s *session) find(ctx context.Context, id string) (found *cert.Record, err error) {
	ctx, cancel := context.WithTimeout(ctx, hearsay)
	defer cancel()
	err = s.until(ctx, func() bool {
		all := s.state.Records("")
		i := slices.IndexFunc(all, func(r *cert.Record) bool { return r.ID == id })
		if i >= 0 {
			found = all[i]
		}
		return i >= 0
	})
	if err != nil {
		return nil, admin.Errorf(admin.NotFound, "fleetbus cert ls", "there is no certificate %q", id)
	}
	return found, nil
}

// MakeRequest asks for a certificate.
type MakeRequest struct {
	// Group of targets. Default: DefaultGroup.
	Group  string      `json:"group,omitempty"`
	Policy cert.Policy `json:"policy"`
	// Wait until it is obtained, or has failed once.
	Wait bool `json:"wait,omitempty"`
	// Again makes another one for the same names.
	Again bool `json:"again,omitempty"`
}

// mk makes a certificate. Its first event is the lease of this manager, so that whoever
// waits hears of its steps.
func (s *session) mk(ctx context.Context, in MakeRequest, progress func(string)) (*cert.Record, error) {
	group := cmp.Or(in.Group, DefaultGroup)
	settings, err := s.configuredSoon(ctx)
	if err != nil {
		return nil, err
	}
	p := in.Policy
	p.Imported = false
	if p.Names, err = normalNames(p.Names); err != nil {
		return nil, err
	}
	p.Challenges = map[string]cert.Method{}
	for name, m := range in.Policy.Challenges { // a name that is none is a problem of the policy
		if normal, err := normalName(name); err == nil {
			name = normal
		}
		p.Challenges[name] = m
	}
	if wrong := policyProblems(group, p, settings); len(wrong) > 0 {
		return nil, wrong
	}
	r := &cert.Record{
		Version: recordVersion, ID: s.idFor(group, p.Names), Group: group, Event: cert.Requested, Revision: 1,
		At: s.now().UTC(), By: s.m.o.Name, Policy: p,
	}
	if in.Again {
		r.ID = cert.NewID()
	}
	r.Lease = s.newLease(r)
	leased := time.Now()
	if err := s.create(ctx, r, in.Again); err != nil {
		return nil, err
	}
	progress("certificate " + r.ID)
	return s.pursue(ctx, r, 1, in.Wait, progress, func(ctx context.Context) { _ = s.work(ctx, r, cert.ReasonNew, leased) })
}

// pursue runs work for a certificate in the background of the manager, and waits for
// its generation, if that is wanted.
func (s *session) pursue(ctx context.Context, r *cert.Record, generation uint64, wait bool, progress func(string), work func(context.Context)) (*cert.Record, error) {
	steps, stop := s.listen(r.ID)
	defer stop()
	s.begin(s.ctx, "obtain "+r.ID, s.asked, work) // or the loop was faster
	if !wait {
		return r, nil
	}
	return s.await(ctx, r, generation, steps, progress)
}

// await waits until a generation of a certificate is there, or an attempt has failed.
func (s *session) await(ctx context.Context, r *cert.Record, generation uint64, steps <-chan string, progress func(string)) (*cert.Record, error) {
	begun := r.Revision
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		now, ok := s.state.Record(r.Group, r.ID)
		switch {
		case !ok:
		case now.Removed:
			return nil, admin.Errorf(admin.Conflict, "", "certificate %s was removed meanwhile", r.ID)
		case now.Revision > begun && now.Failure != nil && now.Next == nil && idle(now.Lease):
			return nil, admin.Errorf(admin.Failed, "it is tried again at "+now.Failure.Next.Format(time.RFC3339)+"; fleetbus cert renew "+r.ID+" tries at once",
				"certificate %s was not obtained: %s", r.ID, now.Failure.Detail)
		case nextGeneration(now) > generation && (now.Current != nil || now.Next != nil):
			for {
				select {
				case step := <-steps:
					progress(step)
					continue
				default:
				}
				progress(published(now))
				return now, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case step := <-steps:
			progress(step)
		case <-changed:
		}
	}
}

// idle reports whether nobody works on a certificate.
func idle(l *cert.Lease) bool { return l == nil || l.Holder == "" }

// policyProblems are what is wrong with a policy.
func policyProblems(group string, p cert.Policy, settings *Settings) Problems {
	var wrong Problems
	if !cert.IsToken(group) {
		wrong.add("group: %q is no name: letters, digits, dashes and underscores make one", group)
	}
	for _, name := range p.Issuers {
		if _, ok := settings.issuer(name); !ok {
			wrong.add("issuer: there is no issuer %q in the configuration", name)
		}
	}
	wrong.checkKeyType("key_type", p.KeyType)
	wrong.checkWaves("waves", p.Waves)
	wrong.checkMethod("challenge", p.Challenge)
	for _, name := range slices.Sorted(maps.Keys(p.Challenges)) {
		if !slices.Contains(p.Names, name) {
			wrong.add("challenges: %q is none of the names", name)
		}
		wrong.checkMethod("challenges["+name+"]", p.Challenges[name])
	}
	for name, m := range settings.methodsFor(p) {
		known := slices.ContainsFunc(settings.DNS, func(d DNSSettings) bool { return d.Name == m.Provider })
		if m.Provider != "" && !known {
			wrong.add("challenge of %s: there is no DNS provider %q in the configuration", name, m.Provider)
		}
		if strings.HasPrefix(name, "*.") && !strings.HasPrefix(m.Type, "dns-") {
			wrong.add("challenge of %s: a wildcard is proved by dns-01 or dns-persist-01, not by %s", name, m.Type)
		}
	}
	slices.Sort(wrong)
	return wrong
}

// create writes the first event of a certificate. again lets there be another for the same
// names.
func (s *session) create(ctx context.Context, r *cert.Record, again bool) error {
	return s.put(ctx, cert.CertSubject(r.Group, r.ID), func() (any, error) {
		if other := s.sameNames(r.Group, r.Policy.Names); other != nil && !again {
			fix := "fleetbus cert renew " + other.ID
			switch {
			case r.Policy.Imported && other.Policy.Imported:
				fix = "fleetbus cert import --id " + other.ID
			case r.Policy.Imported:
				fix = "fleetbus cert rm " + other.ID
			}
			return nil, admin.Errorf(admin.Conflict, fix, "certificate %s is for the same names of group %s", other.ID, r.Group)
		}
		if _, taken := s.state.Record(r.Group, r.ID); taken {
			return nil, admin.Errorf(admin.Conflict, "try again", "a certificate for the same names of group %s was made and removed just now", r.Group)
		}
		return r, nil
	})
}

// idFor is the id of a certificate for these names: always the same, so that of two who
// ask for one at the same moment, at two managers, one is told that there is one. After
// one that was removed, or that has other names by now, comes another.
func (s *session) idFor(group string, names []string) string {
	sorted := slices.Sorted(slices.Values(names))
	for n := 0; ; n++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", group, strings.Join(sorted, "\n"), n))
		id := base64.RawURLEncoding.EncodeToString(sum[:8])
		if _, taken := s.state.Record(group, id); !taken && id[0] != '-' {
			return id
		}
	}
}

// sameNames is a certificate of a group with the same names.
func (s *session) sameNames(group string, names []string) *cert.Record {
	sorted := slices.Sorted(slices.Values(names))
	for _, r := range s.state.Records(group) {
		if r.Group == group && slices.Equal(slices.Sorted(slices.Values(r.Policy.Names)), sorted) {
			return r
		}
	}
	return nil
}

// RenewRequest asks for the next generation of a certificate before its time.
type RenewRequest struct {
	ID string `json:"id"`
	// Compromised says that somebody else knows the private key: there is another
	// one, and what has it is revoked once all targets have left it.
	Compromised bool `json:"compromised,omitempty"`
	// Wait until it is obtained, or has failed once.
	Wait bool `json:"wait,omitempty"`
}

func (s *session) renew(ctx context.Context, in RenewRequest, progress func(string)) (*cert.Record, error) {
	seen, err := s.find(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if seen.Policy.Imported {
		return nil, admin.Errorf(admin.Invalid, "fleetbus cert import --id "+in.ID, "certificate %s was imported: who issued it renews it", in.ID)
	}
	if seen.Next != nil && !in.Compromised {
		return nil, admin.Errorf(admin.Conflict, "fleetbus cert status "+in.ID, "generation %d of certificate %s is being rolled out", seen.Next.Generation, in.ID)
	}
	r, err := s.amend(ctx, seen.Group, seen.ID, cert.Requested, func(r *cert.Record) error {
		if r.Removed {
			return admin.Errorf(admin.NotFound, "fleetbus cert ls", "certificate %s was removed", in.ID)
		}
		r.Renew, r.Failure = cert.ReasonForced, nil
		if !in.Compromised {
			return nil
		}
		r.Renew = cert.ReasonRevoked
		for _, b := range []*cert.Bundle{r.Current, r.Next} {
			if b != nil {
				addRevocation(r, revocation(b, "keyCompromise", s.now()))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.pursue(ctx, r, nextGeneration(r), in.Wait, progress, func(ctx context.Context) { _ = s.obtain(ctx, r.Group, r.ID) })
}

// RenewableRequest asks what is to be renewed until some time.
type RenewableRequest struct {
	// At is that time. Default: now.
	At time.Time `json:"at,omitzero"`
	// Renew is "first", for the most urgent one that is due now to be renewed, or
	// "all". Empty: none is.
	Renew string `json:"renew,omitempty"`
}

// Renewable is a certificate that is to be renewed.
type Renewable struct {
	ID     string      `json:"id"`
	Group  string      `json:"group"`
	Names  []string    `json:"names"`
	At     time.Time   `json:"at,omitzero"`
	Reason cert.Reason `json:"reason"`
	// Error is why it was not renewed, if that was asked for. Renewed says that it was.
	Renewed bool   `json:"renewed,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (s *session) renewable(ctx context.Context, in RenewableRequest, progress func(string)) ([]Renewable, error) {
	at := in.At
	if at.IsZero() {
		at = s.now()
	}
	if !slices.Contains([]string{"", "first", "all"}, in.Renew) {
		return nil, admin.Errorf(admin.Invalid, "", "%q is neither first nor all", in.Renew)
	}
	if in.Renew != "" {
		return s.renewDue(ctx, in.Renew == "first", progress)
	}
	all := []Renewable{}
	for _, r := range s.state.Records("") {
		if p, ok := planFor(r, s.now()); ok && !p.At.After(at) {
			all = append(all, Renewable{ID: r.ID, Group: r.Group, Names: r.Policy.Names, At: p.At, Reason: p.Reason})
		}
	}
	slices.SortFunc(all, func(a, b Renewable) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// renewDue renews the first that is due, or all of them, and waits for it.
func (s *session) renewDue(ctx context.Context, first bool, progress func(string)) ([]Renewable, error) {
	if _, err := s.configuredSoon(ctx); err != nil {
		return nil, err
	}
	all := []Renewable{}
	due, _ := s.due()
	if first && len(due) > 1 {
		due = due[:1]
	}
	for _, c := range due {
		r := c.record
		name := r.Policy.Names[0]
		progress("renewing " + name)
		_, err := s.pursue(ctx, r, nextGeneration(r), true, func(step string) { progress(name + ": " + step) },
			func(ctx context.Context) { _ = s.obtain(ctx, r.Group, r.ID) })
		done := Renewable{ID: r.ID, Group: r.Group, Names: r.Policy.Names, At: c.plan.At, Reason: c.plan.Reason, Renewed: err == nil}
		if err != nil {
			done.Error = err.Error()
		}
		all = append(all, done)
	}
	return all, nil
}

// RemoveRequest asks for the end of a certificate.
type RemoveRequest struct {
	ID string `json:"id"`
	// Revoke it at its authority, too.
	Revoke bool `json:"revoke,omitempty"`
}

func (s *session) rm(ctx context.Context, in RemoveRequest, _ func(string)) (*cert.Record, error) {
	seen, err := s.find(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if in.Revoke && seen.Policy.Imported {
		return nil, admin.Errorf(admin.Invalid, "revoke it where it was issued", "certificate %s was imported, and cannot be revoked here", in.ID)
	}
	return s.amend(ctx, seen.Group, seen.ID, cert.Removed, func(r *cert.Record) error {
		if r.Removed {
			return errUnchanged
		}
		for _, b := range []*cert.Bundle{r.Current, r.Next} {
			if in.Revoke && b != nil {
				addRevocation(r, revocation(b, "cessationOfOperation", s.now()))
			}
		}
		r.Removed, r.Current, r.Next, r.Wave, r.Lease, r.Failure, r.Renew = true, nil, nil, nil, nil, nil, ""
		return nil
	})
}

// ListRequest asks for certificates.
type ListRequest struct {
	// Group. Empty: all.
	Group string `json:"group,omitempty"`
}

func (s *session) ls(_ context.Context, in ListRequest, _ func(string)) ([]*cert.Record, error) {
	all := []*cert.Record{}
	for _, r := range s.state.Records(in.Group) {
		brief := *r // without what is large, and secret however well sealed
		for _, b := range []**cert.Bundle{&brief.Current, &brief.Next} {
			if *b != nil {
				short := **b
				short.Chain, short.Key = "", cert.Sealed{}
				*b = &short
			}
		}
		brief.Revoking = nil
		all = append(all, &brief)
	}
	return all, nil
}

func (s *session) cat(ctx context.Context, in RemoveRequest, _ func(string)) (*cert.Record, error) {
	return s.find(ctx, in.ID)
}
