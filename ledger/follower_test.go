package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/internal/await"
)

// journal is a log that a test can read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) has(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.text.String(), text)
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func TestFollower(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	ctx := within(t, 30*time.Second)
	first := mustAppend(t, l, "user.ann", 0, "v1")
	mustAppend(t, l, "user.bob", 0, "v1")

	var log journal
	var seen []Event
	f := follow(t, l, FollowOptions{Logger: log.logger(), OnEvent: func(e Event) { seen = append(seen, e) }})
	defer f.stop()
	select {
	case <-f.CaughtUp():
	case <-ctx.Done():
		t.Fatal("not caught up in 30 s")
	}
	if rows := f.state.rows(); len(rows) != 2 {
		t.Errorf("caught up with %v", rows)
	}
	mustAppend(t, l, "user.ann", first, "")
	mustAppend(t, l, "user.eve", 0, "bad")
	last := mustAppend(t, l, "user.kim", 0, "v1")
	if err := f.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	want := map[string]record{"user.bob": {2, "v1"}, "user.kim": {5, "v1"}}
	if rows := f.state.rows(); !maps.Equal(rows, want) {
		t.Errorf("followed into %v", rows)
	}
	if !log.has("ledger event not applied") || !log.has("bad record") {
		t.Error("the bad record was not logged")
	}
	if err := f.Wait(within(t, 10*time.Millisecond), last+1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for what never comes: %v", err)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	for i, e := range seen {
		if e.Seq != uint64(i+1) || time.Since(e.Time).Abs() > time.Hour {
			t.Errorf("event %d: %+v", i+1, e)
		}
	}
	if len(seen) != 5 || seen[0].Subject != "user.ann" || string(seen[0].Data) != "v1" || len(seen[2].Data) != 0 {
		t.Errorf("told of %+v", seen)
	}
}

// TestFollowerFedByOthers has somebody who may create streams have the engine deliver
// them to the inbox where the events of the ledger are expected.
func TestFollowerFedByOthers(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	evil := connect(t, s.ClientURL())
	pulls, err := evil.Conn().SubscribeSync("$JS.API.CONSUMER.MSG.NEXT.FLEET.*")
	if err != nil || evil.Conn().Flush() != nil {
		t.Fatal(err)
	}
	var log journal
	f := follow(t, l, FollowOptions{Logger: log.logger()})
	defer f.stop()
	ctx := within(t, 30*time.Second)
	pull, err := pulls.NextMsgWithContext(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = evil.CreateStream(ctx, jetstream.StreamConfig{
		Name: "EVIL", Subjects: []string{"evil.*"}, SubjectTransform: &jetstream.SubjectTransformConfig{Source: "evil.*", Destination: "ledger.{{wildcard(1)}}"},
	})
	for i := 0; i < 5 && err == nil; i++ {
		_, err = evil.Publish(ctx, "evil.forged", []byte("v1"))
	}
	if err != nil {
		t.Fatal(err)
	}
	request := fmt.Sprintf(`{"stream_name":"EVIL","config":{"name":"push","deliver_subject":%q,"deliver_policy":"all","ack_policy":"none"}}`, pull.Reply)
	if _, err := evil.Conn().Request("$JS.API.CONSUMER.CREATE.EVIL.push", []byte(request), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if !await.True(20*time.Second, func() bool { return log.has("ledger interrupted") || len(f.state.rows()) > 0 }) {
		t.Fatal("nothing was delivered")
	}
	last := mustAppend(t, l, "true", 0, "v1")
	if err := f.Wait(ctx, last); err != nil {
		t.Error(err)
	}
	if rows := f.state.rows(); !maps.Equal(rows, map[string]record{"true": {last, "v1"}}) {
		t.Errorf("followed into %v", rows)
	}
}

func TestFollowerEmptyLedger(t *testing.T) {
	s := startServer(t, server.Options{})
	f := follow(t, open(t, s.ClientURL(), Options{}), FollowOptions{})
	defer f.stop()
	select {
	case <-f.CaughtUp():
	case <-time.After(20 * time.Second):
		t.Fatal("not caught up in 20 s")
	}
}

func TestFollowerSnapshot(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	ctx := within(t, 60*time.Second)
	savedAt := func(path string, seq uint64) func() bool {
		return func() bool {
			at, _, err := ReadSnapshot(path)
			return err == nil && at == seq
		}
	}

	t.Run("after so many events", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state")
		f := follow(t, l, FollowOptions{Snapshot: path, Every: 2, Interval: time.Hour})
		defer f.stop()
		select { // while it catches up it does not count
		case <-f.CaughtUp():
		case <-ctx.Done():
			t.Fatal("not caught up")
		}
		one := mustAppend(t, l, "count", 0, "1")
		two := mustAppend(t, l, "count", one, "2")
		mustAppend(t, l, "count", two, "3")
		if !await.True(20*time.Second, savedAt(path, two)) {
			t.Error("no snapshot after two events in 20 s")
		}
	})
	t.Run("so long after an event", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state")
		f := follow(t, l, FollowOptions{Snapshot: path, Every: 1000, Interval: 10 * time.Millisecond})
		defer f.stop()
		if !await.True(20*time.Second, savedAt(path, mustAppend(t, l, "time", 0, "x"))) {
			t.Error("no snapshot after an event in 20 s")
		}
	})
	t.Run("at the end, and resumed", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state")
		o := FollowOptions{Snapshot: path, Every: 1000, Interval: time.Hour}
		f := follow(t, l, o)
		last := mustAppend(t, l, "end", 0, "x")
		if err := f.Wait(ctx, last); err != nil {
			t.Fatal(err)
		}
		if err := f.stop(); err != nil {
			t.Fatal(err)
		}
		if !savedAt(path, last)() {
			t.Fatal("no snapshot at the end")
		}
		var again []uint64
		o.OnEvent = func(e Event) { again = append(again, e.Seq) }
		resumed := follow(t, l, o)
		defer resumed.stop()
		next := mustAppend(t, l, "end", last, "y")
		if err := resumed.Wait(ctx, next); err != nil {
			t.Fatal(err)
		}
		if resumed.stop(); len(again) != 1 || again[0] != next {
			t.Errorf("events %v after a snapshot at %d", again, last)
		}
		if rows := resumed.state.rows(); rows["end"] != (record{next, "y"}) || rows["time"].Data != "x" {
			t.Errorf("resumed into %v", rows)
		}
	})
	t.Run("not writable", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "later")
		path := filepath.Join(dir, "state")
		var log journal
		f := follow(t, l, FollowOptions{Snapshot: path, Interval: time.Millisecond, Logger: log.logger()})
		defer f.stop()
		last := mustAppend(t, l, "full", 0, "x")
		if !await.True(20*time.Second, func() bool { return log.has("snapshot not written") }) {
			t.Fatal("not logged in 20 s")
		}
		if err := f.Wait(ctx, last); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if f.stop(); !savedAt(path, last)() {
			t.Error("no snapshot at the end")
		}
	})
}

func TestFollowerCorruptSnapshot(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	last := mustAppend(t, l, "a", 0, "x")
	good := encodeSnapshot(last, "", []byte(`{"Last": 1, "Rows": {"a": {"Version": 1, "Data": "x"}}}`))
	flipped := func(at int) []byte {
		bad := bytes.Clone(good)
		bad[at] ^= 4
		return bad
	}
	lines := bytes.SplitAfterN(good, []byte("\n"), 4)
	size := len(lines[0])
	sum := size + len(lines[1])
	payload := sum + len(lines[2])
	for name, bad := range map[string][]byte{
		"empty":              nil,
		"magic":              flipped(0),
		"sequence":           flipped(size),
		"length":             flipped(sum - 2),
		"checksum":           flipped(sum),
		"payload":            flipped(payload + 3),
		"cut":                good[:len(good)-1],
		"not a state":        encodeSnapshot(last, "", []byte("{")),
		"older by its magic": bytes.Replace(good, []byte("snapshot 1"), []byte("snapshot 0"), 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			var log journal
			f := follow(t, l, FollowOptions{Snapshot: path, Logger: log.logger()})
			defer f.stop()
			aside, _ := filepath.Glob(path + ".corrupt-*")
			if len(aside) != 1 || !log.has("snapshot set aside") {
				t.Fatalf("set aside: %v", aside)
			}
			if kept, _ := os.ReadFile(aside[0]); !bytes.Equal(kept, bad) {
				t.Errorf("kept %q", kept)
			}
			if err := f.Wait(within(t, 20*time.Second), last); err != nil {
				t.Fatal(err)
			}
			if f.stop(); f.state.rows()["a"].Data != "x" {
				t.Errorf("followed into %v", f.state.rows())
			}
			if seq, _, err := ReadSnapshot(path); err != nil || seq != last {
				t.Errorf("new snapshot at %d, %v", seq, err)
			}
		})
	}
	if _, err := NewFollower(&table{}, FollowOptions{Snapshot: t.TempDir()}); err == nil {
		t.Error("a directory was taken for a snapshot")
	}
}

func TestFollowerServerAway(t *testing.T) {
	o := server.Options{StoreDir: t.TempDir()}
	s := startServer(t, o)
	o.Port = portOf(s)
	l := open(t, s.ClientURL(), Options{})
	ctx := within(t, 60*time.Second)
	path := filepath.Join(t.TempDir(), "state")
	follows := FollowOptions{Snapshot: path, Interval: 10 * time.Millisecond}

	running := follow(t, l, follows)
	defer running.stop()
	first := mustAppend(t, l, "a", 0, "v1")
	if err := running.Wait(ctx, first); err != nil {
		t.Fatal(err)
	}
	saved := func() bool { at, _, err := ReadSnapshot(path); return err == nil && at == first }
	if !await.True(20*time.Second, saved) {
		t.Fatal("no snapshot in 20 s")
	}
	stopServer(s)

	// A node that starts now knows all that the snapshot knows.
	state := &table{}
	started, err := NewFollower(state, FollowOptions{Snapshot: path})
	if err != nil {
		t.Fatal(err)
	}
	if rows := state.rows(); rows["a"] != (record{first, "v1"}) {
		t.Errorf("started with %v", rows)
	}
	if err := started.Wait(ctx, first); err != nil {
		t.Error(err)
	}
	late := run(started, state, l)
	defer late.stop()
	select {
	case <-late.CaughtUp():
		t.Error("caught up with the server away")
	default:
	}

	startServer(t, o)
	second := mustAppend(t, l, "a", first, "v2")
	for _, f := range []*following{running, late} {
		if err := f.Wait(ctx, second); err != nil {
			t.Error(err)
		}
		if rows := f.state.rows(); rows["a"] != (record{second, "v2"}) {
			t.Errorf("followed into %v", rows)
		}
	}
	<-late.CaughtUp()
}

// A follower misses nothing of what was under way when its connection broke.
func TestFollowerConnectionLost(t *testing.T) {
	s := startServer(t, server.Options{})
	p := startProxy(t, s)
	far, near := open(t, p.url(), Options{}), open(t, s.ClientURL(), Options{})
	ctx := within(t, 60*time.Second)
	f := follow(t, far, FollowOptions{})
	defer f.stop()
	var version uint64
	for n := range 10 {
		version = mustAppend(t, near, "a", version, fmt.Sprint(n))
		if err := f.Wait(ctx, version); err != nil {
			t.Fatal(err)
		}
		p.mute()
		version = mustAppend(t, near, "a", version, "lost")
		p.cut()
		if err := f.Wait(ctx, version); err != nil {
			t.Fatal(err)
		}
	}
}

// A follower whose ledger is far away has time for each of its requests.
func TestFollowerFarAway(t *testing.T) {
	s := startServer(t, server.Options{})
	p := startProxy(t, s)
	far, near := open(t, p.url(), Options{}), open(t, s.ClientURL(), Options{})
	version := mustAppend(t, near, "a.x", 0, "v1")
	p.delay.Store(int64(consumeTimeout / 6)) // there and back is a third of it
	f := follow(t, far, FollowOptions{Filter: []string{"a.*", "b.*", "c.*"}})
	defer f.stop()
	select {
	case <-f.CaughtUp():
	case <-time.After(10 * time.Second):
		t.Fatal("not caught up in 10 s")
	}
	if row := f.state.rows()["a.x"]; row.Version != version {
		t.Errorf("caught up with %v", row)
	}
}

func TestFollowerConnectionClosed(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	f, err := NewFollower(&table{}, FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(within(t, 20*time.Second), l) }()
	<-f.CaughtUp()
	l.js.Conn().Close()
	if err := <-ended; !errors.Is(err, nats.ErrConnectionClosed) {
		t.Error(err)
	}
}

func TestFollowerBehind(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	ctx := within(t, 30*time.Second)
	state := &table{}
	f, err := NewFollower(state, FollowOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.behind = 50 * time.Millisecond
	last := mustAppend(t, l, "a", mustAppend(t, l, "a", 0, "x"), "y")
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	if err := f.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	if err := l.js.DeleteStream(ctx, "FLEET"); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, open(t, s.ClientURL(), Options{}), "b", 0, "z")
	if err := <-ended; !errors.Is(err, ErrBehind) {
		t.Error(err)
	}
	if rows := state.rows(); rows["a"].Data != "y" {
		t.Errorf("the state is %v", rows)
	}
}

// A ledger that was made anew is another one, although it has grown past the state.
func TestFollowerAnotherLedger(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{Metadata: map[string]string{"a": "b"}})
	ctx := within(t, 60*time.Second)
	o := FollowOptions{Snapshot: filepath.Join(t.TempDir(), "state")}
	old := follow(t, l, o)
	last := mustAppend(t, l, "a", mustAppend(t, l, "a", 0, "x"), "y")
	if err := old.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	if err := old.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.js.DeleteStream(ctx, "FLEET"); err != nil {
		t.Fatal(err)
	}
	l = open(t, s.ClientURL(), Options{})
	var version uint64
	for range 4 {
		version = mustAppend(t, l, "b", version, "z")
	}
	state := &table{}
	f, err := NewFollower(state, o)
	if err != nil {
		t.Fatal(err)
	}
	f.behind = 50 * time.Millisecond
	if err := f.Run(ctx, l); !errors.Is(err, ErrBehind) || !strings.Contains(err.Error(), "made anew") {
		t.Errorf("the new one is followed: %v", err)
	}
	if rows := state.rows(); len(rows) != 1 || rows["a"].Data != "y" {
		t.Errorf("the state is %v", rows)
	}
	// A snapshot without the id takes the first that it meets, and remembers that.
	_, payload, err := ReadSnapshot(o.Snapshot)
	if err == nil {
		err = WriteSnapshot(o.Snapshot, last, payload)
	}
	if err != nil {
		t.Fatal(err)
	}
	taken := follow(t, l, o)
	if err := taken.Wait(ctx, version); err != nil {
		t.Fatal(err)
	}
	if err := taken.stop(); err != nil {
		t.Fatal(err)
	}
	_, id, _, err := readSnapshot(o.Snapshot)
	if err != nil || id == "" || id != l.stream.CachedInfo().Config.Metadata[idKey] {
		t.Errorf("the snapshot is of %q: %v", id, err)
	}
	// A state without events follows any.
	fresh := follow(t, l, FollowOptions{Snapshot: filepath.Join(t.TempDir(), "state")})
	defer fresh.stop()
	if err := fresh.Wait(ctx, version); err != nil {
		t.Error(err)
	}
}

// Writers that know, and writers that do not, against a model; the follower is
// restarted, also as after a crash, from the snapshot.
func TestFollowerEqualsModel(t *testing.T) {
	s := startServer(t, server.Options{})
	connections := []*Ledger{open(t, s.ClientURL(), Options{}), open(t, s.ClientURL(), Options{}), open(t, s.ClientURL(), Options{})}
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		runs++
		dir, err := os.MkdirTemp("", "ledger")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		o := Options{Stream: fmt.Sprintf("RUN%d", runs), Prefix: fmt.Sprintf("run%d", runs)}
		var writers []*Ledger
		for _, c := range connections {
			w, err := Open(ctx, c.js, o)
			if err != nil {
				t.Fatal(err)
			}
			writers = append(writers, w)
		}
		follows := FollowOptions{
			Snapshot: filepath.Join(dir, "state"),
			Every:    rapid.IntRange(1, 10).Draw(t, "every"),
			Interval: time.Duration(rapid.IntRange(1, 50).Draw(t, "interval")) * time.Millisecond,
		}
		f := follow(t, writers[0], follows)
		defer func() { f.stop() }()

		rows := make(map[string]record)
		versions := make(map[string]uint64)
		var last uint64
		var older []byte // a snapshot of some time ago
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				subject := rapid.SampledFrom([]string{"a", "a.b", "c"}).Draw(t, "subject")
				data := rapid.SampledFrom([]string{"", "x", "y", "bad"}).Draw(t, "data")
				expect := rapid.SampledFrom([]uint64{versions[subject], versions[subject], versions["c"], 0}).Draw(t, "expect")
				if expect > versions[subject] { // not yet, is not asked here: it takes a second
					expect = versions[subject]
				}
				version, err := rapid.SampledFrom(writers).Draw(t, "writer").Append(ctx, subject, expect, []byte(data))
				if expect != versions[subject] {
					if !errors.Is(err, ErrConflict) {
						t.Fatalf("after %d, the last being %d: %v", expect, versions[subject], err)
					}
					return
				}
				if err != nil || version != last+1 {
					t.Fatalf("version %d after %d, %v", version, last, err)
				}
				last, versions[subject] = version, version
				switch data {
				case "":
					delete(rows, subject)
				case "bad": // the state keeps what it had
				default:
					rows[subject] = record{version, data}
				}
			},
			"keep": func(t *rapid.T) { older, _ = os.ReadFile(follows.Snapshot) },
			"restart": func(t *rapid.T) {
				if err := f.stop(); err != nil {
					t.Fatal(err)
				}
				if older != nil && rapid.Bool().Draw(t, "crash") {
					if err := os.WriteFile(follows.Snapshot, older, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				f = follow(t, writers[0], follows)
			},
			"": func(t *rapid.T) {},
		})
		if err := f.Wait(ctx, last); err != nil {
			t.Fatal(err)
		}
		if got := f.state.rows(); !maps.Equal(got, rows) {
			t.Fatalf("followed into %v, want %v", got, rows)
		}
		if err := f.stop(); err != nil {
			t.Fatal(err)
		}
		loaded := &table{}
		if _, err := NewFollower(loaded, follows); err != nil {
			t.Fatal(err)
		}
		if last > 0 && !reflect.DeepEqual(loaded.rows(), f.state.rows()) {
			t.Fatalf("saved %v, want %v", loaded.rows(), f.state.rows())
		}
		if err := writers[0].js.DeleteStream(ctx, o.Stream); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFollowerFilter(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	ctx := within(t, 30*time.Second)
	path := filepath.Join(t.TempDir(), "snapshot")
	mustAppend(t, l, "user.ann", 0, "v1")
	mustAppend(t, l, "role.ann", 0, "v1") // the last event does not pass
	f := follow(t, l, FollowOptions{Filter: []string{"user.>"}, Snapshot: path})
	select {
	case <-f.CaughtUp():
	case <-ctx.Done():
		t.Fatal("not caught up in 30 s, with the last event filtered out")
	}
	mustAppend(t, l, "role.bob", 0, "v1")
	last := mustAppend(t, l, "user.bob", 0, "v1")
	if err := f.Wait(ctx, last); err != nil {
		t.Fatal(err)
	}
	want := map[string]record{"user.ann": {1, "v1"}, "user.bob": {4, "v1"}}
	if rows := f.state.rows(); !maps.Equal(rows, want) {
		t.Errorf("followed into %v, not %v", rows, want)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	mustAppend(t, l, "role.eve", 0, "v1") // nothing to come but this
	f = follow(t, l, FollowOptions{Filter: []string{"user.>"}, Snapshot: path})
	defer f.stop()
	select {
	case <-f.CaughtUp():
	case <-ctx.Done():
		t.Fatal("not caught up in 30 s from a snapshot")
	}
	if rows := f.state.rows(); !maps.Equal(rows, want) {
		t.Errorf("followed on into %v, not %v", rows, want)
	}
}

// lagging is a stream whose leader says what it has, and of which another, that is
// behind, delivers.
type lagging struct {
	jetstream.Stream
	behind  jetstream.Stream
	started chan struct{} // gets one when it begins to deliver
}

func (s *lagging) CreateConsumer(ctx context.Context, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	consumer, err := s.behind.CreateConsumer(ctx, c)
	if err == nil {
		s.started <- struct{}{}
	}
	return consumer, err
}

// A follower that reads from a copy which is behind has caught up when it has what the
// leader had, and not when the copy has no more: who was denied would get in.
func TestFollowerLagging(t *testing.T) {
	records := []string{"let in", "denied"}
	for _, filter := range [][]string{nil, {"role.>", "user.>"}} {
		for had := range records {
			t.Run(fmt.Sprintf("it has %d of %d, filter %q", had, len(records), filter), func(t *testing.T) {
				ctx := within(t, 30*time.Second)
				l := open(t, startServer(t, server.Options{}).ClientURL(), Options{})
				behind := open(t, startServer(t, server.Options{}).ClientURL(), Options{})
				for i, data := range records {
					mustAppend(t, l, "user.eve", uint64(i), data)
				}
				copied := func(i int) { mustAppend(t, behind, "user.eve", uint64(i), records[i]) }
				for i := range had {
					copied(i)
				}
				stream := &lagging{l.stream, behind.stream, make(chan struct{}, 100)}
				l.stream = stream

				f := follow(t, l, FollowOptions{Filter: filter})
				defer func() { f.stop() }()
				select {
				case <-stream.started:
				case <-ctx.Done():
					t.Fatal("nothing is delivered")
				}
				if err := f.Wait(ctx, uint64(had)); err != nil {
					t.Fatal(err)
				}
				if err := f.stop(); err != nil { // then it has thought about all it got
					t.Fatal(err)
				}
				select {
				case <-f.CaughtUp():
					t.Errorf("caught up with %v", f.state.rows())
				default:
				}

				f = run(f.Follower, f.state, l)
				for i := had; i < len(records); i++ {
					copied(i)
				}
				select {
				case <-f.CaughtUp():
				case <-ctx.Done():
					t.Fatal("not caught up, although the copy is")
				}
				if rows := f.state.rows(); rows["user.eve"].Data != "denied" {
					t.Errorf("caught up with %v", rows)
				}
			})
		}
	}
}

func TestFollowerHistory(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{History: 2})
	ctx := within(t, 30*time.Second)
	var ann uint64
	mustAppend(t, l, "user.bob", 0, "v0")
	for i := range 10 {
		ann = mustAppend(t, l, "user.ann", ann, fmt.Sprintf("v%d", i))
	}
	info, err := l.stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 3 {
		t.Errorf("the ledger has %d events, not the last two of one subject and the one of another", info.State.Msgs)
	}
	f := follow(t, l, FollowOptions{})
	defer f.stop()
	if err := f.Wait(ctx, ann); err != nil {
		t.Fatal(err)
	}
	want := map[string]record{"user.bob": {1, "v0"}, "user.ann": {ann, "v9"}}
	if rows := f.state.rows(); !maps.Equal(rows, want) {
		t.Errorf("followed into %v, not %v", rows, want)
	}
}
