package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/postgres"
	"github.com/fleetbus/fleetbus/change/postgres/postgrestest"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// permissions is a part of a service that says what a user may do. It asks the
// database once, and again when the user has changed.
type permissions struct {
	db    *pgxpool.Pool
	cache *change.Cache[bool]
}

func newPermissions(db *pgxpool.Pool) *permissions {
	p := &permissions{db: db}
	p.cache = change.NewCache(0, p.read)
	return p
}

func (p *permissions) read(ctx context.Context, key change.Key) (allowed bool, err error) {
	err = p.db.QueryRow(ctx, "SELECT allowed FROM users WHERE name = $1", key[1]).Scan(&allowed)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return allowed, err
}

// Allowed reports whether a user may come in.
func (p *permissions) Allowed(ctx context.Context, name string) (bool, error) {
	return p.cache.Get(ctx, change.Key{"users", name})
}

// TestPermissions has a service on three servers, each with the bus embedded. A
// user who is removed on one is refused by the others.
func TestPermissions(t *testing.T) {
	pg := postgrestest.Start(t, "wal_level=logical")
	pg.Exec(`CREATE TABLE users (name text PRIMARY KEY, allowed boolean NOT NULL)`, `INSERT INTO users VALUES ('alice', true), ('bob', true)`)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	db, err := pgxpool.New(ctx, pg.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	source, err := postgres.New(postgres.Options{DSN: pg.DSN, Tables: []string{"users"}})
	if err != nil {
		t.Fatal(err)
	}
	servers := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) { o.Accounts = []string{"shop"} })
	var services []*permissions
	heard := make(chan change.Notice, 1000)
	following := 0
	for _, s := range servers {
		bus, err := s.Session(ctx, identity.Principal{Account: "shop", Name: "service"})
		if err != nil {
			t.Fatal(err)
		}
		defer bus.Close()
		w, err := change.NewWatcher(ctx, bus.Conn, "people", "users.*", change.WatcherOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		p := newPermissions(db)
		services = append(services, p)
		go func() { _ = p.cache.Follow(ctx, w, func(n change.Notice) { heard <- n }) }()
		following++
	}
	await := func(n int, reason change.Reason, kind change.Kind) {
		t.Helper()
		for n > 0 {
			select {
			case got := <-heard:
				if got.Reason == reason && got.Kind == kind {
					n--
				}
			case <-ctx.Done():
				t.Fatalf("%d servers did not hear", n)
			}
		}
	}
	await(following, change.Started, change.Resync)
	// The first server runs the source; a fleet would choose one by itself.
	bus, err := servers[0].Session(ctx, identity.Principal{Account: "shop", Name: "source"})
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	publisher, err := change.NewPublisher(ctx, bus.Conn, "people", change.PublisherOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- source.Run(running, publisher) }()
	await(3, change.Announced, change.Resync)

	for i, p := range services {
		if ok, err := p.Allowed(ctx, "alice"); err != nil || !ok {
			t.Errorf("server %d refuses alice: %v", i+1, err)
		}
	}
	if _, err := db.Exec(ctx, "DELETE FROM users WHERE name = 'alice'"); err != nil {
		t.Fatal(err)
	}
	await(3, "", change.Delete)
	for i, p := range services {
		if ok, err := p.Allowed(ctx, "alice"); err != nil || ok {
			t.Errorf("server %d lets alice in: %v", i+1, err)
		}
		if ok, err := p.Allowed(ctx, "bob"); err != nil || !ok {
			t.Errorf("server %d refuses bob: %v", i+1, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
