package certmanager

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestParseSettings(t *testing.T) {
	types := []string{"acme", "private"}
	good := `{"issuers":[{"name":"le","type":"acme","directory":"https://acme.example/dir","email":"a@example.org","eab":{"kid":"1","hmac_key":"2"},"profile":"shortlived"},
		{"name":"own","type":"private","life":"720h"}],
		"dns":[{"name":"r53","provider":"route53","settings":{"region":"eu","any":{"thing":[1]}}}],
		"defaults":{"issuers":["le"],"challenge":{"type":"dns-01","provider":"r53"},"key_type":"p384","waves":"all"},
		"dead_man":{"url":"https://alive.example/1","method":"GET","every":"10m"},"alert_days":10}`
	if _, err := ParseSettings([]byte(good), types); err != nil {
		t.Error(err)
	}
	bad := `{"issuer":[],"issuers":[{"name":"a b","type":"acme","directory":"ftp://x"},{"name":"x","type":"magic"},{"name":"x","type":"private","life":"soon","eab":{}},
		{"name":3,"per_hour":1.5}],"dns":[{"name":"d"}],"defaults":{"issuers":["none"],"challenge":{"type":"smoke","provider":"none"},"key_type":"dsa","waves":"tidal"},
		"recovery":["age1nothing"],"dead_man":{"url":"no","method":"PUT"},"alert_days":"ten"}`
	_, err := ParseSettings([]byte(bad), types)
	var p Problems
	if !errors.As(err, &p) || !slices.Equal(p, []string{
		"alert_days: it must be a whole number",
		"issuer: unknown key; these are known: alert_days dead_man defaults dns former issuers recovery",
		"issuers[3].name: it must be a text", "issuers[3].per_hour: it must be a whole number",
	}) {
		t.Errorf("%q", p)
	}
	bad = strings.NewReplacer(`"issuer":[],`, "", `"alert_days":"ten"`, `"alert_days":-1`, `{"name":3,"per_hour":1.5}`, `{"name":"y","type":"private","per_hour":-1}`).Replace(bad)
	_, err = ParseSettings([]byte(bad), types)
	if !errors.As(err, &p) {
		t.Fatal(err)
	}
	for _, part := range []string{
		"issuers[0].name", "issuers[0].directory", "issuers[1].type", "issuers[2].name: there are two", "issuers[2].life", "issuers[2].eab", "issuers[3].per_hour",
		"dns[0].provider", "defaults.issuers[0]", "defaults.challenge.type", "defaults.challenge.provider", "defaults.key_type", "defaults.waves",
		"recovery[0]", "dead_man.url", "dead_man.method", "alert_days",
	} {
		if !slices.ContainsFunc(p, func(text string) bool { return strings.HasPrefix(text, part) }) {
			t.Errorf("no problem with %s among %q", part, p)
		}
	}
	for _, text := range []string{"", "[]", "null", "{}", `{"issuers":{}}`, good + "{}", `{"issuers":[null]}`, `{"issuers":[{"name":"a","type":"private"}],"dns":[{"name":"d","provider":"x","settings":null}]}x`} {
		if _, err := ParseSettings([]byte(text), types); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add([]byte(`{"issuers":[{"name":"a","type":"private"}]}`))
	f.Add([]byte(`{"issuers":[{"name":1e99,"eab":[]}],"recovery":["age1"],"dns":[{"settings":{}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSettings(data, []string{"private"})
		if (s == nil) != (err != nil) {
			t.Errorf("%v %v", s, err)
		}
	})
}

func FuzzParseChain(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		if chain, err := parseChain(text); err == nil && len(chain) == 0 {
			t.Error("an empty chain")
		}
		_, _ = parsePEMKey(text) // must not panic
	})
}

// Secrets stay over a change of the configuration, and who recovers it can read it.
func TestConfig(t *testing.T) {
	w := newWorld(t)
	m, _ := w.run(w.options("m1"))
	wantFinding(t, m, CodeNoConfig, "there is no configuration")
	c := w.client()
	if _, err := c.UpdateConfig(within(t), []byte(`{"issuers":[{"nam":"fake"}]}`)); !errors.Is(err, &admin.Error{Code: admin.Invalid}) || !strings.Contains(err.Error(), "issuers[0].nam: unknown key") {
		t.Error(err)
	}
	if _, err := c.UpdateConfig(within(t), []byte(`{`)); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Error(err)
	}
	reply, err := c.UpdateConfig(within(t), []byte(fakeConfig))
	if err != nil || reply.Warning == "" || reply.Revision != 1 {
		t.Fatalf("%+v %v", reply, err)
	}
	wantFinding(t, m, CodeNoRecovery, "nobody can read")
	if _, err := c.Make(within(t), MakeRequest{Policy: cert.Policy{Names: []string{"a.example.org"}}, Wait: true}); err != nil {
		t.Fatal(err)
	}
	before, err := c.Config(within(t))
	if err != nil || !strings.HasPrefix(before.Settings.Issuers[0].Secret, "secret ") {
		t.Fatalf("%+v %v", before, err)
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimSuffix(fakeConfig, "}") + `,"recovery":["` + identity.Recipient().String() + `"]}`
	if reply, err := c.UpdateConfig(within(t), []byte(text)); err != nil || reply.Warning != "" {
		t.Fatalf("%+v %v", reply, err)
	}
	after, err := c.Config(within(t))
	if err != nil || after.Settings.Issuers[0].Secret != before.Settings.Issuers[0].Secret {
		t.Errorf("%+v %v", after, err)
	}
	var record *cert.Config
	await.Nil(t, "the record is here", func() error {
		var ok bool
		if record, ok = w.state.Config(); !ok || len(record.Recovery) == 0 {
			return errors.New("it is not sealed to who recovers it")
		}
		return nil
	})
	r, err := age.Decrypt(bytes.NewReader(record.Recovery), identity)
	if err != nil {
		t.Fatal(err)
	}
	recovered, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(recovered), before.Settings.Issuers[0].Secret) {
		t.Errorf("%s %v", recovered, err)
	}
	if bytes.Contains(record.Recovery, []byte("secret ")) || bytes.Contains(record.Managers.Ciphertext, []byte("secret ")) {
		t.Error("the secret can be read")
	}
}

// An issuer that is left out of a configuration is what it was when it comes back, unless
// it was to be forgotten.
func TestFormerIssuers(t *testing.T) {
	secrets := func(s *Settings) (all []string) {
		for _, i := range slices.Concat(s.Issuers, s.Former) {
			all = append(all, i.Name+i.Directory+" "+i.Secret)
		}
		return all
	}
	now := &Settings{}
	for i, step := range []struct {
		config string
		want   []string
	}{
		{`{"issuers":[{"name":"own","type":"private"},{"name":"le","type":"acme","directory":"https://staging"}]}`, []string{"own ", "lehttps://staging "}},
		{`{"issuers":[{"name":"own","type":"private","secret":"root"},{"name":"le","type":"acme","directory":"https://staging","secret":"s"}]}`, []string{"own root", "lehttps://staging s"}},
		{`{"issuers":[{"name":"le","type":"acme","directory":"https://prod"}]}`, []string{"lehttps://prod ", "own root", "lehttps://staging s"}},
		{`{"issuers":[{"name":"le","type":"acme","directory":"https://staging"}]}`, []string{"lehttps://staging s", "own root"}},
		{`{"issuers":[{"name":"own","type":"private"},{"name":"le","type":"acme","directory":"https://staging"}]}`, []string{"own root", "lehttps://staging s"}},
		{`{"issuers":[{"name":"le","type":"acme","directory":"https://staging"}],"former":[]}`, []string{"lehttps://staging s", "own root"}},
		{`{"issuers":[{"name":"le","type":"acme","directory":"https://staging"}],"former":[]}`, []string{"lehttps://staging s"}},
		{`{"issuers":[{"name":"own","type":"private"}],"former":[{"name":"own","type":"private","secret":"of a copy"}]}`, []string{"own of a copy", "lehttps://staging s"}},
	} {
		next, err := ParseSettings([]byte(step.config), []string{"acme", "private"})
		if err != nil {
			t.Fatal(err)
		}
		next.keepSecrets(now)
		if got := secrets(next); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
		now = next
	}
	w := newWorld(t)
	w.run(w.options("m1"))
	c := w.client()
	for i, config := range []string{fakeConfig, `{"issuers":[{"name":"second","type":"second"}]}`, fakeConfig} {
		if _, err := c.UpdateConfig(within(t), []byte(config)); err != nil {
			t.Fatal(err)
		}
		w.make("default", cert.Policy{Names: []string{fmt.Sprintf("n%d.example.org", i)}})
	}
	if reply, err := c.Config(within(t)); err != nil || len(reply.Settings.Former) != 1 || reply.Settings.Former[0].Name != "second" {
		t.Errorf("%+v %v", reply, err)
	}
}
