package fleetbus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// database is one that tells of its rows by a channel, to one source at a time.
type database struct {
	mu      sync.Mutex
	running int
	most    int
	dsn     string
	down    bool
	rows    chan string
}

func (d *database) open(_ admin.Source, dsn string, _ *slog.Logger) (change.Source, error) {
	if dsn == "" {
		return nil, errors.New("opening a database: there is no DSN")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dsn = dsn
	return d, nil
}

func (d *database) count(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running += n
	d.most = max(d.most, d.running)
}

func (d *database) Run(ctx context.Context, p *change.Publisher) error {
	d.mu.Lock()
	down := d.down
	d.mu.Unlock()
	if down {
		return errors.New("reaching the database: it is down")
	}
	d.count(1)
	defer d.count(-1)
	if err := p.Announce(change.Notice{Kind: change.Resync}); err != nil {
		return err
	}
	for version := uint64(1); ; version++ {
		select {
		case <-ctx.Done():
			return nil
		case row := <-d.rows:
			if err := p.Announce(change.Notice{Key: change.Key{"rows", row}, Kind: change.Update, Version: version}); err != nil {
				return err
			}
			p.Report(change.Progress{Position: fmt.Sprint("at ", version), Version: version})
		}
	}
}

// hears waits for a notice of key, or for a resync that covers it.
func hears(t *testing.T, w *change.Watcher, key ...string) change.Notice {
	t.Helper()
	ctx := limited(t, 60*time.Second)
	for {
		n, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n.Kind != change.Resync && n.Key.String() == change.Key(key).String() || n.Kind == change.Resync && len(key) == 0 {
			return n
		}
	}
}

// TestSources has a source run by one node of three, taken over by another when
// that one is gone, and heard of on every node.
func TestSources(t *testing.T) {
	db := &database{rows: make(chan string)}
	nodes := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.SourceTypes = map[string]fleetbus.OpenSource{"test": db.open}
	})
	ctx := limited(t, 120*time.Second)
	c := nodes[0].Admin()
	setup, err := c.SourceSetup(ctx)
	if err != nil || len(setup.Types) != 1 {
		t.Fatalf("%+v: %v", setup, err)
	}
	const dsn = "test://user:planted@db"
	secret, err := identity.SealSecret(setup.SecretPublic, []byte(dsn))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []admin.Source{
		{Account: "none", Name: "orders", Type: "test", Secret: secret},
		{Account: "acme", Name: "or ders", Type: "test", Secret: secret},
		{Account: "acme", Name: "orders", Type: "oracle", Secret: secret},
		{Account: "acme", Name: "orders", Type: "test", Secret: "clear"},
		{Account: "acme", Name: "orders", Type: "test", Secret: secret, Node: "n9"},
	} {
		if _, err := c.AddSource(ctx, bad); err == nil || strings.Contains(err.Error(), "planted") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := c.AddSource(ctx, admin.Source{Account: "acme", Name: "orders", Type: "test", Secret: secret}); err != nil {
		t.Fatal(err)
	}
	var watchers []*change.Watcher
	for i, n := range nodes {
		w, err := change.NewWatcher(ctx, n.Dial("acme", fmt.Sprint("w", i)), "orders", "", change.WatcherOptions{Jitter: -1, Reconcile: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		watchers = append(watchers, w)
	}
	tell := func(row string) {
		t.Helper()
		select {
		case db.rows <- row:
		case <-ctx.Done():
			t.Fatal("nobody runs the source")
		}
	}
	tell("1")
	for _, w := range watchers {
		hears(t, w, "rows", "1")
	}
	var info admin.SourceInfo
	await(t, "a source that says where it stands", func() bool {
		all, err := c.Sources(ctx, "acme")
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v: %v", all, err)
		}
		info = all[0]
		return info.State == admin.SourceRunning && info.Progress.Version == 1
	})
	if info.Secret != "" || info.Announced < 2 || info.Progress.Position != "at 1" || info.Runner == "" {
		t.Errorf("the source stands at %+v", info)
	}
	// The node that runs it goes away; others hear of a resync, and go on.
	var rest []*change.Watcher
	for i, n := range nodes {
		if n.Options.Name == info.Runner {
			watchers[i].Close()
			n.Stop()
			continue
		}
		c = n.Admin()
		rest = append(rest, watchers[i])
	}
	tell("2")
	for _, w := range rest {
		hears(t, w)
		hears(t, w, "rows", "2")
	}
	db.mu.Lock()
	if db.most != 1 || db.dsn != dsn {
		t.Errorf("%d ran it at once, with %q", db.most, db.dsn)
	}
	db.mu.Unlock()
	if _, err := c.RemoveSource(ctx, "acme/orders"); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of the source", func() bool {
		db.mu.Lock()
		defer db.mu.Unlock()
		return db.running == 0
	})
	if _, err := c.RemoveSource(ctx, "acme/orders"); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Errorf("removed again: %v", err)
	}
}

// TestSourceFails has a database that is down: the source is a finding, and goes
// on when it is back.
func TestSourceFails(t *testing.T) {
	db := &database{rows: make(chan string), down: true}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.SourceTypes = map[string]fleetbus.OpenSource{"test": db.open}
	})
	s.ExpectError("source failed")
	s.ExpectError("source is given up")
	ctx, c := limited(t, 90*time.Second), s.Admin()
	setup, err := c.SourceSetup(ctx)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := identity.SealSecret(setup.SecretPublic, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddSource(ctx, admin.Source{Account: "acme", Name: "orders", Type: "test", Secret: secret}); err != nil {
		t.Fatal(err)
	}
	await(t, "a finding", func() bool {
		for _, f := range s.Problems() {
			if f.Code == "SERVICE-FAILED" && f.Subject == "source acme/orders" {
				return true
			}
		}
		return false
	})
	await(t, "its state", func() bool {
		all, err := c.Sources(ctx, "")
		return err == nil && len(all) == 1 && all[0].State == admin.SourceFailed && strings.Contains(all[0].Error, "it is down")
	})
	db.mu.Lock()
	db.down = false
	db.mu.Unlock()
	await(t, "a source that runs", func() bool {
		all, err := c.Sources(ctx, "")
		return err == nil && len(all) == 1 && all[0].State == admin.SourceRunning && len(s.Problems()) == 0
	})
}

// TestSmallAccount has changes told in an account that may store little, and its
// sources go with it.
func TestSmallAccount(t *testing.T) {
	db := &database{rows: make(chan string)}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.SourceTypes = map[string]fleetbus.OpenSource{"test": db.open}
	})
	ctx, c := limited(t, 60*time.Second), s.Admin()
	if _, err := c.AddAccount(ctx, admin.AccountRequest{Name: "small", Limits: identity.Limits{Storage: 16 << 20}}); err != nil {
		t.Fatal(err)
	}
	if err := change.Announce(ctx, s.Dial("small", "app"), "orders", change.Notice{Key: change.Key{"k"}, Kind: change.Update}); err != nil {
		t.Error(err)
	}
	setup, err := c.SourceSetup(ctx)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := identity.SealSecret(setup.SecretPublic, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddSource(ctx, admin.Source{Account: "small", Name: "orders", Type: "test", Secret: secret}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveAccount(ctx, "small"); err != nil {
		t.Fatal(err)
	}
	if all, err := c.Sources(ctx, ""); err != nil || len(all) != 0 {
		t.Errorf("left are %+v: %v", all, err)
	}
}

// TestLinks has every node judged by both ends of its links.
func TestLinks(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	ctx := limited(t, 60*time.Second)
	bus := func(at int) (words []string) {
		status, err := nodes[at].Admin().Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range status.Nodes {
			words = append(words, n.Bus+" "+strings.Join(n.Unreached, ","))
		}
		return append(words, fmt.Sprint(status.Answered, " of ", status.Quorum))
	}
	see := func(at int, want ...string) {
		t.Helper()
		var got []string
		await(t, fmt.Sprint(want), func() bool {
			got = bus(at)
			return fmt.Sprint(got) == fmt.Sprint(want)
		})
	}
	see(0, "connected ", "connected ", "connected ", "3 of 2")
	nodes[2].Stop()
	see(0, "cannot_reach_all n3", "cannot_reach_all n3", "blocked n1,n2", "2 of 2")
	nodes[1].Stop()
	see(0, "blocked n2,n3", "unknown n1,n3", "unknown n1,n2", "1 of 2")
}

// await waits for what is not told by itself.
func await(t *testing.T, what string, there func() bool) {
	t.Helper()
	fleetbustest.Eventually(t, what, func() error {
		if !there() {
			return errors.New("it is not there")
		}
		return nil
	})
}
