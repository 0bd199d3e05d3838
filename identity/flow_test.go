package identity

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"pgregory.net/rapid"
)

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a.b", false}, {"a.>", "a", false}, {"a.>", "a.b.c", true},
		{"a.*", "*.b", true}, {"a.*.c", "a.b.*", true}, {"a.*.c", "a.b.d", false}, {"a.*", "a.>", true}, {"a.*", "a.*.>", false},
	} {
		if Overlap(c.a, c.b) != c.want || Overlap(c.b, c.a) != c.want {
			t.Errorf("%s and %s: overlap is not %v", c.a, c.b, c.want)
		}
	}
}

func TestCheckFlowSubject(t *testing.T) {
	for _, s := range []string{"registration.>", "a", "a.*.c", "machine.*.out.>", strings.Repeat("a", 255)} {
		if err := CheckFlowSubject(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for s, want := range map[string]string{
		"":                       "empty token",
		"a b":                    "a space",
		"a.>.b":                  "goes on after >",
		">":                      "begins with a wildcard",
		"*.b":                    "begins with a wildcard",
		"$SYS.ACCOUNT.>":         `begins with "$"`,
		"$JS.API.>":              `begins with "$"`,
		"$KV.settings.>":         `begins with "$"`,
		Private + "certs.>":      `begins with "$"`,
		"$SRV.PING":              `begins with "$"`,
		"_INBOX.>":               `begins with "_"`,
		"_R_.x":                  `begins with "_"`,
		"a.{{name()}}":           "a template",
		"{{account-name()}}.b":   "a template",
		strings.Repeat("a", 256): "longer than 255 bytes",
	} {
		wantError(t, CheckFlowSubject(s), want)
	}
}

// world is a directory with accounts of an authority.
type world struct {
	*Directory
	authority *Authority
	t         testing.TB
	tokens    map[string]string // by name and sequence
}

func newWorld(t testing.TB, accounts ...string) *world {
	w := &world{Directory: NewDirectory(), authority: newAuthority(t), t: t, tokens: map[string]string{}}
	for _, name := range accounts {
		apply(t, w.Directory, "account."+name, newAccount(t, w.authority, name))
	}
	return w
}

func (w *world) party(name string) Party {
	w.t.Helper()
	a, ok := w.Account(name)
	if !ok {
		w.t.Fatalf("there is no account %q", name)
	}
	return a.Party()
}

func (w *world) export(account, subject string, service bool, to ...string) Export {
	e := Export{Party: w.party(account), ID: ExportID(subject, service), Subject: subject, Service: service, Everybody: len(to) == 0, Created: epoch()}
	for _, name := range to {
		e.Grant(w.party(name), epoch())
	}
	return e
}

func (w *world) imports(account, from, subject, as string, service bool) Import {
	return Import{Party: w.party(account), ID: ImportID(as), From: w.party(from), Subject: subject, As: as, Service: service, Created: epoch()}
}

func (w *world) putExport(e Export) { apply(w.t, w.Directory, "export."+e.Account+"."+e.ID, e) }
func (w *world) putImport(i Import) { apply(w.t, w.Directory, "import."+i.Account+"."+i.ID, i) }

// claims is the account as the engine has it, which accepts it; the same each time.
func (w *world) claims(name string) *jwt.AccountClaims {
	w.t.Helper()
	w.accepted(name)
	return w.accepted(name)
}

// accepted signs an account without roles, which take their time.
func (w *world) accepted(name string) *jwt.AccountClaims {
	w.t.Helper()
	a, ok := w.Account(name)
	if !ok {
		w.t.Fatalf("there is no account %q", name)
	}
	token, err := w.authority.AccountJWT(a, nil, nil, w.Flows(name), w.Issued(a))
	if err != nil {
		w.t.Fatal(err)
	}
	if known, ok := w.tokens[name+fmt.Sprint(w.Seq())]; ok && known != token {
		w.t.Fatalf("account %q has two tokens", name)
	}
	w.tokens[name+fmt.Sprint(w.Seq())] = token
	c, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		w.t.Fatal(err)
	}
	results := jwt.CreateValidationResults()
	c.Validate(results)
	if results.IsBlocking(true) {
		w.t.Fatalf("the engine would not take account %q: %v", name, results.Errors())
	}
	return c
}

// imported finds what an account imports as a subject.
func imported(c *jwt.AccountClaims, as string) *jwt.Import {
	for _, i := range c.Imports {
		if string(i.LocalSubject) == as {
			return i
		}
	}
	return nil
}

// consents reports whether the exporter's terms let the import be.
func consents(t *testing.T, exporter *jwt.AccountClaims, i *jwt.Import) bool {
	t.Helper()
	for _, e := range exporter.Exports {
		if e.Type != i.Type || !i.Subject.IsContainedIn(e.Subject) {
			continue
		}
		if !e.TokenReq {
			return true
		}
		a, err := jwt.DecodeActivationClaims(i.Token)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := exporter.SigningKeys[a.Issuer]; !ok || a.Issuer == exporter.Subject || a.IssuerAccount != exporter.Subject {
			t.Errorf("the consent is signed by %s", a.Issuer)
		}
		return !e.IsClaimRevoked(a)
	}
	return false
}

func TestFlows(t *testing.T) {
	w := newWorld(t, "acme", "beta", "ops")
	w.putExport(w.export("acme", "registration.>", false, "ops"))
	w.putImport(w.imports("ops", "acme", "registration.>", "fleet.acme.>", false))
	w.putImport(w.imports("beta", "acme", "registration.>", "fleet.acme.>", false))
	ops := imported(w.claims("ops"), "fleet.acme.>")
	if ops == nil || !consents(t, w.claims("acme"), ops) {
		t.Fatalf("ops imports %+v", ops)
	}
	if got := imported(w.claims("beta"), "fleet.acme.>"); got != nil {
		t.Errorf("beta imports without consent: %+v", got)
	}
	// Consent that is taken back is void at both ends; a new one holds.
	e := w.Exports("acme")[0]
	if !e.Revoke(w.party("ops"), epoch()) || e.Revoke(w.party("ops"), epoch()) || e.Revoke(w.party("beta"), epoch()) {
		t.Errorf("revoked as %+v", e)
	}
	w.putExport(e)
	if got := imported(w.claims("ops"), "fleet.acme.>"); got != nil || consents(t, w.claims("acme"), ops) {
		t.Errorf("after the revocation ops imports %+v", got)
	}
	if !e.Grant(w.party("ops"), epoch()) || e.Grant(w.party("ops"), epoch()) {
		t.Errorf("granted again as %+v", e)
	}
	w.putExport(e)
	if got := imported(w.claims("ops"), "fleet.acme.>"); got == nil || !consents(t, w.claims("acme"), got) {
		t.Errorf("after another consent ops imports %+v", got)
	}
	// Part of an export, with wildcards that go along.
	w.putExport(w.export("beta", "time.*.now", true))
	w.putImport(w.imports("acme", "beta", "time.*.now", "clock.of.*", true))
	if got := imported(w.claims("acme"), "clock.of.*"); got == nil || got.Token != "" || got.Type != jwt.Service || !consents(t, w.claims("beta"), got) {
		t.Errorf("acme imports %+v", got)
	}
	// An account that takes a name inherits nothing.
	apply(t, w.Directory, "account.ops", newAccount(t, w.authority, "ops"))
	if got := imported(w.claims("ops"), "fleet.acme.>"); got != nil {
		t.Errorf("another account of the name imports %+v", got)
	}
	w.putImport(w.imports("ops", "acme", "registration.>", "fleet.acme.>", false))
	if got := imported(w.claims("ops"), "fleet.acme.>"); got != nil {
		t.Errorf("another account of the name has the consent: %+v", got)
	}
	apply(t, w.Directory, "account.acme", nil)
	if got := w.Flows("acme"); len(got.Exports)+len(got.Imports) != 0 {
		t.Errorf("an account that is gone has flows: %+v", got)
	}
}

// TestFlowsInTheWay has what is asked for refused, and what was written at once
// judged by its order.
func TestFlowsInTheWay(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.putExport(w.export("a", "x.>", false))
	w.putImport(w.imports("b", "a", "x.>", "from.a.>", false))
	w.putExport(w.export("c", "q", true))
	w.putImport(w.imports("b", "c", "q", "ask.c", true))
	for what, err := range map[string]error{
		"an export within another":         w.CheckExport(w.export("a", "x.y", false)),
		"an export around another":         w.CheckExport(w.export("c", "*.x", true)),
		"an import that is passed on":      w.CheckExport(w.export("b", "from.>", false)),
		"a service that is passed on":      w.CheckExport(w.export("b", "ask.c", true)),
		"an import over another":           w.CheckImport(w.imports("b", "c", "q", "from.a.b", true)),
		"an import of what is exported":    w.CheckImport(w.imports("a", "c", "q", "x.q", true)),
		"an import from itself":            w.CheckImport(w.imports("a", "a", "x.>", "y.>", false)),
		"wildcards that differ":            w.CheckImport(w.imports("c", "a", "x.>", "y.*", false)),
		"the engine's":                     w.CheckExport(w.export("a", "$SYS.>", false)),
		"everything":                       w.CheckExport(w.export("a", ">", false)),
		"the fleet's as an import":         w.CheckImport(w.imports("c", "a", "x.>", "$FLEETBUS.x.>", false)),
		"a name by which the other asks":   w.CheckImport(w.imports("a", "b", "z", "q", true)),
		"an adapter over an import":        w.CheckAdapter(w.adapter("ad", "from.a.*", "b")),
		"an adapter over what is answered": w.CheckAdapter(w.adapter("ad", "q", "c")),
		"an adapter of the fleet's":        w.CheckAdapter(w.adapter("ad", "$JS.API.>", "c")),
		"an adapter of nobody":             w.CheckAdapter(w.adapter("ad", "m.>")),
	} {
		if err == nil {
			t.Errorf("%s is let pass", what)
		}
	}
	for what, err := range map[string]error{
		"the same again":            w.CheckExport(w.export("a", "x.>", false, "b")),
		"a service beside messages": w.CheckExport(w.export("a", "x.y", true)),
		"the same import":           w.CheckImport(w.imports("b", "a", "x.>", "from.a.>", false)),
		"an adapter":                w.CheckAdapter(w.adapter("ad", "m.>", "a", "b")),
		"an adapter over an export": w.CheckAdapter(w.adapter("ad", "x.>", "a")),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.putExport(w.export("a", "x.y", false)) // as if it had been written at once
	if got := w.Flows("a").Exports; len(got) != 1 || got[0].Subject != "x.>" {
		t.Errorf("a exports %+v", got)
	}
	w.claims("a")
}

func (w *world) adapter(name, subject string, from ...string) Adapter {
	a := Adapter{Name: name, Subject: subject, To: w.party("c"), Stream: "S"}
	for _, account := range from {
		a.From = append(a.From, w.party(account))
	}
	return a
}

func TestAdapterFlow(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	apply(t, w.Directory, "adapter.ad", w.adapter("ad", "m.>", "a", "b"))
	for _, name := range []string{"a", "b"} {
		a, _ := w.Account(name)
		i := imported(w.claims(name), "m.>")
		if i == nil || !i.Share || string(i.Subject) != "adapter.ad."+a.Public+".m.>" {
			t.Fatalf("%s sends %+v", name, i)
		}
		adapter, account, subject, err := AdapterMessage("adapter.ad." + a.Public + ".m.x.y")
		if adapter != "ad" || account != a.Public || subject != "m.x.y" || err != nil {
			t.Errorf("read as %s, %s, %s: %v", adapter, account, subject, err)
		}
		if !w.Flows(name).Adapts("ad") {
			t.Errorf("%s is not adapted", name)
		}
	}
	if imported(w.claims("c"), "m.>") != nil {
		t.Error("c sends, too")
	}
	fleet := must[Account](t)(w.authority.FleetAccount(epoch()))
	c := claimsOf[*jwt.AccountClaims](t, must[string](t)(w.authority.AccountJWT(fleet, nil, nil, Flows{}, epoch())))
	if !c.Exports.HasExportContainingSubject("adapter.ad.X.m.>") {
		t.Error("the fleet takes nothing")
	}
	for _, subject := range []string{"", "adapter", "adapter.a.b", "other.a.b.c"} {
		if _, _, _, err := AdapterMessage(subject); err == nil {
			t.Errorf("%q is of an adapter", subject)
		}
	}
}

func TestParseSender(t *testing.T) {
	for info, want := range map[string]Sender{
		`{"acc":"A","user":"UKEY","jwt":"x","tags":["name:Web1","role:machine"]}`: {"A", "UKEY", "Web1"},
		`{"acc":"A","user":"alice","name_tag":"sentinel"}`:                        {"A", "alice", "alice"},
	} {
		if got, err := ParseSender(info); got != want || err != nil {
			t.Errorf("%s is %+v: %v", info, got, err)
		}
	}
	for _, info := range []string{"", "{", "{}", `{"acc":"A"}`, `{"user":"u"}`, `{"acc":"A","user":"K","jwt":"x"}`, `{"acc":"A","user":"a b"}`} {
		if got, err := ParseSender(info); err == nil {
			t.Errorf("%q is %+v", info, got)
		}
	}
}

// TestFlowsProperty: whatever is consented to, imported, adapted and taken back,
// the engine takes the terms of every account, nothing is passed on, and every
// import that an account has is one that the exporter's terms consent to.
func TestFlowsProperty(t *testing.T) {
	accounts := []string{"a", "b", "c"}
	w := newWorld(t, accounts...)
	start := must[[]byte](t)(w.Marshal())
	subjects := rapid.SampledFrom([]string{"x", "x.>", "x.y", "x.*", "y.*.z", "y.>", "$SYS.>", "_INBOX.>", ">", "adapter.>", "x.{{name()}}"})
	account := rapid.SampledFrom(accounts)
	rapid.Check(t, func(r *rapid.T) {
		w.Directory = NewDirectory()
		if err := w.Unmarshal(start); err != nil {
			r.Fatal(err)
		}
		clear(w.tokens)
		for range rapid.IntRange(0, 15).Draw(r, "events") {
			one, other, subject, service := account.Draw(r, "one"), account.Draw(r, "other"), subjects.Draw(r, "subject"), rapid.Bool().Draw(r, "service")
			switch rapid.IntRange(0, 3).Draw(r, "kind") {
			case 0:
				e := w.export(one, subject, service, other)
				if rapid.Bool().Draw(r, "revoked") {
					e.Revoke(w.party(other), epoch().Add(time.Minute))
				}
				w.putExport(e)
			case 1:
				w.putImport(w.imports(one, other, subject, subjects.Draw(r, "as"), service))
			case 2:
				name := fmt.Sprint("ad", rapid.IntRange(0, 2).Draw(r, "adapter"))
				apply(t, w.Directory, "adapter."+name, w.adapter(name, subject, one))
			default:
				for _, e := range w.Exports(one) {
					apply(t, w.Directory, "export."+one+"."+e.ID, nil)
					break
				}
			}
		}
		terms := map[string]*jwt.AccountClaims{}
		for _, name := range accounts {
			terms[w.party(name).Public] = w.accepted(name)
		}
		for _, name := range accounts {
			flows := w.Flows(name)
			for _, i := range terms[w.party(name).Public].Imports {
				if exporter := terms[i.Account]; exporter != nil && !consents(t, exporter, i) {
					r.Fatalf("%s imports without consent: %+v", name, i)
				}
			}
			for _, i := range flows.Imports {
				for _, e := range flows.Exports {
					if Overlap(i.As, e.Subject) && (i.adapter == "" || e.Service) {
						r.Fatalf("%s passes on %s as %s", name, i.As, e.Subject)
					}
				}
			}
		}
		restored := NewDirectory()
		data, err := w.Marshal()
		if err := errors.Join(err, restored.Unmarshal(data)); err != nil {
			r.Fatal(err)
		}
		for _, name := range accounts {
			if !reflect.DeepEqual(w.Flows(name), restored.Flows(name)) {
				r.Fatalf("after a restart the flows of %s are %+v, before %+v", name, restored.Flows(name), w.Flows(name))
			}
		}
	})
}
