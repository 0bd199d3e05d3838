package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libdns/libdns"

	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
)

func settings(t testing.TB, values map[string]any) json.RawMessage {
	t.Helper()
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// zones is a server for example.test, and its provider.
func zones(t *testing.T) (*certmanagertest.DNS, *Provider) {
	t.Helper()
	d := certmanagertest.NewDNS(t, "example.test")
	p, err := New("rfc2136", settings(t, map[string]any{"server": d.Addr, "key_name": "TEST-key", "key": d.Secret}))
	if err != nil {
		t.Fatal(err)
	}
	return d, p
}

func TestTexts(t *testing.T) {
	d, p := zones(t)
	const name = "_acme-challenge.example.test"
	do := func(what func(context.Context, string, string, string) error, text string) {
		t.Helper()
		if err := what(t.Context(), "example.test", name, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Add(name + ` TXT "of somebody else"`); err != nil {
		t.Fatal(err)
	}
	do(p.Append, "apex")
	do(p.Append, "wildcard")
	do(p.Append, "wildcard")
	if got := d.TXT(name); !slices.Equal(got, []string{"of somebody else", "apex", "wildcard"}) {
		t.Fatalf("there are %q", got)
	}
	do(p.Delete, "apex")
	do(p.Delete, "apex")
	do(p.Delete, "never written")
	if got := d.TXT(name); !slices.Equal(got, []string{"of somebody else", "wildcard"}) {
		t.Fatalf("there are %q", got)
	}
	if err := p.Append(t.Context(), "other.test.", "a.other.test.", "x"); err == nil {
		t.Error("a text was written to a zone that the server does not have")
	}
}

func TestCheck(t *testing.T) {
	d, p := zones(t)
	if err := p.Check(t.Context(), "example.test"); err != nil {
		t.Fatal(err)
	}
	if d.Texts() != 0 || d.Updates() != 2 {
		t.Errorf("%d texts are left after %d updates, want 0 after 2", d.Texts(), d.Updates())
	}
	wrong, err := New("rfc2136", settings(t, map[string]any{"server": d.Addr, "key_name": "test-key", "key": "c2VjcmV0"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := wrong.Check(t.Context(), "example.test"); err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("with a wrong key: got %v", err)
	}
	if d.Texts() != 0 {
		t.Errorf("%d texts were left", d.Texts())
	}
}

func TestNew(t *testing.T) {
	const secret = "a-secret-that-nobody-shall-see"
	for _, c := range []struct {
		provider, settings string
		want               []string
	}{
		{"powerdns", `{}`, []string{`no DNS provider "powerdns"`, "cloudflare", "gandi, ", "ovh, rfc2136", "route53"}},
		{"cloudflare", `{"api_tokn": "` + secret + `"}`, []string{`no setting "api_tokn"`, "there are: api_token, zone_token", "api_token is missing: a token that may edit"}},
		{"cloudflare", `{"api_token": ["` + secret + `"]}`, []string{`"api_token" is neither`}},
		{"cloudflare", `{"api_token": "` + secret + `"} {}`, []string{"something follows"}},
		{"cloudflare", `"` + secret + `"`, []string{"no JSON object"}},
		{"cloudflare", `{"api_token": "` + secret, []string{"no JSON object"}},
		{"cloudflare", ``, []string{"api_token is missing"}},
		{"cloudflare", strings.Repeat(" ", maxSettings) + `{}`, []string{"bytes"}},
		{"rfc2136", `{"server": "ns", "key_name": "k", "key": "` + secret + `"}`, []string{"key is no base64"}},
		{"rfc2136", `{"server": "ns", "key_name": "k", "key": "YQ==", "key_alg": "md5"}`, []string{"hmac-sha256"}},
		{"acmedns", `{"server_url": "auth", "username": "u", "password": "` + secret + `", "subdomain": "s"}`, []string{"server_url is no URL"}},
	} {
		_, err := New(c.provider, json.RawMessage(c.settings))
		if err == nil {
			t.Errorf("%s with %s was made", c.provider, c.settings)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %.60s: got %v, want %q", c.provider, c.settings, err, want)
			}
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows the secret: %v", c.provider, err)
		}
	}
	for name := range optional() {
		if slices.Contains(Kinds(), name) {
			continue
		}
		if _, err := New(name, nil); err == nil || !strings.Contains(err.Error(), "build it with -tags "+name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestKinds makes every provider from what it says that it needs.
func TestKinds(t *testing.T) {
	const secret = "c2VjcmV0LXRoYXQtbm9ib2R5LXNoYWxsLXNlZQ=="
	special := map[string]string{"server_url": "https://auth.example.org", "endpoint": "ovh-eu", "server": "ns.example.org"}
	for _, kind := range Kinds() {
		known, err := Settings(kind)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]any{}
		for _, s := range known {
			if s.About == "" {
				t.Errorf("%s: nothing is said about %s", kind, s.Name)
			}
			if values[s.Name] = special[s.Name]; s.Secret {
				values[s.Name] = secret
			} else if values[s.Name] == "" {
				values[s.Name] = "text"
			}
		}
		delete(values, "key_alg")
		delete(values, "max_retries")
		p, err := New(kind, settings(t, values))
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if shown := fmt.Sprintf("%v %+v %#v %s", p, p, p, p.LogValue()); strings.Contains(shown, "c2Vj") {
			t.Errorf("%s shows its secret: %s", kind, shown)
		}
	}
	if _, err := Settings("powerdns"); err == nil {
		t.Error("there are settings of a provider that is not there")
	}
}

func TestACMEDNS(t *testing.T) {
	var mu sync.Mutex
	var got []string
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.Path+" "+r.Header.Get("X-Api-User")+" "+r.Header.Get("X-Api-Key")+" "+string(body))
		w.WriteHeader(status)
	}))
	defer server.Close()
	p, err := New("acmedns", settings(t, map[string]any{"server_url": server.URL + "/", "username": "u", "password": "p", "subdomain": "s"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Append(t.Context(), "auth.test", "s.auth.test", "text"); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), "auth.test", "s.auth.test", "text"); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(t.Context(), "auth.test"); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != `POST /update u p {"subdomain":"s","txt":"text"}` {
		t.Errorf("the server got %q", got)
	}
	mu.Lock()
	status = http.StatusUnauthorized
	mu.Unlock()
	if err := p.Check(t.Context(), "auth.test"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("refused: got %v", err)
	}
}

// A fake is a client as there are some: of records with ids, deaf to contexts, or
// failing after the fact.
type fake struct {
	mu      sync.Mutex
	records []libdns.Record
	lost    bool          // answers of AppendRecords
	hang    chan struct{} // AppendRecords waits for it
}

func (f *fake) GetRecords(context.Context, string) ([]libdns.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.records), nil
}

func (f *fake) AppendRecords(_ context.Context, _ string, records []libdns.Record) ([]libdns.Record, error) {
	if f.hang != nil {
		<-f.hang
	}
	if len(records) == 0 || records[0].RR().Data == "panic" {
		panic("an answer without records")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var added []libdns.Record
	for _, r := range records {
		txt := r.(libdns.TXT)
		for _, there := range f.records {
			if there.RR().Data == txt.Text {
				return nil, errors.New("an identical record is there")
			}
		}
		txt.ProviderData = len(f.records) + 1
		f.records, added = append(f.records, txt), append(added, txt)
	}
	if f.lost {
		return nil, errors.New("the answer was lost")
	}
	return added, nil
}

func (f *fake) DeleteRecords(_ context.Context, _ string, records []libdns.Record) ([]libdns.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		txt := r.(libdns.TXT)
		if txt.ProviderData == nil {
			return nil, errors.New("it has no id")
		}
		f.records = slices.DeleteFunc(f.records, func(o libdns.Record) bool { return o.(libdns.TXT).ProviderData == txt.ProviderData })
	}
	return nil, nil
}

func fakeProvider(f *fake) *Provider {
	return &Provider{name: "fake", kind: kind{lists: true, ttl: time.Minute}, client: f, places: make(chan struct{}, atOnce), written: map[string]libdns.Record{}}
}

func TestQuirks(t *testing.T) {
	f := &fake{}
	p, ctx := fakeProvider(f), t.Context()
	const zone, name = "example.test", "_acme-challenge.example.test"
	steps := func(all ...error) {
		t.Helper()
		if err := errors.Join(all...); err != nil {
			t.Fatal(err)
		}
	}
	steps(p.Append(ctx, zone, name, "a"), p.Append(ctx, zone, name, "a"), p.Append(ctx, zone, name, "b"), p.Delete(ctx, zone, name, "a"))
	if len(f.records) != 1 || f.records[0].RR().Data != "b" {
		t.Fatalf("there are %v, want b", f.records)
	}
	// Another process removes what this one wrote.
	p = fakeProvider(f)
	steps(p.Delete(ctx, zone, name, "b"), p.Delete(ctx, zone, name, "b"))
	f.lost = true
	steps(p.Append(ctx, zone, name, "c"), p.Delete(ctx, zone, name, "c"))
	if len(f.records) != 0 {
		t.Fatalf("there are %v, want none", f.records)
	}
	steps(p.Append(ctx, zone, name, "d"), p.Delete(ctx, zone, name, "d"))
	if err := p.Append(ctx, zone, name, "panic"); err == nil || !strings.Contains(err.Error(), "an answer without records") {
		t.Errorf("a client that panics: got %v", err)
	}
	f.lost, f.hang = false, make(chan struct{})
	bounded, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := p.Append(bounded, zone, name, "e"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("a client that hangs: got %v after %v", err, time.Since(start))
	}
	close(f.hang)
}

func FuzzSettings(f *testing.F) {
	f.Add(`{"api_token": "x"}`)
	f.Add(`{"a": {"b": 1}}`)
	f.Add(`{"a": 1e999, "b": true} `)
	f.Fuzz(func(t *testing.T, text string) {
		if values, err := decode(json.RawMessage(text)); err == nil && values == nil {
			t.Error("neither values nor an error")
		}
	})
}
