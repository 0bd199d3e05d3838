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

	"github.com/fleetbus/fleetbus/identity"
)

// TestBench measures a real engine and leaves nothing behind.
func TestBench(t *testing.T) {
	f := newTestFleet(t)
	creds := writeFile(t, filepath.Join(t.TempDir(), "client.creds"), f.creds(t, "acme", identity.RoleClient))
	env := []string{"FLEETBUS_CREDS=" + creds}
	code, stdout, stderr := f.run(t, "", env, "bench", "--messages", "3000", "--clients", "2", "--size", "100B", "--stream", "-o", "json")
	if code != exitOK {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	var got struct {
		Measures   []measure
		Conditions []condition
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
	if !slices.Contains(got.Conditions, condition{"messages", "3000 of 100B from 2 publishers, at most 16384 under way for each"}) {
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
		if code, _, stderr := f.run(t, "", env, strings.Fields(c.line)...); code != exitUsage || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%s: exit code %d, %s", c.line, code, stderr)
		}
	}
	if code, stdout, stderr = f.run(t, "", env, "bench", "--messages", "100"); code != exitOK || !strings.Contains(stdout, "conditions:") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

// TestBenchHouse measures everything once. It says nothing about the figures,
// but that there is one for each promise.
func TestBenchHouse(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds two programs and starts sixteen nodes")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go command is missing, which builds what is measured")
	}
	t.Setenv("TMPDIR", t.TempDir())
	a, stdout, stderr := testApp("", os.Environ()...)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if code := a.run(ctx, []string{"bench", "house", "--quick", "-o", "json"}); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	var got struct {
		Figures    []figure
		Conditions []condition
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
	if aimed != 13 || len(got.Conditions) < 10 {
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

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		q    float64
		want int
	}{{0.01, 1}, {0.5, 5}, {0.51, 6}, {0.9, 9}, {0.99, 10}, {1, 10}} {
		if got := percentile([]int{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, c.q); got != c.want {
			t.Errorf("percentile %v is %d, not %d", c.q, got, c.want)
		}
	}
	if got := percentile([]int{7}, 0.5); got != 7 {
		t.Errorf("the percentile of one is %d", got)
	}
}

func TestVersus(t *testing.T) {
	f := versus("x", "ms", []float64{2, 4, 6, 8}, []float64{1, 4, 3, 8})
	if f.Ours != 4 || f.Peer != 3 || f.Spread[0] != 1 || f.Spread[1] != 2 {
		t.Errorf("%+v", f)
	}
	if f = f.atMost(4); f.Target != "4 ms or less" || f.Verdict != "met" {
		t.Errorf("%+v", f)
	}
	if f = f.atMost(3.9); f.Verdict != "not met" {
		t.Errorf("%+v", f)
	}
	for value, want := range map[float64]string{0: "0", 0.99312: "0.993", 29.92: "29.9", 167410.4: "167410", 100: "100"} {
		if got := significant(value); got != want {
			t.Errorf("significant(%v) is %q, not %q", value, got, want)
		}
	}
}
