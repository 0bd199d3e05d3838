package fleetbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/backup"
	"github.com/fleetbus/fleetbus/internal/home"
)

// TestBackup backs up a fleet of three nodes that is written to, loses it, and makes a
// fleet of three anew, elsewhere, of the file: creds files are good, and every message that
// was acknowledged before is there.
func TestBackup(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	s := nodes[0]
	ctx := limited(t, 5*time.Minute)
	creds, denied := s.Creds("acme", "alice"), s.Creds("acme", "mallory")
	nc, err := s.Connect(creds)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []jetstream.StreamConfig{
		{Name: "ORDERS", Subjects: []string{"orders.>"}, Replicas: 3},
		{Name: "SOLO", Subjects: []string{"solo"}, Replicas: 1},
		{Name: "MEMORY", Subjects: []string{"memory"}, Storage: jetstream.MemoryStorage},
		{Name: "BRIEF", Subjects: []string{"brief"}, MaxAge: 3 * time.Second},
	} {
		fleetbustest.Stream(t, js, config)
	}
	if _, err := s.Admin().DenyUser(ctx, "acme/mallory"); err != nil {
		t.Fatal(err)
	}
	consumer, err := js.CreateConsumer(ctx, "ORDERS", jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	// Somebody writes, all the time.
	var acknowledged atomic.Int64
	writing, stop := context.WithCancel(ctx)
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := int64(1); writing.Err() == nil; n++ {
			for writing.Err() == nil {
				if _, err := js.Publish(writing, fmt.Sprintf("orders.%d", n%7), fmt.Appendf(nil, "%d", n), jetstream.WithMsgID(fmt.Sprint(n))); err == nil {
					acknowledged.Store(n)
					break
				}
			}
		}
	})
	defer writer.Wait()
	defer stop()
	fleetbustest.Eventually(t, "messages", func() error {
		if n := acknowledged.Load(); n < 100 {
			return fmt.Errorf("%d are acknowledged", n)
		}
		return nil
	})
	if _, err := js.Publish(ctx, "solo", []byte("alone")); err != nil {
		t.Fatal(err)
	}
	const read = 10
	batch, err := consumer.Fetch(read)
	if err != nil {
		t.Fatal(err)
	}
	for msg := range batch.Messages() {
		if err := msg.DoubleAck(ctx); err != nil {
			t.Fatal(err)
		}
	}
	lock := newLock(t)
	if _, err := js.Publish(ctx, "brief", []byte("gone by then")); err != nil {
		t.Fatal(err)
	}
	before := acknowledged.Load()
	var file bytes.Buffer
	m, end, err := backup.Save(ctx, s.Admin(), admin.BackupRequest{}, &file, lock, func(backup.Stream) {})
	if err != nil {
		t.Fatal(err)
	}
	after := acknowledged.Load()
	if m.Fleet != "fleet" || m.Accounts["acme"] != 2 || end.Streams < 5 {
		t.Errorf("the backup has %+v and %+v", m, end)
	}
	stop()
	writer.Wait()
	nc.Close()
	for _, n := range nodes {
		n.Stop()
	}
	t.Logf("%d were acknowledged before it began, %d when it ended, in %d bytes", before, after, file.Len())
	t.Run("altered", func(t *testing.T) { alteredBackups(t, file.Bytes(), lock) })

	identities, err := lock.Identities()
	if err != nil {
		t.Fatal(err)
	}
	o := fleetbustest.Options(t, "m1")
	o.Dir += "[1]" // which is no pattern of names
	made, err := backup.Stage(o.Dir, bytes.NewReader(file.Bytes()), fleetbus.NodeRecord(o), identities...)
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Removed) != 3 {
		t.Errorf("%q are none any more", made.Removed)
	}
	if _, err := backup.Stage(o.Dir, bytes.NewReader(file.Bytes()), fleetbus.NodeRecord(o), identities...); !errors.Is(err, home.ErrInitialized) {
		t.Errorf("it is restored over a node: %v", err)
	}
	restored := fleetbustest.Launch(t, o, &fleetbus.Founded{AdminCreds: filepath.Join(o.Dir, "admin", "admin.creds"), CA: filepath.Join(o.Dir, "admin", "ca.pem")})
	nc, err = restored.Connect(creds)
	if err != nil {
		t.Fatalf("a creds file is good for nothing: %v", err)
	}
	defer nc.Close()
	if _, err := nats.Connect(restored.URL(), nats.Secure(restored.TLS()), nats.UserCredentials(denied), nats.NoReconnect()); err == nil {
		t.Error("who was denied comes in")
	}
	if js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, "ORDERS")
	if err != nil {
		t.Fatal(err)
	}
	state := stream.CachedInfo().State
	if int64(state.Msgs) < before {
		t.Errorf("%d messages are there, and %d were acknowledged before", state.Msgs, before)
	}
	for n := int64(1); n <= before; n += max(1, before/200) {
		if msg, err := stream.GetMsg(ctx, uint64(n)); err != nil || string(msg.Data) != fmt.Sprint(n) {
			t.Fatalf("message %d: %v", n, err)
		}
	}
	info, err := stream.Consumer(ctx, "billing")
	if err != nil {
		t.Fatal(err)
	}
	if got := info.CachedInfo().AckFloor.Stream; got != read {
		t.Errorf("the consumer is at %d, not at %d", got, read)
	}
	if solo, err := js.Stream(ctx, "SOLO"); err != nil || solo.CachedInfo().State.Msgs != 1 {
		t.Errorf("a stream of one copy: %v", err)
	}
	if memory, err := js.Stream(ctx, "MEMORY"); err != nil || memory.CachedInfo().State.Msgs != 0 {
		t.Errorf("a stream in memory: %v", err)
	}
	// What is too old by now is no reason to restore nothing.
	if brief, err := js.Stream(ctx, "BRIEF"); err != nil {
		t.Errorf("a stream whose messages end: %v", err)
	} else {
		fleetbustest.Eventually(t, "messages that are too old", func() error {
			if info, err := brief.Info(ctx); err != nil || info.State.Msgs != 0 || info.State.LastSeq != 1 {
				return fmt.Errorf("%+v, %v", info, err)
			}
			return nil
		})
	}
	// It is a fleet: it can be administered, its audit goes on, and others join.
	c := restored.Admin()
	if _, err := c.AddAccount(ctx, admin.AccountRequest{Name: "later"}); err != nil {
		t.Fatal(err)
	}
	auditState, blocks := allOfAudit(t, c)
	if r := verifyAudit(auditState, blocks); len(r.Problems) != 0 || len(r.Journals) != 4 {
		t.Errorf("its audit is %+v", r)
	}
	status, err := c.Status(ctx)
	if err != nil || len(status.Nodes) != 1 {
		t.Errorf("its nodes are %+v: %v", status.Nodes, err)
	}
}

// newLock has a key of its own: a passphrase takes a second each time, by intent.
func newLock(t *testing.T) backup.Lock {
	t.Helper()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(key.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return backup.Lock{Recipients: []string{key.Recipient().String()}, IdentityFile: path}
}

// alteredBackups are refused, and nothing is made of them.
func alteredBackups(t *testing.T, file []byte, lock backup.Lock) {
	identities, err := lock.Identities()
	if err != nil {
		t.Fatal(err)
	}
	o := fleetbustest.Options(t, "none")
	try := func(name string, data []byte) {
		t.Helper()
		_, err := backup.Stage(o.Dir, bytes.NewReader(data), fleetbus.NodeRecord(o), identities...)
		if !errors.Is(err, backup.ErrBackup) {
			t.Errorf("%s: %v", name, err)
		}
		left, err := os.ReadDir(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range left {
			if f.Name() != "lock" {
				t.Errorf("%s: %q is left", name, f.Name())
			}
		}
	}
	try("nothing", nil)
	try("cut off in the middle", file[:len(file)/2])
	try("cut off at the end", file[:len(file)-1])
	altered := bytes.Clone(file)
	altered[len(altered)/2] ^= 1
	try("altered", altered)
	try("something follows", append(bytes.Clone(file), 0))
	// A byte of each part: of the header, of every block, and of the end.
	at := []int{0, 10, 40, 100, 150, len(file) - 1, len(file) - 20}
	for i := range 40 {
		at = append(at, 180+i*(len(file)-200)/40)
	}
	for _, i := range at {
		altered := bytes.Clone(file)
		altered[i] ^= 0x10
		if _, _, err := backup.Verify(bytes.NewReader(altered), lock, func(backup.Stream) {}); !errors.Is(err, backup.ErrBackup) {
			t.Errorf("byte %d of %d is altered: %v", i, len(file), err)
		}
	}
	if _, _, err := backup.Verify(bytes.NewReader(file), newLock(t), func(backup.Stream) {}); !errors.Is(err, backup.ErrBackup) || !strings.Contains(err.Error(), "key, opens") {
		t.Errorf("another key: %v", err)
	}
	if _, _, err := backup.Verify(io.MultiReader(bytes.NewReader(file)), lock, func(backup.Stream) {}); err != nil {
		t.Errorf("the file itself: %v", err)
	}
}
