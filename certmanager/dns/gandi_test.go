package dns

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libdns/gandi"
	"github.com/libdns/libdns"
)

// A liveDNS is an API as Gandi's: it has texts in quotes.
type liveDNS struct {
	mu     sync.Mutex
	values []string
}

// RoundTrip takes the place of the network.
func (l *liveDNS) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	answer := func(status int, body any) (*http.Response, error) {
		text, err := json.Marshal(body)
		return &http.Response{
			StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
			Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(text))),
		}, err
	}
	const domain = "https://api.gandi.net/v5/livedns/domains/example.test"
	switch url := r.URL.String(); {
	case url == domain:
		return answer(200, map[string]string{"fqdn": "example.test", "domain_records_href": domain + "/records"})
	case r.Method == http.MethodPut:
		var set struct {
			Values []string `json:"rrset_values"`
		}
		if err := json.NewDecoder(r.Body).Decode(&set); err != nil {
			return nil, err
		}
		l.values = nil
		for _, v := range set.Values {
			l.values = append(l.values, `"`+unquoted(v)+`"`)
		}
		return answer(201, map[string]string{"message": "DNS Record Created"})
	case r.Method == http.MethodDelete:
		l.values = nil
		return answer(204, nil)
	case len(l.values) == 0 && r.URL.String() == domain+"/records":
		return answer(200, []any{})
	case len(l.values) == 0:
		return answer(404, map[string]any{"code": 404, "message": "Can't find the DNS record"})
	}
	set := map[string]any{"rrset_name": "_acme-challenge", "rrset_type": "TXT", "rrset_ttl": 300, "rrset_values": l.values}
	if strings.HasSuffix(r.URL.Path, "/records") {
		return answer(200, []any{set})
	}
	return answer(200, set)
}

// TestGandi replaces the transport of the process, which that library uses.
func TestGandi(t *testing.T) {
	api := &liveDNS{}
	before := http.DefaultClient.Transport
	http.DefaultClient.Transport = api
	defer func() { http.DefaultClient.Transport = before }()
	p, err := New("gandi", settings(t, map[string]any{"bearer_token": "x"}))
	if err != nil {
		t.Fatal(err)
	}
	const zone, name = "example.test", "_acme-challenge.example.test"
	for _, text := range []string{"apex", "wildcard"} {
		if err := p.Append(t.Context(), zone, name, text); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(api.values, []string{`"apex"`, `"wildcard"`}) {
		t.Fatalf("there are %q", api.values)
	}
	for _, text := range []string{"apex", "apex", "wildcard", "wildcard"} {
		if err := p.Delete(t.Context(), zone, name, text); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(api.values, `"`+text+`"`) {
			t.Errorf("%s is still there", text)
		}
		if text == "apex" && !slices.Contains(api.values, `"wildcard"`) {
			t.Error("the other text was removed, too")
		}
	}
	// Without the wrapper one of two would stay.
	bare := &gandi.Provider{BearerToken: "x"}
	api.values = []string{`"apex"`, `"wildcard"`}
	if _, err := bare.DeleteRecords(t.Context(), zone, []libdns.Record{libdns.TXT{Name: "_acme-challenge", TTL: time.Minute, Text: "apex"}}); err != nil || len(api.values) != 2 {
		t.Errorf("the library removes the right text now: %q, %v", api.values, err)
	}
}
