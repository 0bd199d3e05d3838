package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
)

// patience is more than anything here takes.
const patience = 60 * time.Second

func startEngine(t *testing.T) *nats.Conn {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("the engine does not start")
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func write(path string, data []byte, mode fs.FileMode) error { return os.WriteFile(path, data, mode) }

// running is a journal that is run.
type running struct {
	*Journal
	stop func()
}

func run(t *testing.T, nc *nats.Conn, node, path string) *running {
	t.Helper()
	j, err := New(Options{Node: node, Path: path, Write: write, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx, nc, 1) }()
	r := &running{Journal: j, stop: func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}}
	t.Cleanup(r.stop)
	return r
}

func (r *running) write(t *testing.T, what string) uint64 {
	t.Helper()
	n, err := r.Store(within(t), admin.AuditEntry{Kind: admin.AuditWrite, Who: "FLEET/ann", What: what, Result: ResultOK})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stored are all blocks of the stream.
func stored(t *testing.T, j *Journal) (all []admin.AuditBlock) {
	t.Helper()
	for from := uint64(1); from > 0; {
		some, err := Blocks(within(t), j.Stream(), from)
		if err != nil {
			t.Fatal(err)
		}
		all, from = append(all, some.Blocks...), some.Next
	}
	return all
}

func verify(state admin.AuditState, blocks []admin.AuditBlock) Report {
	v := NewVerifier(state)
	for _, b := range blocks {
		v.Add(b)
	}
	return v.Finish()
}

// TestTampering has two nodes write, and finds each way in which what they wrote can be
// changed.
func TestTampering(t *testing.T) {
	nc := startEngine(t)
	dir := t.TempDir()
	a, b := run(t, nc, "a", filepath.Join(dir, "a")), run(t, nc, "b", filepath.Join(dir, "b"))
	for i := range 5 {
		a.write(t, fmt.Sprintf("a.%d", i))
		b.write(t, fmt.Sprintf("b.%d", i))
	}
	blocks := stored(t, a.Journal)
	state := admin.AuditState{
		Time: time.Now(), Keys: map[string]string{a.Public(): "a", b.Public(): "b"},
		Heads:     map[string]map[string]admin.AuditHead{"a": a.Heads(), "b": b.Heads()},
		AuditKeep: admin.AuditKeep{MaxAge: DefaultAge, MaxSize: DefaultSize},
	}
	if r := verify(state, blocks); len(r.Problems) != 0 || len(r.Journals) != 2 || r.Entries < 10 {
		t.Fatalf("what nobody changed is %+v", r)
	}
	of := func(key string) (at []int) {
		for i, b := range blocks {
			if b.Journal == key {
				at = append(at, i)
			}
		}
		return at
	}
	as := of(a.Public())
	middle, last := as[len(as)/2], as[len(as)-1]
	forger, err := nkeys.CreateServer()
	if err != nil {
		t.Fatal(err)
	}
	forgers, err := forger.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	// resign signs an altered block by a key.
	resign := func(stored admin.AuditBlock, key nkeys.KeyPair, journal string, edit func(*Block)) admin.AuditBlock {
		var b Block
		body, _, _ := bytes.Cut(stored.Data, []byte("\n"))
		if err := json.Unmarshal(body, &b); err != nil {
			t.Fatal(err)
		}
		b.Journal = journal
		edit(&b)
		data, _, err := seal(&b, key)
		if err != nil {
			t.Fatal(err)
		}
		stored.Data, stored.Journal = data, journal
		return stored
	}
	for name, c := range map[string]struct {
		kind, text string
		sequence   uint64
		tamper     func(all []admin.AuditBlock) []admin.AuditBlock
	}{
		"one is removed": {"removed", "are missing", blocks[as[len(as)/2+1]].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			return slices.Delete(all, middle, middle+1)
		}},
		"the last is removed": {"removed", "its end is missing", 0, func(all []admin.AuditBlock) []admin.AuditBlock {
			return slices.Delete(all, last, last+1)
		}},
		"the first is removed": {"removed", "its beginning is missing", blocks[as[1]].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			return slices.Delete(all, as[0], as[0]+1)
		}},
		"a journal is removed": {"removed", "the whole journal is missing", 0, func(all []admin.AuditBlock) []admin.AuditBlock {
			return slices.DeleteFunc(all, func(b admin.AuditBlock) bool { return b.Journal == a.Public() })
		}},
		"everything is removed": {"removed", "the whole journal is missing", 0, func([]admin.AuditBlock) []admin.AuditBlock { return nil }},
		"a word is altered": {"altered", "not signed", blocks[middle].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[middle].Data = bytes.Replace(all[middle].Data, []byte("FLEET/ann"), []byte("FLEET/bob"), 1)
			return all
		}},
		"a signature is altered": {"altered", "not signed", blocks[middle].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[middle].Data[len(all[middle].Data)-4] ^= 1
			return all
		}},
		"two change places": {"removed", "are missing", blocks[as[1]].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[as[1]].Data, all[as[2]].Data = all[as[2]].Data, all[as[1]].Data
			return all
		}},
		"one is written again": {"forged", "there twice", 1000, func(all []admin.AuditBlock) []admin.AuditBlock {
			again := all[last]
			again.Sequence = 1000
			return append(all, again)
		}},
		"an old one is moved to the end": {"removed", "are missing", blocks[as[len(as)/2+1]].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			moved := all[middle]
			moved.Sequence = 1000
			return append(slices.Delete(all, middle, middle+1), moved)
		}},
		"a stranger writes a journal": {"forged", "no node has registered its key", 1000, func(all []admin.AuditBlock) []admin.AuditBlock {
			forged := resign(all[as[0]], forger, forgers, func(b *Block) { b.Node = "a" })
			forged.Sequence = 1000
			return append(all, forged)
		}},
		"another's key signs": {"altered", "not signed", blocks[middle].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[middle] = resign(all[middle], forger, a.Public(), func(*Block) {})
			return all
		}},
		"a block is of another journal": {"altered", "of another journal", blocks[middle].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[middle] = resign(all[middle], a.key, b.Public(), func(*Block) {})
			all[middle].Journal = a.Public()
			return all
		}},
		"the holder of the key writes another": {"forged", "does not follow", blocks[as[len(as)/2+1]].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[middle] = resign(all[middle], a.key, a.Public(), func(b *Block) { b.Entries[0].Who = "FLEET/bob" })
			return all
		}},
		"the holder of the key writes all anew": {"forged", "saw another block", 0, func(all []admin.AuditBlock) []admin.AuditBlock {
			previous, hash := "", ""
			for n, at := range as {
				all[at] = resign(all[at], a.key, a.Public(), func(b *Block) {
					if n > 0 {
						b.Previous = previous
					}
					b.Entries[0].Who = "FLEET/bob"
				})
				_, hash, _ = open(a.Public(), all[at].Data)
				previous = hash
			}
			return all
		}},
		"a node speaks for another": {"forged", "its key is of a", blocks[last].Sequence, func(all []admin.AuditBlock) []admin.AuditBlock {
			all[last] = resign(all[last], a.key, a.Public(), func(b *Block) { b.Node = "b" })
			return all
		}},
	} {
		t.Run(name, func(t *testing.T) {
			copied := slices.Clone(blocks)
			for i := range copied {
				copied[i].Data = bytes.Clone(copied[i].Data)
			}
			r := verify(state, c.tamper(copied))
			if len(r.Problems) == 0 {
				t.Fatal("nothing is found")
			}
			first := r.Problems[0]
			if first.Kind != c.kind || !strings.Contains(first.Text, c.text) || c.sequence > 0 && first.Sequence != c.sequence {
				t.Errorf("the first problem is %+v", first)
			}
		})
	}
	t.Run("what is too old may be gone", func(t *testing.T) {
		later := state
		later.Time = state.Time.Add(DefaultAge + time.Hour)
		if r := verify(later, blocks[as[1]:]); len(r.Problems) != 0 {
			t.Errorf("problems are %+v", r.Problems)
		}
	})
}

// TestKilled ends a journal at once, again and again, while it writes: the chain is whole
// after each, and a number that was told is of an entry that is there.
func TestKilled(t *testing.T) {
	nc := startEngine(t)
	path := filepath.Join(t.TempDir(), "a")
	told := map[uint64]string{}
	var state admin.AuditState
	var blocks []admin.AuditBlock
	for round := range 5 {
		// Its connection breaks as a process would that is killed.
		own, err := nats.Connect(nc.ConnectedUrl(), nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		j, err := New(Options{Node: "a", Path: path, Write: write, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- j.Run(ctx, own, 1) }()
		numbers := make(chan map[uint64]string)
		go func() {
			mine := map[uint64]string{}
			for i := 0; ; i++ {
				what := fmt.Sprintf("%d.%d", round, i)
				n, err := j.Store(ctx, admin.AuditEntry{Kind: admin.AuditWrite, What: what})
				if err != nil {
					numbers <- mine
					return
				}
				if mine[n] = what; len(mine) == 20 {
					own.Close()
				}
			}
		}()
		<-ended
		cancel()
		for n, what := range <-numbers {
			if told[n] != "" {
				t.Errorf("entry %d is of %s and of %s", n, told[n], what)
			}
			told[n] = what
		}
		// What reads it has a connection of its own.
		reader, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := reader.Stream(within(t), Stream)
		if err != nil {
			t.Fatal(err)
		}
		j.open(stream)
		blocks = stored(t, j)
		state = admin.AuditState{Time: time.Now(), Keys: map[string]string{j.Public(): "a"}, Heads: map[string]map[string]admin.AuditHead{"a": j.Heads()}, AuditKeep: admin.AuditKeep{MaxAge: DefaultAge}}
		if r := verify(state, blocks); len(r.Problems) != 0 || r.Journals[0].Crashes != round {
			t.Fatalf("after round %d it is %+v", round, r)
		}
	}
	there := map[uint64]string{}
	for _, b := range blocks {
		entries, _, err := Entries(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			there[e.Number] = e.What
		}
	}
	for n, what := range told {
		if there[n] != what {
			t.Errorf("entry %d is of %q, not of %q", n, there[n], what)
		}
	}
}

// TestGap floods a journal before it can write: it holds a bounded number of entries, and
// says how many it did not tell.
func TestGap(t *testing.T) {
	nc := startEngine(t)
	j, err := New(Options{Node: "a", Write: write, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	const logins, refusals = maxWaiting + 1000, 2000
	for range refusals {
		j.Tell(admin.AuditEntry{Kind: admin.AuditRefused, Who: "acme/eve", Account: "acme"})
	}
	for i := range logins {
		j.Tell(admin.AuditEntry{Kind: admin.AuditLogin, Who: fmt.Sprintf("acme/%d", i), Account: "acme"})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx, nc, 1) }()
	if _, err := j.Store(within(t), admin.AuditEntry{Kind: admin.AuditWrite, What: "last"}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	told := map[admin.AuditKind]int{}
	for _, b := range stored(t, j) {
		entries, _, err := Entries(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			told[e.Kind]++
			if e.Kind == admin.AuditGap {
				told[admin.AuditKind(e.What)] += e.Count
			}
		}
	}
	if told[admin.AuditLogin] != logins || told[admin.AuditRefused] != refusals || told[admin.AuditGap] != 2 || told[admin.AuditStop] != 1 {
		t.Errorf("it tells of %v", told)
	}
}

// TestExport finds out every altered byte, and where a file was cut off.
func TestExport(t *testing.T) {
	nc := startEngine(t)
	a := run(t, nc, "a", filepath.Join(t.TempDir(), "a"))
	a.write(t, "one")
	var file bytes.Buffer
	e, err := NewExporter(&file, admin.AuditState{Fleet: "f", Keys: map[string]string{a.Public(): "a"}})
	if err != nil {
		t.Fatal(err)
	}
	blocks := stored(t, a.Journal)
	for _, b := range blocks {
		if err := e.Add(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(data []byte) (fleet string, n int, err error) {
		err = Import(bytes.NewReader(data), func(s admin.AuditState) { fleet = s.Fleet }, func(admin.AuditBlock) { n++ })
		return fleet, n, err
	}
	if fleet, n, err := read(file.Bytes()); err != nil || fleet != "f" || n != len(blocks) {
		t.Fatalf("it has %d blocks of %q: %v", n, fleet, err)
	}
	for i := range file.Bytes() {
		if _, _, err := read(file.Bytes()[:i]); !errors.Is(err, ErrExport) {
			t.Fatalf("cut off at %d it is read: %v", i, err)
		}
		altered := bytes.Clone(file.Bytes())
		altered[i] ^= 1
		if _, _, err := read(altered); err == nil {
			t.Fatalf("altered at %d it is read", i)
		}
	}
}

// TestPage reads pages that are narrowed down, the newest first.
func TestPage(t *testing.T) {
	nc := startEngine(t)
	a := run(t, nc, "a", filepath.Join(t.TempDir(), "a"))
	for i := range 25 {
		a.write(t, fmt.Sprintf("user.%d", i))
	}
	var all []string
	for q := (admin.AuditQuery{What: "user.*", Limit: 7}); ; {
		page, err := Page(within(t), a.Stream(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			all = append(all, e.What)
		}
		if q.Before = page.Next; q.Before == 0 {
			break
		}
	}
	if len(all) != 25 || all[0] != "user.24" || all[24] != "user.0" {
		t.Errorf("the pages have %q", all)
	}
	for q, want := range map[*admin.AuditQuery]int{
		{Who: "FLEET/ann"}: 25, {Who: "FLEET/bob"}: 0, {Who: "FLEET/*"}: 25, {What: "user.3"}: 1, {Text: "USER.3"}: 1, {Node: "b"}: 0,
		{Kinds: []admin.AuditKind{admin.AuditStart}}: 1, {Account: "acme"}: 0, {Since: time.Now().Add(time.Hour)}: 0, {Until: time.Now().Add(-time.Hour)}: 0,
	} {
		page, err := Page(within(t), a.Stream(), *q)
		if err != nil || len(page.Entries) != want {
			t.Errorf("%+v finds %d, not %d: %v", *q, len(page.Entries), want, err)
		}
	}
}

func TestRedact(t *testing.T) {
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{
		string(seed), "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "-----BEGIN PRIVATE KEY-----\nMIG", "fb1.0123456789abcdef0123456789abcdef.0123456789abcdef.abcdefg",
		"fbb1.acme.alice.abcdefghijkl", "postgres://ann:canary@db/orders", "eyJ0eXAiOiJKV1QifQ.eyJqdGkiOiJ4In0.c2ln", "host=db password=canary", "AGE-SECRET-KEY-1ABC",
	} {
		document, err := json.Marshal(map[string]any{"a": []any{map[string]any{"b": secret}}})
		if err != nil {
			t.Fatal(err)
		}
		if told := string(Redact(document)); told != `{"a":[{"b":"(hidden)"}]}` {
			t.Errorf("%q is told as %s", secret, told)
		}
	}
	for in, want := range map[string]string{
		`{"password":"canary","secret_hash":"canary","bearer":{"hash":"canary"},"sealed":{"for":{"n1":"canary"}}}`: `{"bearer":"(hidden)","password":"(hidden)","sealed":"(hidden)","secret_hash":"(hidden)"}`,
		`{"name":"acme/alice","denied":true,"n":12345678901234567890}`:                                             `{"denied":true,"n":12345678901234567890,"name":"acme/alice"}`,
		`{}`: ``, ``: ``, `canary`: `"(hidden)"`,
	} {
		if told := string(Redact([]byte(in))); told != want {
			t.Errorf("%s is told as %s", in, told)
		}
	}
	if told := Redact([]byte(`["` + strings.Repeat(`x","`, maxRecord) + `"]`)); len(told) > 200 {
		t.Errorf("a long document is told in %d bytes", len(told))
	}
}

func FuzzOpen(f *testing.F) {
	key, err := nkeys.CreateServer()
	if err != nil {
		f.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		f.Fatal(err)
	}
	data, _, err := seal(&Block{Version: 1, Journal: public, Node: "a", Number: 1, First: 1, Entries: []admin.AuditEntry{{Kind: admin.AuditStart}}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, other []byte) {
		if b, _, err := open(public, other); err == nil && !bytes.Equal(data, other) {
			t.Errorf("a block that was never signed is opened: %+v", b)
		}
		v := NewVerifier(admin.AuditState{})
		v.Add(admin.AuditBlock{Sequence: 1, Journal: public, Data: other})
		v.Finish()
		_ = Import(bytes.NewReader(other), func(admin.AuditState) {}, func(admin.AuditBlock) {})
	})
}
