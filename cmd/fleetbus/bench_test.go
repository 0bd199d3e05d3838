package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/bench"
)

// TestBench measures a real engine and leaves nothing behind.
func TestBench(t *testing.T) {
	f := newTestFleet(t)
	creds := writeFile(t, filepath.Join(t.TempDir(), "client.creds"), f.creds(t, "acme", identity.RoleClient))
	env := []string{"FLEETBUS_CREDS=" + creds}
	code, stdout, stderr := f.run(t, "", env, "bench", "--messages", "3000", "--clients", "2", "--size", "100B", "--stream", "-o", "json")
	if code != command.ExitOK {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	var got struct {
		Measures   []bench.Measure
		Conditions []bench.Condition
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"publish and subscribe", "request and echo", "stored, one by one", "stored, pipelined"} {
		if len(got.Measures) <= i || got.Measures[i].Name != name {
			t.Fatalf("measures %+v", got.Measures)
		}
		m := got.Measures[i]
		if m.PerSecond <= 0 && (m.P50 <= 0 || m.P50 > m.P90 || m.P90 > m.P99 || m.P99 > m.Max) {
			t.Errorf("%+v", m)
		}
	}
	if !slices.Contains(got.Conditions, bench.Condition{Name: "messages", Value: "3000 of 100B from 2 publishers, at most 16384 under way for each"}) {
		t.Errorf("conditions %+v", got.Conditions)
	}
	nc := must[*nats.Conn](t)(f.broker.Connect(f.service(t, "acme")...))
	defer nc.Close()
	js := must[jetstream.JetStream](t)(jetstream.New(nc))
	for name := range js.StreamNames(t.Context()).Name() {
		t.Errorf("stream %q is left", name)
	}

	for _, c := range []struct{ line, stderr string }{
		{"bench --messages 0", "have to be above 0"},
		{"bench --size 2MiB", "the server takes messages of 1MiB at most"},
		{"bench all", `unexpected argument "all"`},
		{"bench house --creds x", "unknown flag"},
	} {
		if code, _, stderr := f.run(t, "", env, strings.Fields(c.line)...); code != command.ExitUsage || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%s: exit code %d, %s", c.line, code, stderr)
		}
	}
	if code, stdout, stderr = f.run(t, "", env, "bench", "--messages", "100"); code != command.ExitOK || !strings.Contains(stdout, "conditions:") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

// TestBenchHouse measures everything once. It says nothing about the figures,
// but that there is one for each promise.
func TestBenchHouse(t *testing.T) {
	testFigures(t, "house", 13, 10)
}

// TestBenchCertificates is the same, of certificates.
func TestBenchCertificates(t *testing.T) { testFigures(t, "certificates", 9, 10) }

// TestBenchScale is the same, of very many clients, with few.
func TestBenchScale(t *testing.T) { testFigures(t, "scale", 4, 9, "--clients", "200") }

// testFigures measures everything once, and expects as many figures with a target, and
// as many conditions or more.
func testFigures(t *testing.T, verb string, figures, conditions int, flags ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("it builds programs and starts many nodes")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go command is missing, which builds what is measured")
	}
	t.Setenv("TMPDIR", t.TempDir())
	a, stdout, stderr := testApp("", os.Environ()...)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if code := run(ctx, a, append([]string{"bench", verb, "--quick", "-o", "json"}, flags...)); code != command.ExitOK {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	var got struct {
		Figures    []bench.Figure
		Conditions []bench.Condition
	}
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	aimed := 0
	for _, f := range got.Figures {
		t.Logf("%+v", f)
		if f.Verdict != "" {
			aimed++
		}
		if f.Ours == 0 && f.Target != "0" {
			t.Errorf("%s: nothing was measured", f.Name)
		}
	}
	if aimed != figures || len(got.Conditions) < conditions {
		t.Errorf("%d figures with a target, %d conditions", aimed, len(got.Conditions))
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if strings.HasPrefix(entry.Name(), "fleetbus-bench-") {
			t.Errorf("%s is left", entry.Name())
		}
	}
}
