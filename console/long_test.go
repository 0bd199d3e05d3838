//go:build long

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/diagnose"
	ports "github.com/fleetbus/fleetbus/internal/loopback"
)

// alarms are what was said of a fleet that is well, with how often and when first.
type alarms struct {
	t     *testing.T
	began time.Time
	quiet atomic.Bool
	mu    sync.Mutex
	all   map[string]int
	// late is when this process was last held up for longer than tolerance, most the
	// longest of it.
	late time.Time
	most time.Duration
}

// tolerance is for how long the machine may do something else. What is said while it does,
// and for a while after, is no fault of who says it: a node that does not run is away.
const tolerance, after = time.Second, 15 * time.Second

// clock watches whether the machine lets this process run.
func (a *alarms) clock(ctx context.Context) {
	for last := time.Now(); each(ctx, 100*time.Millisecond); last = time.Now() {
		if d := time.Since(last); d > tolerance {
			a.mu.Lock()
			a.late, a.most = time.Now(), max(a.most, d)
			a.mu.Unlock()
		}
	}
}

// heldUp marks what was said while the machine did something else.
const heldUp = "(held up) "

// say notes something that should not have been said.
func (a *alarms) say(format string, args ...any) {
	if a.quiet.Load() {
		return
	}
	text := fmt.Sprintf(format, args...)
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.late) < after {
		text = heldUp + text
	}
	if a.all[text]++; a.all[text] == 1 {
		a.t.Logf("after %v: %s", time.Since(a.began).Round(time.Second), text)
	}
}

// TestLong has a fleet of three work for FLEETBUS_TEST_LONG, or half an hour, and asks each
// node again and again: by the doctor, by its status, and by its console. None of them may
// find anything but what is true of the machine.
func TestLong(t *testing.T) {
	text := cmp.Or(os.Getenv("FLEETBUS_TEST_LONG"), "30m")
	long, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	all := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		dir, err := os.MkdirTemp("/var/tmp", "fleetbus-*") // a disk in memory is a finding
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		o.Dir, o.Limits.Connections, o.Grace = filepath.Join(dir, "data"), 1000, 100*time.Millisecond
		o.Accounts = []string{"acme"}
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "console", Addr: ports.Addr(t), Protocol: &Protocol{}})
	})
	offline := filepath.Join(all[0].Options.Dir, "offline")
	if err := os.Rename(offline, offline+"-moved"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	said := &alarms{t: t, began: time.Now(), all: map[string]int{}}
	said.quiet.Store(true)
	fleetbustest.Eventually(t, "a fleet that is well", func() error {
		if wrong := wrongs(doctor.Fold(diagnose.Judge(diagnose.Gather(ctx, all[0].Admin())))); len(wrong) > 0 {
			return fmt.Errorf("%q", wrong)
		}
		return nil
	})
	running.Go(func() { said.clock(ctx) })
	var told, examined atomic.Int64
	for _, s := range all {
		lines, err := follow(ctx, loginURL(t, s, "FLEET/admin"), "fleet")
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			for lines.Scan() && ctx.Err() == nil {
				for key, row := range redOf(lines.Text()) {
					said.say("the console of %s says %s: %s", s.Options.Name, key, row)
				}
				told.Add(1)
			}
			if ctx.Err() == nil {
				said.say("the console of %s ended: %v", s.Options.Name, lines.Err())
			}
		})
		c := s.Admin()
		running.Go(func() {
			for each(ctx, 4*time.Second) {
				within, done := context.WithTimeout(ctx, 30*time.Second)
				facts := diagnose.Gather(within, c)
				done()
				if ctx.Err() != nil {
					return
				}
				for _, wrong := range wrongs(doctor.Fold(diagnose.Judge(facts))) {
					said.say("the doctor at %s says %s", s.Options.Name, wrong)
				}
				for _, n := range facts.Status.Nodes {
					if n.State != "up" || len(n.Unreached) > 0 {
						said.say("the status at %s says %s is %s and does not reach %v", s.Options.Name, n.Name, n.State, n.Unreached)
					}
				}
				examined.Add(1)
			}
		})
	}
	counts := work(ctx, t, all, &running)
	eventually(t, "consoles tell", func() bool { return told.Load() >= 3 })
	said.quiet.Store(false)
	said.began = time.Now()
	<-time.After(long) // it is how long it works
	said.quiet.Store(true)
	cancel()
	running.Wait()
	t.Logf("the machine held the test up for %v at most", said.most)
	t.Logf("%v: %d times the doctor looked, %d times a console was told; work: %v", long, examined.Load(), told.Load(), counts())
	for _, text := range slices.Sorted(maps.Keys(said.all)) {
		if strings.HasPrefix(text, heldUp) {
			t.Logf("%d times: %s", said.all[text], text)
			continue
		}
		t.Errorf("%d times: %s", said.all[text], text)
	}
}

// each waits for so long; false when ctx ends.
func each(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// wrongs are what the doctor says that is no ok, but for what is true of a machine of tests.
func wrongs(all []doctor.Result) (texts []string) {
	for _, r := range all {
		machine := slices.Contains([]string{"CLOCK-UNSYNCED", "FILES-LIMITED", "FILE-SYSTEM-VOLATILE", "DISK-LOW", "PROXY-OWN-NAME"}, r.Code)
		if r.State != doctor.OK && r.State != doctor.Skipped && !machine {
			texts = append(texts, fmt.Sprintf("%s %s %s %s: %s", r.State, r.Code, r.Node, r.Subject, r.Evidence))
		}
		texts = append(texts, wrongs(r.Explains)...)
	}
	return texts
}

// redOf are the nodes and links of a line that are not up, and what is found.
func redOf(line string) map[string]string {
	all := map[string]string{}
	data, ok := strings.CutPrefix(line, "data: ")
	var d delta
	if !ok || json.Unmarshal([]byte(data), &d) != nil {
		return all
	}
	for key, row := range d.Set {
		var r struct {
			State, Why, Code, Text string
			Severity               doctor.Severity
		}
		if json.Unmarshal(row, &r) != nil {
			continue
		}
		kind, _, _ := strings.Cut(key, ":")
		switch {
		case (kind == "node" || kind == "link") && r.State != stateUp,
			kind == "finding" && r.Severity > doctor.Info && !strings.HasPrefix(r.Code, "CLOCK") && r.Code != "FILES-LIMITED":
			all[key] = strings.TrimSpace(strings.Join([]string{r.State, r.Why, r.Code, r.Text}, " "))
		}
	}
	return all
}

// work has a fleet do what fleets do: messages, streams that are written and read, clients,
// streams and consumers that come and go, users that are made and removed.
func work(ctx context.Context, t *testing.T, all []*fleetbustest.Server, running *sync.WaitGroup) func() string {
	var sent, stored, read, clients, made, users, failed atomic.Int64
	count := func(n *atomic.Int64, err error) {
		if err == nil {
			n.Add(1)
		} else if ctx.Err() == nil {
			failed.Add(1)
			t.Logf("work: %v", err)
		}
	}
	first, err := jetstream.New(all[0].Dial("acme", "maker"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.CreateStream(ctx, jetstream.StreamConfig{Name: "WORK", Subjects: []string{"work.>"}, Replicas: 3, MaxBytes: 64 << 20, MaxAge: time.Minute}); err != nil {
		t.Fatal(err)
	}
	for i, s := range all {
		creds := s.Creds("acme", fmt.Sprintf("app%d", i))
		nc, err := s.Connect(creds)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Subscribe("load.>", func(*nats.Msg) {}); err != nil {
			t.Fatal(err)
		}
		consumer, err := js.CreateConsumer(ctx, "WORK", jetstream.ConsumerConfig{Durable: fmt.Sprintf("reader%d", i), AckPolicy: jetstream.AckExplicitPolicy})
		if err != nil {
			t.Fatal(err)
		}
		body := make([]byte, 1024)
		running.Go(func() {
			for each(ctx, 50*time.Millisecond) {
				for range 10 {
					count(&sent, nc.Publish(fmt.Sprintf("load.%d", i), body))
				}
			}
		})
		running.Go(func() {
			for each(ctx, 20*time.Millisecond) {
				_, err := js.Publish(ctx, fmt.Sprintf("work.%d", i), body)
				count(&stored, err)
			}
		})
		running.Go(func() {
			for ctx.Err() == nil {
				batch, err := consumer.Fetch(100, jetstream.FetchMaxWait(time.Second))
				if err != nil {
					count(&read, err)
					continue
				}
				for m := range batch.Messages() {
					count(&read, m.Ack())
				}
			}
		})
		running.Go(func() { // clients that come and go
			for each(ctx, 200*time.Millisecond) {
				c, err := s.Connect(creds)
				if count(&clients, err); err == nil {
					_ = c.FlushTimeout(5 * time.Second)
					c.Close()
				}
			}
		})
		running.Go(func() { // streams and consumers that come and go
			for n := 0; each(ctx, time.Second); n++ {
				name := fmt.Sprintf("BRIEF%d-%d", i, n)
				_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{"brief." + name}, Replicas: 1 + n%2*2})
				if count(&made, err); err != nil {
					continue
				}
				for range 20 {
					_, _ = js.PublishAsync("brief."+name, body)
				}
				_, err = js.CreateConsumer(ctx, name, jetstream.ConsumerConfig{})
				count(&made, err)
				each(ctx, time.Duration(n%4)*time.Second)
				_ = js.DeleteStream(ctx, name)
			}
		})
		administrator := s.Admin()
		running.Go(func() { // users that are made, renewed and removed
			for n := 0; each(ctx, 3*time.Second); n++ {
				name := fmt.Sprintf("acme/guest%d-%d", i, n)
				public, _, err := identity.NewUserKey()
				if err == nil {
					_, err = administrator.AddUser(ctx, admin.UserRequest{Name: name, Key: public})
				}
				if count(&users, err); err != nil {
					continue
				}
				_, err = administrator.RemoveUser(ctx, name)
				count(&users, err)
			}
		})
	}
	return func() string {
		return fmt.Sprintf("%d messages sent, %d stored, %d read, %d clients, %d streams and consumers, %d users, %d failed", sent.Load(), stored.Load(), read.Load(), clients.Load(), made.Load(), users.Load(), failed.Load())
	}
}
