package identity

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
)

// A Party is one account for good: an account that takes its name later has
// another public key, and inherits no consent.
type Party struct {
	// Account is the name, Public the public nkey.
	Account string `json:"account"`
	Public  string `json:"public"`
}

// Party names the account a.
func (a Account) Party() Party { return Party{Account: a.Name, Public: a.Public} }

// An Export is the consent of an account that others receive what is published
// under a subject of it, or ask the service that answers there. It is a record of
// the ledger: export.<account>.<id>.
type Export struct {
	Party
	// ID is ExportID of the rest.
	ID string `json:"id"`
	// Subject in the account, with * and > as wildcards.
	Subject string `json:"subject"`
	// Service says that the subject answers requests. Otherwise messages flow.
	Service bool `json:"service,omitempty"`
	// Everybody may have it. Otherwise those in To may, and nobody else.
	Everybody bool      `json:"everybody,omitempty"`
	To        []Consent `json:"to,omitempty"`
	// Created is when the export was made.
	Created time.Time `json:"created,omitzero"`
}

// A Consent is what one account was given, and perhaps lost again.
type Consent struct {
	Party
	// Since is when it was given, in whole seconds.
	Since time.Time `json:"since"`
	// Revoked is when it was taken back. Zero: it holds.
	Revoked time.Time `json:"revoked,omitzero"`
}

// An Import brings the messages, or the service, of a subject of another account
// into this one. It is a record of the ledger: import.<account>.<id>. It is in
// force while the other account consents.
type Import struct {
	Party
	// ID is ImportID of As.
	ID string `json:"id"`
	// From is the account that exports, Subject what is taken of it.
	From    Party  `json:"from"`
	Subject string `json:"subject"`
	// As is the subject here. Its wildcards stand for those of Subject, in their
	// order.
	As string `json:"as"`
	// Service says that requests flow there. Otherwise messages flow here.
	Service bool `json:"service,omitempty"`
	// Created is when the import was made.
	Created time.Time `json:"created,omitzero"`
}

// An Adapter takes the messages of a subject of some accounts and writes them to
// a stream of another, with who sent them. It is a record of the ledger:
// adapter.<name>.
type Adapter struct {
	Name string `json:"name"`
	// From are the accounts, Subject what is taken of each.
	From    []Party `json:"from"`
	Subject string  `json:"subject"`
	// To is the account of Stream.
	To     Party  `json:"to"`
	Stream string `json:"stream"`
	// Created is when the adapter was made.
	Created time.Time `json:"created,omitzero"`
}

// Flows are what crosses the border of one account, as the engine is to see it.
// See Directory.Flows.
type Flows struct {
	Exports []Export
	Imports []Flow
}

// A Flow is an import that is in force.
type Flow struct {
	Import
	// exporter is the account that consented at that time; zero if everybody may.
	exporter Account
	since    time.Time
	// adapter is the name of the adapter that it belongs to.
	adapter string
}

// ExportID is the ID of an export: the same subject of the same kind is one.
func ExportID(subject string, service bool) string {
	if service {
		subject = "service " + subject
	}
	return shortHash(subject)
}

// ImportID is the ID of an import: a subject of an account is imported once.
func ImportID(as string) string { return shortHash(as) }

func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// maxFlowSubject bounds a subject that crosses, in bytes.
const maxFlowSubject = 255

// CheckFlowSubject says why subject may not cross the border of an account; nil
// if it may. It has no template, and begins with a token that is neither a
// wildcard nor the start of what the engine, the protocols and the fleet keep for
// themselves, which begins with "$" or "_".
func CheckFlowSubject(subject string) error {
	if err := CheckSubject(subject); err != nil {
		return err
	}
	first, _, _ := strings.Cut(subject, ".")
	switch {
	case len(subject) > maxFlowSubject:
		return fmt.Errorf("subject %s is longer than %d bytes", quote(subject), maxFlowSubject)
	case strings.Contains(subject, "{{"):
		return fmt.Errorf("subject %s has a template, and crosses for all users alike", quote(subject))
	case first == "*" || first == ">":
		return fmt.Errorf("subject %s begins with a wildcard: it would take in subjects that stay in their account", quote(subject))
	case first[0] == '$' || first[0] == '_':
		return fmt.Errorf("subject %s begins with %q: such subjects stay in their account", quote(subject), first[:1])
	}
	return nil
}

// checkRenaming says why what crosses as subject cannot be called as.
func checkRenaming(subject, as string) error {
	rest := func(s string) bool { return strings.HasSuffix(s, ">") }
	if tokens(subject, "*") != tokens(as, "*") || rest(subject) != rest(as) {
		return fmt.Errorf("subjects %s and %s have not the same wildcards", quote(subject), quote(as))
	}
	return nil
}

// tokens counts those tokens of subject that are token.
func tokens(subject, token string) (n int) {
	for t := range strings.SplitSeq(subject, ".") {
		if t == token {
			n++
		}
	}
	return n
}

// Overlap reports whether there is a subject that both patterns match.
func Overlap(a, b string) bool {
	for {
		x, restA, moreA := strings.Cut(a, ".")
		y, restB, moreB := strings.Cut(b, ".")
		switch {
		case x == ">" || y == ">":
			return true
		case x != "*" && y != "*" && x != y:
			return false
		case !moreA || !moreB:
			return moreA == moreB
		}
		a, b = restA, restB
	}
}

// Validate returns every problem of e, joined; nil if there is none.
func (e Export) Validate() error {
	errs := []error{CheckName(e.Account), CheckFlowSubject(e.Subject)}
	if e.ID != ExportID(e.Subject, e.Service) {
		errs = append(errs, fmt.Errorf("id %s is not that of its subject", quote(e.ID)))
	}
	if e.Everybody && len(e.To) > 0 {
		errs = append(errs, errors.New("everybody may have it, and some by name"))
	}
	return errors.Join(errs...)
}

// Consents reports whether p may have the export, and since when; zero if
// everybody may.
func (e Export) Consents(p Party) (since time.Time, ok bool) {
	if e.Everybody {
		return time.Time{}, true
	}
	i := e.find(p)
	if i < 0 || !e.To[i].Revoked.IsZero() {
		return time.Time{}, false
	}
	return e.To[i].Since, true
}

// Covers reports whether everything under subject is exported.
func (e Export) Covers(subject string) bool { return covers(e.Subject, subject) }

func (e Export) find(p Party) int {
	return slices.IndexFunc(e.To, func(c Consent) bool { return c.Public == p.Public })
}

// Grant gives the export to p, and reports whether it had it not.
func (e *Export) Grant(p Party, now time.Time) bool {
	if _, ok := e.Consents(p); ok {
		return false
	}
	c := Consent{Party: p, Since: now.Truncate(time.Second)}
	i := e.find(p)
	if i < 0 {
		e.To = append(e.To, c)
		return true
	}
	// What was issued up to the revocation stays void.
	if after := e.To[i].Revoked.Add(time.Second).Truncate(time.Second); c.Since.Before(after) {
		c.Since = after
	}
	e.To[i] = c
	return true
}

// Revoke takes the export back from p, and reports whether it had it.
func (e *Export) Revoke(p Party, now time.Time) bool {
	i := e.find(p)
	if i < 0 || !e.To[i].Revoked.IsZero() {
		return false
	}
	e.To[i].Revoked = now
	if now.Before(e.To[i].Since) {
		e.To[i].Revoked = e.To[i].Since
	}
	return true
}

func (e Export) clone() Export {
	e.To = slices.Clone(e.To)
	return e
}

// Validate returns every problem of i, joined; nil if there is none.
func (i Import) Validate() error {
	errs := []error{CheckName(i.Account), CheckName(i.From.Account), CheckFlowSubject(i.Subject), CheckFlowSubject(i.As), checkRenaming(i.Subject, i.As)}
	if i.ID != ImportID(i.As) {
		errs = append(errs, fmt.Errorf("id %s is not that of its subject", quote(i.ID)))
	}
	if i.Account == i.From.Account {
		errs = append(errs, errors.New("an account imports nothing from itself"))
	}
	return errors.Join(errs...)
}

// Validate returns every problem of a, joined; nil if there is none.
func (a Adapter) Validate() error {
	errs := []error{CheckName(a.Name), CheckFlowSubject(a.Subject), CheckName(a.To.Account), CheckName(a.Stream)}
	if len(a.From) == 0 {
		errs = append(errs, errors.New("it takes from no account"))
	}
	for _, p := range a.From {
		errs = append(errs, CheckName(p.Account))
	}
	return errors.Join(errs...)
}

func (a Adapter) clone() Adapter {
	a.From = slices.Clone(a.From)
	return a
}

// ErrFlow is wrapped by what CheckExport, CheckImport and CheckAdapter say of a
// flow that is in the way of another.
var ErrFlow = errors.New("it is in the way of what crosses already")

// flowing is what crosses between all accounts after some event.
type flowing map[string]*Flows

func (f flowing) of(account string) *Flows {
	if f[account] == nil {
		f[account] = &Flows{}
	}
	return f[account]
}

// flow works out what is in force. Records are taken in the order in which they
// were written, and one that is in the way of an earlier one waits: two that were
// written at once are judged alike by every node.
func (s *state) flow() flowing {
	f := flowing{}
	for _, e := range inOrder(s, "export", s.exports) {
		if a, ok := s.accounts[e.Account]; ok && a.Public == e.Public && e.Validate() == nil && f.checkExport(e) == nil {
			f.of(e.Account).Exports = append(f.of(e.Account).Exports, e.clone())
		}
	}
	for _, i := range inOrder(s, "import", s.imports) {
		if flow, ok := s.consented(f, i); ok && f.checkImport(i) == nil {
			f.of(i.Account).Imports = append(f.of(i.Account).Imports, flow)
		}
	}
	for _, a := range inOrder(s, "adapter", s.adapters) {
		if a.Validate() != nil {
			continue
		}
		for _, p := range a.From {
			if account, ok := s.accounts[p.Account]; ok && account.Public == p.Public && f.checkAdapter(p.Account, a.Subject) == nil {
				f.of(p.Account).Imports = append(f.of(p.Account).Imports, a.flow(p))
			}
		}
	}
	return f
}

// inOrder are the records of a noun by age; those that a fleet starts with by name.
func inOrder[T any](s *state, noun string, records map[string]T) []T {
	names := slices.SortedFunc(maps.Keys(records), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.records[noun+"."+a].version, s.records[noun+"."+b].version), cmp.Compare(a, b))
	})
	all := make([]T, len(names))
	for i, name := range names {
		all[i] = records[name]
	}
	return all
}

// consented finds the export that covers i, and reports whether there is one.
func (s *state) consented(f flowing, i Import) (Flow, bool) {
	here, ok := s.accounts[i.Account]
	exporter, there := s.accounts[i.From.Account]
	if !ok || !there || here.Public != i.Public || exporter.Public != i.From.Public || i.Validate() != nil {
		return Flow{}, false
	}
	for _, e := range f.of(i.From.Account).Exports {
		if e.Service != i.Service || !covers(e.Subject, i.Subject) {
			continue
		}
		since, ok := e.Consents(i.Party)
		return Flow{Import: i, exporter: exporter, since: since}, ok
	}
	return Flow{}, false
}

// checkExport says what of an account is in the way of another export of it.
func (f flowing) checkExport(e Export) error {
	for _, other := range f.of(e.Account).Exports {
		if other.Service == e.Service && other.ID != e.ID && Overlap(other.Subject, e.Subject) {
			return fmt.Errorf("%w: %q exports %s", ErrFlow, e.Account, other.Subject)
		}
	}
	for _, i := range f.of(e.Account).Imports {
		// Whoever consented did so to this account alone.
		if (i.adapter == "" || e.Service) && Overlap(i.As, e.Subject) {
			return fmt.Errorf("%w: %q imports %s, and cannot pass it on", ErrFlow, e.Account, i.As)
		}
	}
	return nil
}

// checkImport says what of an account is in the way of another import of it.
// Nothing is passed on, so that nothing goes in circles.
func (f flowing) checkImport(i Import) error {
	for _, other := range f.of(i.Account).Imports {
		if other.ID != i.ID && Overlap(other.As, i.As) {
			return fmt.Errorf("%w: %q has %s from elsewhere", ErrFlow, i.Account, other.As)
		}
	}
	for _, e := range f.of(i.Account).Exports {
		if Overlap(e.Subject, i.As) {
			return fmt.Errorf("%w: %q exports %s, and cannot pass on what it imports", ErrFlow, i.Account, e.Subject)
		}
	}
	if !i.Service {
		return nil
	}
	// The engine follows services by their subjects alone, and would see a circle
	// here.
	for _, other := range f.of(i.From.Account).Imports {
		if other.Service && Overlap(other.Subject, i.As) {
			return fmt.Errorf("%w: %q asks another account under %s", ErrFlow, i.From.Account, other.Subject)
		}
	}
	for account, flows := range f {
		for _, other := range flows.Imports {
			if other.Service && other.From.Account == i.Account && account != i.Account && Overlap(other.As, i.Subject) {
				return fmt.Errorf("%w: %q asks %q under %s", ErrFlow, account, i.Account, other.As)
			}
		}
	}
	return nil
}

// checkAdapter says what of an account is in the way of an adapter.
func (f flowing) checkAdapter(account, subject string) error {
	for _, i := range f.of(account).Imports {
		if Overlap(i.As, subject) {
			return fmt.Errorf("%w: %q has %s from elsewhere, or an adapter there", ErrFlow, account, i.As)
		}
	}
	for _, e := range f.of(account).Exports {
		if e.Service && Overlap(e.Subject, subject) {
			return fmt.Errorf("%w: %q answers others under %s", ErrFlow, account, e.Subject)
		}
	}
	return nil
}

// flows are those of all accounts; mu is held for writing.
func (d *Directory) flows() flowing {
	if d.state.flowing == nil {
		d.state.flowing = d.state.flow()
	}
	return d.state.flowing
}

// Flows returns what crosses the border of an account now: its exports, and those
// imports that an export of another account covers. It is what
// Authority.AccountJWT takes.
func (d *Directory) Flows(account string) Flows {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.flows()[account]
	if f == nil {
		return Flows{}
	}
	out := Flows{Exports: slices.Clone(f.Exports), Imports: slices.Clone(f.Imports)}
	for i := range out.Exports {
		out.Exports[i] = out.Exports[i].clone()
	}
	return out
}

// Has reports whether the import of that ID is in force.
func (f Flows) Has(id string) bool {
	return slices.ContainsFunc(f.Imports, func(i Flow) bool { return i.adapter == "" && i.ID == id })
}

// Adapts reports whether the adapter of that name takes from the account.
func (f Flows) Adapts(adapter string) bool {
	return slices.ContainsFunc(f.Imports, func(i Flow) bool { return i.adapter == adapter })
}

// Exports returns the exports of an account, or of all if account is empty, sorted
// by account and subject.
func (d *Directory) Exports(account string) []Export {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := []Export{}
	for _, e := range d.state.exports {
		if account == "" || e.Account == account {
			all = append(all, e.clone())
		}
	}
	slices.SortFunc(all, func(a, b Export) int {
		return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Imports returns the imports of an account, or of all if account is empty, those
// that are not in force too, sorted by account and subject here.
func (d *Directory) Imports(account string) []Import {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := []Import{}
	for _, i := range d.state.imports {
		if account == "" || i.Account == account {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Import) int { return cmp.Or(cmp.Compare(a.Account, b.Account), cmp.Compare(a.As, b.As)) })
	return all
}

// Adapter returns the adapter of that name.
func (d *Directory) Adapter(name string) (Adapter, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	a, ok := d.state.adapters[name]
	return a.clone(), ok
}

// Adapters returns all adapters, sorted by name.
func (d *Directory) Adapters() []Adapter {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := sorted(d.state.adapters)
	for i := range all {
		all[i] = all[i].clone()
	}
	return all
}

// CheckExport says why e cannot be made now; nil if it can. The error wraps ErrFlow
// if something else is in the way.
func (d *Directory) CheckExport(e Export) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(e.Validate(), d.flows().checkExport(e))
}

// CheckImport says why i cannot be made now; nil if it can. It does not look for
// consent: see Consented.
func (d *Directory) CheckImport(i Import) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(i.Validate(), d.flows().checkImport(i))
}

// CheckAdapter says why a cannot be made now; nil if it can.
func (d *Directory) CheckAdapter(a Adapter) error {
	errs := []error{a.Validate()}
	d.mu.Lock()
	defer d.mu.Unlock()
	// What it has now does not hinder it.
	next := d.state
	next.adapters = maps.Clone(next.adapters)
	delete(next.adapters, a.Name)
	f := next.flow()
	for _, p := range a.From {
		errs = append(errs, f.checkAdapter(p.Account, a.Subject))
	}
	return errors.Join(errs...)
}

// Consented reports whether an export covers i.
func (d *Directory) Consented(i Import) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.state.consented(d.flows(), i)
	return ok
}

// engineExport is an export as the engine has it.
func (e Export) engineExport() *jwt.Export {
	out := &jwt.Export{Name: e.ID, Subject: jwt.Subject(e.Subject), Type: exportType(e.Service), TokenReq: !e.Everybody}
	if e.Service {
		out.ResponseType = jwt.ResponseTypeSingleton
	}
	for _, c := range e.To {
		if !c.Revoked.IsZero() {
			out.RevokeAt(c.Public, c.Revoked)
		}
	}
	return out
}

func exportType(service bool) jwt.ExportType {
	if service {
		return jwt.Service
	}
	return jwt.Stream
}

// engineImport is an import as the engine has it, with the consent of the account
// that it is from.
func (a *Authority) engineImport(f Flow) (*jwt.Import, error) {
	out := &jwt.Import{
		Name: f.ID, Account: f.exporter.Public, Subject: jwt.Subject(f.Subject), LocalSubject: jwt.RenamingSubject(f.As), Type: exportType(f.Service),
	}
	switch {
	case f.adapter != "":
		fleet, err := a.accountKey(a.own(fleetID))
		if err != nil {
			return nil, err
		}
		out.Name, out.Account, out.Share = "adapter "+f.adapter, fleet.public, true
	case !f.since.IsZero():
		var err error
		if out.Token, err = a.activation(f); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// activation is the consent of the account that exports, signed by a key of it:
// a strict operator lets none be signed by the account's own.
func (a *Authority) activation(f Flow) (string, error) {
	if _, err := a.checkAccount(f.exporter); err != nil {
		return "", err
	}
	issuer, err := a.public(f.exporter)
	if err != nil {
		return "", err
	}
	claims := jwt.NewActivationClaims(f.Public)
	claims.Name = f.ID
	claims.ImportSubject, claims.ImportType = jwt.Subject(f.Subject), exportType(f.Service)
	claims.IssuerAccount = issuer
	return encode(claims, a.engine.session, f.since)
}
