package probe_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change/sse"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/metrics"
	"github.com/fleetbus/fleetbus/metrics/collector"
	"github.com/fleetbus/fleetbus/probe"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// A watcher asks a node.
type watcher struct {
	*http.Client
	base, user, password string
}

func (w watcher) ask(ctx context.Context, path string) (code int, body string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+path, nil)
	if err != nil {
		return 0, "", err
	}
	if w.user != "" {
		r.SetBasicAuth(w.user, w.password)
	}
	answer, err := w.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

func (w watcher) get(t *testing.T, path string) (int, string) {
	t.Helper()
	code, body, err := w.ask(within(t), path)
	if err != nil {
		t.Fatal(err)
	}
	return code, body
}

// families reads what a node tells.
func (w watcher) families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	code, text := w.get(t, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("the node answered %d: %s", code, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// value is that of the sample with those labels, name and value in turn.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) (v float64, ok bool) {
	for _, m := range families[name].GetMetric() {
		have := map[string]string{}
		for _, l := range m.Label {
			have[l.GetName()] = l.GetValue()
		}
		same := true
		for i := 0; i < len(labels); i += 2 {
			same = same && have[labels[i]] == labels[i+1]
		}
		if same {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue(), true
		}
	}
	return 0, false
}

// until asks again until a sample has a value.
func (w watcher) until(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	fleetbustest.Eventually(t, name, func() error {
		if v, ok := value(w.families(t), name, labels...); !ok || v != want {
			return fmt.Errorf("%s%q is %v, and is to be %v", name, labels, v, want)
		}
		return nil
	})
}

func start(t *testing.T, edit ...func(*fleetbus.Options)) (s *fleetbustest.Server, open, closed watcher) {
	t.Helper()
	s = fleetbustest.Start(t, append([]func(*fleetbus.Options){func(o *fleetbus.Options) {
		o.Accounts = []string{"acme", "lab"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners,
			fleetbus.Listener{Name: "sse", Addr: "127.0.0.1:0", Protocol: &sse.Protocol{}},
			fleetbus.Listener{Name: "metrics", Addr: "127.0.0.1:0", Protocol: &probe.Protocol{}},
			fleetbus.Listener{Name: "local", Addr: "127.0.0.1:0", Plaintext: true, Protocol: &probe.Protocol{}})
	}}, edit...)...)
	return s, watcher{Client: web(t, nil), base: "http://" + s.Addr("local").String()}, watcher{Client: web(t, s.TLS()), base: "https://" + s.Addr("metrics").String()}
}

func web(t *testing.T, config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestWhoSees has everybody ask for health, and those of the role alone for metrics.
func TestWhoSees(t *testing.T) {
	s, _, w := start(t)
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/startupz", "/readyz?verbose"} {
		if code, body := w.get(t, path); code != http.StatusOK || !strings.HasSuffix(body, "ok\n") || strings.Contains(body, s.Founded().Fleet) {
			t.Errorf("%s is %d: %s", path, code, body)
		}
	}
	if code, _ := w.get(t, "/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("a path that is not there is %d", code)
	}
	if code, body := w.get(t, "/metrics"); code != http.StatusUnauthorized || strings.Contains(body, "fleetbus_") {
		t.Errorf("metrics without credentials are %d: %s", code, body)
	}
	as := func(name, role string) watcher {
		one := w
		one.user, one.password = name, s.Password(admin.UserRequest{Name: name, Role: role})
		return one
	}
	if code, body := as("acme/web", "client").get(t, "/metrics"); code != http.StatusForbidden || strings.Contains(body, "fleetbus_") {
		t.Errorf("metrics for a client are %d: %s", code, body)
	}
	s.Dial("acme", "someone")
	all := as(identity.FleetName+"/prometheus", identity.RoleMetrics)
	all.until(t, 1, "fleetbus_connections", "listener", "nats", "account", "acme")
	if families := all.families(t); families["fleetbus_node_info"] == nil || families["fleetbus_findings"] == nil {
		t.Error("the fleet's own watcher does not see the node")
	}
	for name, family := range as("acme/grafana", identity.RoleMetrics).families(t) {
		for _, m := range family.Metric {
			if !slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == "account" && l.GetValue() == "acme" }) {
				t.Errorf("a watcher of acme sees %s %v", name, m)
			}
		}
	}
	// Who may read the metrics of nodes may do nothing else in the fleet's account.
	nc, err := s.Connect(s.MoreCreds(identity.FleetName, "prometheus"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, subject := range []string{"$JS.API.STREAM.NAMES", admin.Prefix + "status"} {
		if err := errors.Join(nc.Publish(subject, nil), nc.Flush()); err != nil {
			t.Fatal(err)
		}
		if err := nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), subject) {
			t.Errorf("a watcher may ask %s: %v", subject, err)
		}
	}
}

func TestPlaintext(t *testing.T) {
	for _, addr := range []string{":9422", "192.0.2.1:9422"} {
		o := fleetbus.Options{Listeners: []fleetbus.Listener{{Name: "metrics", Addr: addr, Plaintext: true, Protocol: &probe.Protocol{}}}}
		var problem *fleetbus.OptionError
		if err := o.Validate(); !errors.As(err, &problem) || problem.Field != "listeners.metrics.plaintext" {
			t.Errorf("metrics without TLS on %s: %v", addr, err)
		}
	}
	o := fleetbus.Options{Listeners: []fleetbus.Listener{{Name: "metrics", Addr: ":9422", Account: "acme", Plaintext: true, Protocol: &probe.Protocol{}}}}
	if err := o.Validate(); err == nil {
		t.Error("strangers may watch a node")
	}
}

// TestMetrics holds what a node tells to the table, to the linter and to what happened.
func TestMetrics(t *testing.T) {
	s, w, _ := start(t)
	nc := s.Dial("acme", "sender")
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CreateConsumer(within(t), jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := js.Publish(within(t), "orders.new", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	w.until(t, 3, "fleetbus_stream_messages", "account", "acme", "stream", "ORDERS")
	w.until(t, 3, "fleetbus_consumer_pending_messages", "account", "acme", "stream", "ORDERS", "consumer", "billing")
	w.until(t, 1, "fleetbus_connections", "listener", "nats", "account", "acme")

	// A session of another protocol is that listener's, and not the engine's.
	password := s.Password(admin.UserRequest{Name: "acme/web", Role: "client"})
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.Addr("sse").String()+"/changes/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("acme/web", password)
	answer, err := web(t, s.TLS()).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	w.until(t, 1, "fleetbus_connections", "listener", "sse", "account", "acme")
	w.until(t, 1, "fleetbus_connections", "listener", "nats", "account", "acme")
	cancel()
	w.until(t, 1, "fleetbus_connections_closed_total", "listener", "sse", "account", "acme", "reason", "client_closed")

	if _, err := nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.UserInfo("acme/web", "wrong")); err == nil {
		t.Fatal("a wrong password was taken")
	}
	w.until(t, 1, "fleetbus_auth_failures_total", "listener", "nats", "reason", "password")
	nc.Close()
	w.until(t, 1, "fleetbus_connections_closed_total", "listener", "nats", "account", "acme", "reason", "client_closed")
	w.until(t, 0, "fleetbus_connections", "listener", "nats", "account", "acme")

	_, text := w.get(t, "/metrics")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, secret := range []string{password, "eyJ", "PRIVATE KEY", "$argon2id"} {
		if strings.Contains(text, secret) {
			t.Errorf("the metrics have %q", secret)
		}
	}
	if v, ok := value(w.families(t), "fleetbus_ready", "condition", "streams"); !ok || v != 1 {
		t.Error("a node that serves is not ready")
	}

	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector.New(t.Context(), s.Server))
	if gathered, err := registry.Gather(); err != nil || len(gathered) < 30 {
		t.Errorf("the Collector has %d families: %v", len(gathered), err)
	}
}

// TestDraining has a node that stops say so to the end.
func TestDraining(t *testing.T) {
	s, w, _ := start(t, func(o *fleetbus.Options) { o.Grace = 2 * time.Second })
	nc := s.Dial("acme", "someone", nats.MaxReconnects(-1))
	defer nc.Close()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.Stop()
	}()
	seen := false
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline) && !seen; {
		code, body, err := w.ask(within(t), "/readyz?verbose")
		if err != nil {
			break
		}
		seen = code == http.StatusServiceUnavailable && strings.Contains(body, "FAIL serving: the node drains")
		if live, _, err := w.ask(within(t), "/livez"); seen && err == nil && live != http.StatusOK {
			t.Errorf("a node that drains is not alive: %d", live)
		}
	}
	if !seen {
		t.Error("a node that drains did not say that it is not ready")
	}
	<-stopped
}

// notReady is a node of which one condition does not hold.
type notReady struct{ name string }

func (n notReady) Metrics(context.Context) []metrics.Sample { return nil }

func (n notReady) Conditions() []metrics.Condition {
	all := []metrics.Condition{{Name: "started", Counts: true}, {Name: "state", Counts: true}, {Name: "streams", Counts: true}, {Name: "quorum"}}
	for i := range all {
		all[i].Holds = all[i].Name != n.name
		all[i].Why = "because"
	}
	return all
}

func TestConditions(t *testing.T) {
	for _, c := range []struct {
		fails, path string
		code        int
	}{
		{"", "/readyz", 200}, {"state", "/readyz", 503}, {"streams", "/readyz", 503}, {"quorum", "/readyz", 200},
		{"streams", "/readyz?exclude=streams", 200}, {"state", "/readyz?exclude=streams", 503},
		{"streams", "/startupz", 200}, {"state", "/startupz", 503}, {"started", "/livez", 200},
	} {
		p := &probe.Protocol{}
		p.Watch(notReady{c.fails})
		ln := newListener(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Serve(ctx, ln, nil) }()
		w := watcher{Client: web(t, nil), base: "http://" + ln.Addr().String()}
		if code, body := w.get(t, c.path); code != c.code {
			t.Errorf("without %q %s is %d: %s", c.fails, c.path, code, body)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	s := fleetbustest.Start(b, func(o *fleetbus.Options) {
		for i := range 200 {
			o.Accounts = append(o.Accounts, fmt.Sprintf("a%d", i))
		}
	})
	var text bytes.Buffer
	for b.Loop() {
		text.Reset()
		if err := metrics.Write(&text, s.Metrics(b.Context())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(text.Len()), "bytes/scrape")
}
