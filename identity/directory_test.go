package identity

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// apply folds records, by subject, into a new Directory in the order given.
func apply(t testing.TB, d *Directory, subject string, record any) {
	t.Helper()
	var data []byte
	if record != nil {
		data = toJSON(t, record)
	}
	if err := d.Apply(d.Seq()+1, subject, data); err != nil {
		t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	d := NewDirectory()
	apply(t, d, "account.b", Account{Public: "PB"})
	apply(t, d, "account.a", Account{Name: "renamed", Public: "PA", Limits: Limits{Payload: 1}})
	apply(t, d, "user.a.bob", User{Role: "client"})
	apply(t, d, "user.a.al", User{Account: "x", Name: "y", Keys: []UserKey{{Public: "K"}}, Certificates: []UserCertificate{{Serial: "1"}}})
	apply(t, d, "user.b.al", User{})
	apply(t, d, "role.meter", Role{Builtin: true, Networks: []string{"10.0.0.0/8"}})
	apply(t, d, "node.n2", Node{Version: "1"})
	apply(t, d, "node.n1", Node{Removed: true})
	apply(t, d, "token.0f", Token{Kind: KindNode})
	apply(t, d, "token.01", Token{})

	names := func(v any) []string {
		var records []struct{ Name, ID string }
		if err := json.Unmarshal(toJSON(t, v), &records); err != nil {
			t.Fatal(err)
		}
		out := []string{}
		for _, r := range records {
			out = append(out, r.Name+r.ID)
		}
		return out
	}
	for what, c := range map[string]struct{ got, want []string }{
		"accounts":        {names(d.Accounts()), []string{"a", "b"}},
		"users of a":      {names(d.Users("a")), []string{"al", "bob"}},
		"users of nobody": {names(d.Users("none")), []string{}},
		"roles":           {names(d.Roles()), []string{"admin", "auditor", "certmanager", "client", "leaf", "machine", "meter", "metrics", "provisioner", "target"}},
		"nodes":           {names(d.Nodes()), []string{"n2"}},
		"all nodes":       {names(d.AllNodes()), []string{"n1", "n2"}},
		"tokens":          {names(d.Tokens()), []string{"01", "0f"}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("the %s are %q, want %q", what, c.got, c.want)
		}
	}
	if a, ok := d.Account("a"); !ok || a.Name != "a" || a.Limits.Payload != 1 {
		t.Errorf("account a is %+v", a)
	}
	if a, ok := d.AccountByPublic("PB"); !ok || a.Name != "b" {
		t.Errorf("account PB is %+v", a)
	}
	if u, ok := d.User("a", "al"); !ok || u.String() != "a/al" {
		t.Errorf("user a/al is %+v", u)
	}
	if r, ok := d.Role("meter"); !ok || r.Name != "meter" || r.Builtin {
		t.Errorf("role meter is %+v", r)
	}
	if r, ok := d.Role("client"); !ok || !r.Builtin {
		t.Errorf("role client is %+v", r)
	}
	if n, ok := d.Node("n1"); !ok || !n.Removed {
		t.Errorf("node n1 is %+v", n)
	}
	if tok, ok := d.Token("0f"); !ok || tok.Kind != KindNode {
		t.Errorf("token 0f is %+v", tok)
	}
	for what, found := range map[string]bool{
		"account": second(d.Account("x")), "public": second(d.AccountByPublic("x")), "user": second(d.User("b", "bob")),
		"role": second(d.Role("x")), "node": second(d.Node("x")), "token": second(d.Token("x")),
	} {
		if found {
			t.Errorf("there is a %s", what)
		}
	}
	if d.Seq() != 10 || d.Version("account.a") != 2 || d.Version("account.x") != 0 {
		t.Errorf("the sequence is %d, versions %d and %d", d.Seq(), d.Version("account.a"), d.Version("account.x"))
	}
}

func second[T any](_ T, ok bool) bool { return ok }

func TestDirectoryReturnsCopies(t *testing.T) {
	d := NewDirectory()
	apply(t, d, "user.a.b", User{Keys: []UserKey{{Public: "K"}}, Certificates: []UserCertificate{{Serial: "1"}}})
	apply(t, d, "role.r", Role{Networks: []string{"n"}, Listeners: []string{"l"}, Permissions: Permissions{
		Publish: Rule{Allow: []string{"a"}}, Replies: &Replies{Max: 1},
	}})
	before := must[[]byte](t)(json.Marshal([]any{d.Users("a"), d.Roles()}))
	u, _ := d.User("a", "b")
	for _, u := range append(d.Users("a"), u) {
		u.Keys[0].Public, u.Certificates[0].Serial = "changed", "changed"
	}
	r, _ := d.Role("r")
	for _, r := range append(d.Roles(), r) {
		if r.Name == "r" {
			r.Networks[0], r.Listeners[0], r.Permissions.Publish.Allow[0], r.Permissions.Replies.Max = "x", "x", "x", 9
		}
	}
	if after := must[[]byte](t)(json.Marshal([]any{d.Users("a"), d.Roles()})); !bytes.Equal(before, after) {
		t.Errorf("a reader changed %s to %s", before, after)
	}
}

func TestDirectoryRemoval(t *testing.T) {
	d := NewDirectory()
	for _, subject := range []string{"account.a", "role.client", "node.n", "token.t", "user.a.b"} {
		apply(t, d, subject, map[string]any{"role": "client"})
		apply(t, d, subject, nil)
		if got := d.Version(subject); got != d.Seq() {
			t.Errorf("the version of %s is %d, want %d", subject, got, d.Seq())
		}
	}
	if len(d.Accounts())+len(d.AllNodes())+len(d.Tokens())+len(d.Users("a")) != 0 || len(d.Roles()) != len(BuiltinRoles()) {
		t.Error("a removed record is there")
	}
	if r, _ := d.Role("client"); !r.Builtin {
		t.Error("the built-in role does not come back")
	}
	apply(t, d, "user.a.never", nil)
}

func TestDirectorySequence(t *testing.T) {
	d := NewDirectory()
	put := func(seq uint64, name string) {
		t.Helper()
		if err := d.Apply(seq, "account."+name, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	put(0, "first")
	put(0, "second") // what a fleet starts with comes before any event
	put(5, "third")
	put(5, "again")
	put(4, "old")
	put(0, "late")
	if got := len(d.Accounts()); got != 3 || d.Seq() != 5 {
		t.Errorf("there are %d accounts at %d", got, d.Seq())
	}
}

func TestDirectoryLeniency(t *testing.T) {
	d := NewDirectory()
	apply(t, d, "role.r", Role{Expires: 1})
	for subject, data := range map[string]string{
		"account.a":    `{`,
		"role.r":       `{"expires":"a day"}`,
		"node.n":       `null`,
		"token.t":      `[]`,
		"user.a.b":     `7`,
		"user.a":       `{}`,
		"user.a.b.c":   `{}`,
		"account.a.b":  `{}`,
		"account":      `{}`,
		"account.":     `{}`,
		"account.*":    `{}`,
		"account.\xff": `{}`,
	} {
		seq := d.Seq() + 1
		wantError(t, d.Apply(seq, subject, []byte(data)), "applying event ")
		if d.Seq() != seq {
			t.Errorf("%s: the sequence is %d, want %d", subject, d.Seq(), seq)
		}
		if got := d.Version(subject); got != seq && got != 0 {
			t.Errorf("%s: the version is %d", subject, got)
		}
	}
	if r, ok := d.Role("r"); !ok || r.Expires != 1 {
		t.Errorf("an event that cannot be read changed the role: %+v", r)
	}
	if len(d.Accounts())+len(d.AllNodes())+len(d.Tokens())+len(d.Users("a")) != 0 {
		t.Error("an event that cannot be read made a record")
	}
	if d.Version("role.r") == 1 {
		t.Error("the version does not count an event that cannot be read")
	}
	for _, subject := range []string{"weather.today", "weather", "", "a b", "weather.\xff", "accounts.x"} {
		if err := d.Apply(d.Seq()+1, subject, []byte("\xff not json")); err != nil {
			t.Errorf("%q: %v", subject, err)
		}
	}
	if err := d.Apply(d.Seq()+1, "account.new", []byte(`{"public":"P","color":"red","limits":{"speed":1}}`)); err != nil {
		t.Error(err)
	}
	restored := NewDirectory()
	if err := restored.Unmarshal(must[[]byte](t)(d.Marshal())); err != nil {
		t.Error(err)
	}
}

// TestDirectoryKeepsWhatItDoesNotKnow has a snapshot pass through this version
// without loss.
func TestDirectoryKeepsWhatItDoesNotKnow(t *testing.T) {
	d := NewDirectory()
	for i, e := range [][2]string{
		{"account.a", `{"public":"P","color":"red"}`},
		{"weather.today", `{"sun":true}`},
		{"weather.now", `null`},
	} {
		if err := d.Apply(uint64(i+1), e[0], []byte(e[1])); err != nil {
			t.Fatal(err)
		}
	}
	data := must[[]byte](t)(d.Marshal())
	want := `{"seq":3,"records":[{"subject":"account.a","version":1,"data":{"public":"P","color":"red"}},` +
		`{"subject":"weather.now","version":3,"data":null},{"subject":"weather.today","version":2,"data":{"sun":true}}]}`
	if string(data) != want {
		t.Errorf("the snapshot is %s, want %s", data, want)
	}
	restored := NewDirectory()
	if err := restored.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	if again := must[[]byte](t)(restored.Marshal()); string(again) != want {
		t.Errorf("the snapshot is %s after a restart", again)
	}
	if restored.Version("weather.today") != 2 {
		t.Error("the version of an unknown record is lost")
	}
}

func TestDirectoryUnmarshalRefuses(t *testing.T) {
	d := NewDirectory()
	apply(t, d, "account.a", Account{})
	before := must[[]byte](t)(d.Marshal())
	for want, data := range map[string]string{
		"decoding a directory":            `{`,
		`record "account.b" of a direct`:  `{"seq":9,"records":[{"subject":"account.b","version":1,"data":7}]}`,
		`decoding record "user.b"`:        `{"seq":9,"records":[{"subject":"user.b","version":1,"data":{}}]}`,
		`decoding a directory: json: can`: `{"seq":-1}`,
	} {
		wantError(t, d.Unmarshal([]byte(data)), want)
	}
	if after := must[[]byte](t)(d.Marshal()); !bytes.Equal(before, after) {
		t.Errorf("a damaged snapshot changed %s to %s", before, after)
	}
}

func TestRevocations(t *testing.T) {
	now := epoch()
	at, past, future := now.Add(-time.Minute), now.Add(-time.Second), now.Add(time.Hour)
	var keys []string
	for range 8 {
		public, _ := newUserKey(t)
		keys = append(keys, public)
	}
	d := NewDirectory()
	apply(t, d, "user.a.denied", User{Denied: true, DeniedAt: at, Keys: []UserKey{
		{Public: keys[0], Expires: future}, {Public: keys[1]}, {Public: keys[2], Expires: past}, {Public: "no key"},
	}})
	apply(t, d, "user.a.timeless", User{Denied: true, Keys: []UserKey{{Public: keys[3]}}})
	apply(t, d, "user.a.allowed", User{Keys: []UserKey{{Public: keys[4]}}})
	apply(t, d, "user.b.denied", User{Denied: true, DeniedAt: at, Keys: []UserKey{{Public: keys[5]}}})
	apply(t, d, "user.a.gone", User{Keys: []UserKey{{Public: keys[6], Expires: future}, {Public: keys[7], Expires: past}}})
	apply(t, d, "user.a.gone", nil)
	check := func(d *Directory, want map[string]time.Time) {
		t.Helper()
		got := d.Revocations("a")
		if len(got) != len(want) {
			t.Errorf("the revocations are %v, want %v", got, want)
		}
		for k, w := range want {
			if !got[k].Equal(w) {
				t.Errorf("key %s is revoked at %v, want %v", k, got[k], w)
			}
		}
	}
	want := map[string]time.Time{keys[0]: at, keys[1]: at, keys[3]: forever(), keys[6]: forever()}
	check(d, want)

	// The key of a removed user stays revoked over a restart, and when another
	// user takes the name.
	restored := NewDirectory()
	if err := restored.Unmarshal(must[[]byte](t)(d.Marshal())); err != nil {
		t.Fatal(err)
	}
	check(restored, want)
	apply(t, d, "user.a.gone", User{})
	check(d, want)
	apply(t, d, "user.a.gone", User{Keys: []UserKey{{Public: keys[6]}}})
	delete(want, keys[6])
	check(d, want)

	a := newAuthority(t)
	if _, err := a.AccountJWT(newAccount(t, a, "a"), nil, d.Revocations("a"), Flows{}, epoch()); err != nil {
		t.Error(err)
	}
}

func TestDirectoryConcurrency(t *testing.T) {
	d := NewDirectory()
	apply(t, d, "user.a.b", User{Keys: []UserKey{{Public: "K"}}})
	data := must[[]byte](t)(d.Marshal())
	var wg sync.WaitGroup
	for _, f := range []func(i int){
		func(i int) { _ = d.Apply(uint64(i+2), "user.a.b", []byte(`{"keys":[{"public":"K"}]}`)) },
		func(int) { _ = d.Unmarshal(data) },
		func(int) { _, _ = d.Marshal() },
		func(int) { d.Users("a"); d.Roles(); d.Nodes(); d.Tokens(); d.Accounts() },
		func(int) { d.User("a", "b"); d.Role("client"); d.Node("n"); d.Token("t"); d.Account("a") },
		func(int) { d.Revocations("a"); d.Seq(); d.Version("user.a.b"); d.AccountByPublic("x") },
		func(int) { d.Flows("a"); d.Exports(""); d.Imports("a"); d.Adapters(); _ = d.CheckExport(Export{}) },
		func(int) { _, _ = d.Authenticate(Credentials{Token: "x"}, "prod", time.Time{}) },
	} {
		wg.Go(func() {
			for i := range 50 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// TestDirectoryProperty: whatever events come, a Directory survives its snapshot,
// and an event that is applied twice changes nothing.
func TestDirectoryProperty(t *testing.T) {
	subject := rapid.OneOf(
		rapid.SampledFrom([]string{"account.a", "user.a.b", "user.a.c", "role.client", "node.n", "token.t", "weather.x", "account.*", "user.a", "export.a.b", "import.a.b", "adapter.a"}),
		rapid.String(),
		rapid.StringMatching(`(account|user|role|node|token|export|import|adapter|other)\.[a-z*.]{0,6}`),
	)
	data := rapid.OneOf(
		rapid.SliceOf(rapid.Byte()),
		rapid.SampledFrom([][]byte{
			nil, []byte("{}"), []byte("null"), []byte(" [1,\n2] "), []byte(`{"x":"<&>\u2028"}`), []byte("{\"x\":\"\xff\"}"),
			[]byte(`{"keys":[{"public":"K1"},{"public":"K2","expires":"2030-01-01T00:00:00+05:30"}]}`),
			[]byte(`{"certificates":[{"sha256":"c","registered":true}]}`),
			[]byte(`{"role":"client","denied":true,"keys":[{"public":"K1"}]}`),
		}),
	)
	rapid.Check(t, func(t *rapid.T) {
		d := NewDirectory()
		for i := range rapid.IntRange(0, 30).Draw(t, "events") {
			seq, s, b := uint64(i+1), subject.Draw(t, "subject"), data.Draw(t, "data")
			_ = d.Apply(seq, s, b)
			if d.Seq() != seq {
				t.Fatalf("the sequence is %d, want %d", d.Seq(), seq)
			}
		}
		first, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		_ = d.Apply(d.Seq(), subject.Draw(t, "subject"), data.Draw(t, "data"))
		restored := NewDirectory()
		if d.Seq() == 0 {
			restored = d
		} else if err := restored.Unmarshal(first); err != nil {
			t.Fatalf("%v in %s", err, first)
		}
		if second, err := restored.Marshal(); err != nil || d.Seq() > 0 && !bytes.Equal(first, second) {
			t.Fatalf("the snapshot is %s, then %s: %v", first, second, err)
		}
		// Everything that is decoded is the same, too.
		for _, s := range []*state{&d.state, &restored.state} {
			s.records = nil
		}
		if !reflect.DeepEqual(toString(d), toString(restored)) || !reflect.DeepEqual(d.state.holders, restored.state.holders) {
			t.Fatalf("%s is not %s", toString(d), toString(restored))
		}
	})
}

// toString shows what is decoded.
func toString(d *Directory) string {
	data, err := json.Marshal([]any{
		d.state.accounts, d.state.users, d.state.roles, d.state.nodes, d.state.tokens, d.state.withdrawn,
		d.state.exports, d.state.imports, d.state.adapters, d.Flows("a"),
	})
	return strings.TrimSpace(string(data) + message(err))
}

func FuzzDirectoryApply(f *testing.F) {
	f.Add("account.a", []byte(`{"name":"a"}`))
	f.Add("user.a.b", []byte(`{"keys":[{"public":"K","expires":"2030-01-01T00:00:00Z"}]}`))
	f.Add("role.r", []byte(`{"permissions":{"publish":{"allow":[">"]},"replies":{"max":1}}}`))
	f.Add("token.t", []byte(`{"expires":"0000-01-01T00:00:00Z"}`))
	f.Add("node.n", []byte(nil))
	f.Add("other.\xff", []byte("{"))
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		d := NewDirectory()
		_ = d.Apply(1, "user.a.b", []byte(`{"keys":[{"public":"K"}]}`))
		_ = d.Apply(2, subject, data)
		if d.Seq() != 2 {
			t.Errorf("the sequence is %d", d.Seq())
		}
		first, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		restored := NewDirectory()
		if err := restored.Unmarshal(first); err != nil {
			t.Fatalf("%v in %s", err, first)
		}
		if second, err := restored.Marshal(); err != nil || !bytes.Equal(first, second) {
			t.Errorf("the snapshot is %s, then %s: %v", first, second, err)
		}
	})
}
