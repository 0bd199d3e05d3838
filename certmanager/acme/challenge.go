package acme

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
)

const (
	// atOnce bounds how many names are worked on at the same time.
	atOnce = 8
	// maxAuthorizations bounds an order, which has one for each name.
	maxAuthorizations = 1000
	// cleanupTime bounds what is undone after an order, whatever became of it.
	cleanupTime = time.Minute
	// settleTime is how long the authority may go on looking at what is answered for
	// after the caller's time is over.
	settleTime = 2 * time.Second
)

// checkMethod says whether a name can be proved as is planned.
func (j *job) checkMethod(name string) error {
	m := j.o.Methods[name]
	wildcard := strings.HasPrefix(name, "*.")
	switch m.Type {
	case acme.ChallengeTypeDNS01:
		if isIP(name) {
			return errors.New("an address is proved by http-01 or tls-alpn-01, not by dns-01")
		}
		if _, ok := j.c.Providers[m.Provider]; !ok {
			return fmt.Errorf("there is no DNS provider %q; there are: %s", m.Provider, cmp.Or(strings.Join(slices.Sorted(maps.Keys(j.c.Providers)), ", "), "none"))
		}
	case acme.ChallengeTypeDNSPersist01:
		if isIP(name) {
			return errors.New("an address is proved by http-01 or tls-alpn-01, not by dns-persist-01")
		}
	case acme.ChallengeTypeHTTP01, acme.ChallengeTypeTLSALPN01:
		if wildcard {
			return fmt.Errorf("a wildcard is proved by dns-01 or dns-persist-01, not by %s", m.Type)
		}
		if j.o.Present == nil {
			return fmt.Errorf("nobody is there to answer for %s", m.Type)
		}
	default:
		return fmt.Errorf("%q is no way to prove a name; these are: dns-01, dns-persist-01, http-01, tls-alpn-01", m.Type)
	}
	return nil
}

// A proof is a name that is to be proved.
type proof struct {
	name   string
	method cert.Method
	authz  acme.Authorization
	chal   acme.Challenge

	// zone that record is in, and its text, for dns-01.
	zone, record string
	undo         func(context.Context)
}

// parallel runs do for each of all, several at once, and returns what failed.
func parallel(ctx context.Context, all []*proof, do func(context.Context, *proof) error) []failedName {
	var mu sync.Mutex
	var failed []failedName
	var running sync.WaitGroup
	places := make(lock, atOnce)
	for _, p := range all {
		if err := places.take(ctx); err != nil {
			mu.Lock()
			failed = append(failed, failedName{p.name, err})
			mu.Unlock()
			continue
		}
		running.Go(func() {
			defer places.give()
			if err := do(ctx, p); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, failedName{p.name, err})
			}
		})
	}
	running.Wait()
	return failed
}

// authorize proves every name that is not proved yet. All challenges are answered for
// before the authority is told of any: it may look at each from several places.
func (j *job) authorize(ctx context.Context) error {
	proofs, err := j.proofs(ctx)
	if err != nil {
		return err
	}
	if len(proofs) == 0 {
		return j.pause(ctx, j.trace) // the order does not know yet that all are proved
	}
	defer j.cleanUp(ctx, proofs)
	j.tell("answering for %s", listed(proofs))
	if failed := parallel(ctx, proofs, j.present); len(failed) > 0 {
		return j.failed("challenge", failed)
	}
	if slices.ContainsFunc(proofs, func(p *proof) bool { return p.record != "" }) {
		j.tell("waiting until DNS has it")
		if failed := parallel(ctx, proofs, j.propagated); len(failed) > 0 {
			return j.failed("challenge", failed)
		}
	}
	j.tell("the authority validates %s", listed(proofs))
	return j.failed("challenge", parallel(ctx, proofs, j.validate))
}

func listed(proofs []*proof) string {
	var names []string
	for _, p := range proofs {
		names = append(names, p.name)
	}
	slices.Sort(names)
	if more := len(names) - 5; more > 0 {
		names = append(names[:5], fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// proofs are the names of the order that are not proved, with their challenges.
func (j *job) proofs(ctx context.Context) ([]*proof, error) {
	if len(j.order.Authorizations) > maxAuthorizations {
		return nil, fmt.Errorf("the order has %d authorizations", len(j.order.Authorizations))
	}
	var all []*proof
	for n, location := range j.order.Authorizations {
		all = append(all, &proof{name: "authorization " + strconv.Itoa(n+1), authz: acme.Authorization{Location: location}})
	}
	failed := parallel(ctx, all, func(ctx context.Context, p *proof) error {
		authz, err := j.client.GetAuthorization(ctx, j.account, p.authz.Location)
		if err == nil {
			p.authz, p.name = authz, canonical(authz.IdentifierValue())
		}
		return err
	})
	if len(failed) > 0 {
		return nil, j.failed("challenge", failed)
	}
	all = slices.DeleteFunc(all, func(p *proof) bool { return p.authz.Status == acme.StatusValid })
	var problems []failedName
	for _, p := range all {
		if err := j.choose(p); err != nil {
			problems = append(problems, failedName{p.name, err})
		}
	}
	return all, j.failed("challenge", problems)
}

// choose takes the challenge that is planned, if it is offered.
func (j *job) choose(p *proof) error {
	if err := authzError(p.authz); err != nil {
		return err
	}
	var ok bool
	if p.method, ok = j.o.Methods[p.name]; !ok {
		return errors.New("the authority wants a name to be proved that was not ordered")
	}
	var offered []string
	for _, c := range p.authz.Challenges {
		if c.Type == p.method.Type {
			p.chal = c
			return nil
		}
		offered = append(offered, c.Type)
	}
	slices.Sort(offered)
	return permanent("challenge", "the authority does not offer %s; it offers: %s", p.method.Type, bounded(strings.Join(offered, ", ")))
}

// authzError is why an authorization can come to nothing.
func authzError(authz acme.Authorization) error {
	switch authz.Status {
	case acme.StatusPending, acme.StatusValid:
		return nil
	case acme.StatusInvalid:
		for _, c := range authz.Challenges {
			if c.Error != nil {
				return *c.Error
			}
		}
		return errors.New("it could not be validated, and the authority gives no reason")
	}
	return fmt.Errorf("the authorization is %q", bounded(authz.Status))
}

// present makes known what the authority will look for.
func (j *job) present(ctx context.Context, p *proof) error {
	switch p.method.Type {
	case acme.ChallengeTypeDNS01:
		return j.presentText(ctx, p)
	case acme.ChallengeTypeDNSPersist01:
		return j.checkPersistent(ctx, p)
	}
	undo, err := j.o.Present(ctx, cert.Challenge{
		Type: p.chal.Type, Name: p.name, Token: p.chal.Token, KeyAuth: p.chal.KeyAuthorization, Until: p.authz.Expires.UTC(),
	})
	p.undo = undo
	return err
}

// presentText writes the TXT record of dns-01, where the name is delegated to if it is.
func (j *job) presentText(ctx context.Context, p *proof) error {
	provider := j.c.Providers[p.method.Provider]
	record, err := j.recordName(ctx, p)
	if err != nil {
		return err
	}
	zone, err := j.resolver.zone(ctx, record)
	if err != nil {
		return err
	}
	text := p.chal.DNS01KeyAuthorization()
	// It is undone even if it failed: the answer may have been lost.
	p.undo = func(ctx context.Context) {
		if err := provider.Delete(ctx, zone, record, text); err != nil {
			j.tell("the TXT record %s could not be removed: %v", record, err)
		}
	}
	if err := provider.Append(ctx, zone, record, text); err != nil {
		return fmt.Errorf("writing the TXT record %s by way of provider %q: %w", record, p.method.Provider, err)
	}
	p.zone, p.record = zone, record
	return nil
}

// recordName is where the text of dns-01 belongs. Where a name is delegated is
// declared, never guessed: a CNAME could come from a wildcard.
func (j *job) recordName(ctx context.Context, p *proof) (string, error) {
	record := fqdn(p.chal.DNS01TXTRecordName())
	end, err := j.resolver.alias(ctx, record)
	if err != nil {
		return "", fmt.Errorf("looking whether %s is delegated: %w", record, err)
	}
	want := record
	if p.method.Delegated != "" {
		want = fqdn(p.method.Delegated)
	}
	switch {
	case end == want:
		return want, nil
	case p.method.Delegated == "":
		return "", fmt.Errorf("%s is a CNAME that leads to %s, and that is not declared: say so (delegated: %s), or remove the CNAME", record, end, strings.TrimSuffix(end, "."))
	case end == record:
		return "", fmt.Errorf("%s is declared as delegated to %s, and there is no CNAME: add the record %s CNAME %s", record, want, record, want)
	}
	return "", fmt.Errorf("%s is declared as delegated to %s, and its CNAME leads to %s: correct one of them", record, want, end)
}

// propagated waits until every nameserver has the text of a proof.
func (j *job) propagated(ctx context.Context, p *proof) error {
	if p.record == "" {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, j.c.Propagation)
	defer cancel()
	err := j.resolver.wait(within, p.zone, p.record, p.chal.DNS01KeyAuthorization())
	if err != nil && ctx.Err() == nil && within.Err() != nil {
		return fmt.Errorf("the TXT record %s is written and not seen after %v: %w; does provider %q serve the zone %s?", p.record, j.c.Propagation, err, p.method.Provider, p.zone)
	}
	return err
}

// checkPersistent wants the record of dns-persist-01 to be there: it is made once, by
// the owner of the domain. draft-ietf-acme-dns-persist.
func (j *job) checkPersistent(ctx context.Context, p *proof) error {
	if len(p.chal.IssuerDomainNames) == 0 {
		return errors.New("the authority does not say what the record of dns-persist-01 has to name")
	}
	record := fqdn(p.chal.DNSPersist01TXTRecordName())
	texts, err := j.resolver.texts(ctx, record)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", record, err)
	}
	want := p.chal.DNSPersist01TXTRecordValue(j.account, p.chal.IssuerDomainNames[0], p.authz.Wildcard)
	why := "there is none for this account"
	for _, text := range texts {
		reason := persistent(text, p.chal.IssuerDomainNames, j.account.Location, p.authz.Wildcard, j.c.Now())
		if reason == "" {
			return nil
		}
		if reason != otherIssuer {
			why = reason
		}
	}
	return fmt.Errorf("the record of dns-persist-01 is missing (%s): create %s IN TXT %q", why, record, bounded(want))
}

// otherIssuer is why a record is of no concern.
const otherIssuer = "it is another authority's"

// persistent says why a record of dns-persist-01 does not hold; empty: it does.
func persistent(text string, issuers []string, account string, wildcard bool, now time.Time) string {
	parts := strings.Split(text, ";")
	if !slices.Contains(issuers, strings.ToLower(strings.Trim(parts[0], " \t"))) {
		return otherIssuer
	}
	parameters := map[string]string{}
	for _, part := range parts[1:] {
		tag, value, ok := strings.Cut(part, "=")
		tag = strings.ToLower(strings.Trim(tag, " \t"))
		if _, twice := parameters[tag]; !ok || tag == "" || twice {
			return "one is malformed: " + bounded(text)
		}
		parameters[tag] = strings.Trim(value, " \t")
	}
	until, limited := parameters["persistuntil"]
	seconds, err := strconv.ParseInt(until, 10, 64)
	switch {
	case parameters["accounturi"] != account:
		return "one is for account " + bounded(parameters["accounturi"])
	case wildcard && !strings.EqualFold(parameters["policy"], "wildcard"):
		return "one does not allow wildcards"
	case limited && err != nil:
		return "one is malformed: " + bounded(text)
	case limited && now.After(time.Unix(seconds, 0)):
		return "one ended at " + time.Unix(seconds, 0).UTC().Format(time.RFC3339)
	}
	return ""
}

// validate tells the authority to look, and waits for what it finds. When ctx ends it
// waits a little longer: what is taken back while the authority looks fails the order.
func (j *job) validate(ctx context.Context, p *proof) error {
	t := j.Issuer.trace()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.c.Validation)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(settleTime, cancel) })()
	err := j.settle(t.with(within), t, p)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && within.Err() != nil:
		return &certmanager.Problem{Step: "challenge", Err: fmt.Errorf("the authority has not validated it after %v", j.c.Validation)}
	}
	return t.problem("challenge", err)
}

// settle returns when the authority has decided on a challenge.
func (j *job) settle(ctx context.Context, t *trace, p *proof) error {
	_, told := j.client.InitiateChallenge(ctx, j.account, p.chal)
	if told != nil && problemType(told) != acme.ProblemTypeMalformed {
		return told
	}
	// A challenge that the authority was told of before may be refused: what became of
	// it, the authorization says.
	for {
		authz, err := j.client.GetAuthorization(ctx, j.account, p.authz.Location)
		if err == nil {
			err = authzError(authz)
		}
		if err != nil || authz.Status == acme.StatusValid {
			return err
		}
		if told != nil && !slices.ContainsFunc(authz.Challenges, func(c acme.Challenge) bool { return c.URL == p.chal.URL && c.Status == acme.StatusProcessing }) {
			return told
		}
		if err := j.pause(ctx, t); err != nil {
			return err
		}
	}
}

// cleanUp takes back what was presented, whatever came of it.
func (j *job) cleanUp(ctx context.Context, proofs []*proof) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	parallel(ctx, proofs, func(ctx context.Context, p *proof) error {
		if p.undo != nil {
			p.undo(ctx)
		}
		return nil
	})
}
