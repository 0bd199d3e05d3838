package trace_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/trace"
)

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestParse(t *testing.T) {
	c, ok := trace.Parse(parent)
	if !ok || !c.Sampled || c.String() != parent {
		t.Errorf("%q became %q, %v", parent, c, ok)
	}
	if next := c.Next(); next.Trace != c.Trace || next.Span == c.Span {
		t.Errorf("after %v comes %v", c, next)
	}
	if c, ok := trace.Parse(strings.Replace(parent, "00-", "01-", 1) + "-more"); !ok || c.String() != parent {
		t.Errorf("a later version became %v, %v", c, ok)
	}
	for _, wrong := range []string{
		"", parent[:54], parent + "0", parent + "-more", strings.ToUpper(parent), strings.Replace(parent, "00-", "ff-", 1), strings.Replace(parent, "4bf9", "4bg9", 1),
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", "01" + parent[2:] + strings.Repeat("x", 9),
	} {
		if c, ok := trace.Parse(wrong); ok {
			t.Errorf("%q became %v", wrong, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(parent)
	f.Add("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x")
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := trace.Parse(s)
		if !ok {
			return
		}
		if again, ok := trace.Parse(c.String()); !ok || again != c {
			t.Errorf("%q became %v and then %v", s, c, again)
		}
	})
}

// A receiver is a collector of OTLP over HTTP.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	headers []http.Header
	spans   []map[string]any
	got     chan struct{}
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{got: make(chan struct{}, 1000)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var in struct {
			ResourceSpans []struct {
				Resource   struct{ Attributes []any }
				ScopeSpans []struct{ Spans []map[string]any }
			}
		}
		if err != nil || json.Unmarshal(body, &in) != nil || req.URL.Path != "/v1/traces" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.headers = append(r.headers, req.Header)
		for _, resource := range in.ResourceSpans {
			for _, scope := range resource.ScopeSpans {
				for _, s := range scope.Spans {
					r.spans = append(r.spans, s)
					r.got <- struct{}{}
				}
			}
		}
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(r.Close)
	return r
}

func TestExporter(t *testing.T) {
	r := newReceiver(t)
	env := map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": r.URL + "/", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20secret",
		"OTEL_SERVICE_NAME": "bus", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test, host.name=n1",
	}
	o, wanted, err := trace.FromEnv(func(name string) string { return env[name] })
	if err != nil || !wanted || o.Service != "bus" || o.Attributes["host.name"] != "n1" {
		t.Fatalf("the options are %+v, %v, %v", o, wanted, err)
	}
	e, err := trace.NewExporter(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.Run(ctx)
	}()
	from, _ := trace.Parse(parent)
	span := trace.Span{Context: from.Next(), Parent: from.Span, State: "a=b", Name: "receive acme", Kind: trace.Consumer,
		Began: time.Unix(1, 5), Ended: time.Unix(2, 0), Attributes: map[string]string{"x": "\xff"}, Failed: "no"}
	e.Record(span)
	<-r.got
	e.Record(span)
	cancel() // what waits is told first
	<-r.got
	<-ended
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.spans[0]
	for name, want := range map[string]any{
		"traceId": "4bf92f3577b34da6a3ce929d0e0e4736", "parentSpanId": "00f067aa0ba902b7", "traceState": "a=b", "name": "receive acme", "kind": 5.0,
		"startTimeUnixNano": "1000000005", "endTimeUnixNano": "2000000000",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, and not %v", name, got[name], want)
		}
	}
	if got["spanId"] == "00f067aa0ba902b7" || len(got["spanId"].(string)) != 16 || got["status"].(map[string]any)["code"] != 2.0 {
		t.Errorf("the span is %v", got)
	}
	if h := r.headers[0]; h.Get("Authorization") != "Bearer secret" || h.Get("Content-Type") != "application/json" {
		t.Errorf("the headers are %v", h)
	}
	if e.Lost() != 0 {
		t.Errorf("%d spans are lost", e.Lost())
	}
}

func TestUnwanted(t *testing.T) {
	for _, env := range []map[string]string{{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}} {
		if _, wanted, err := trace.FromEnv(func(name string) string { return env[name] }); wanted || err != nil {
			t.Errorf("%v wants traces: %v", env, err)
		}
	}
	_, _, err := trace.FromEnv(func(name string) string { return "secret" })
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("wrong headers: %v", err)
	}
	for _, endpoint := range []string{"", "localhost:4318", "ftp://x"} {
		if _, err := trace.NewExporter(trace.Options{Endpoint: endpoint}); err == nil {
			t.Errorf("spans go to %q", endpoint)
		}
	}
}

// TestAway has a collector that is not there, or refuses: nobody waits, and what is lost
// is counted.
func TestAway(t *testing.T) {
	r := httptest.NewServer(http.NotFoundHandler())
	defer r.Close()
	e, err := trace.NewExporter(trace.Options{Endpoint: r.URL, Headers: map[string]string{"x-key": "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Export(t.Context(), []trace.Span{{Context: trace.New()}}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("the collector refused: %v", err)
	}
	for range 10_000 {
		e.Record(trace.Span{Context: trace.New()})
	}
	if e.Lost() == 0 {
		t.Error("there was room for everything")
	}
}
