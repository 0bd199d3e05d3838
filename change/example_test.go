package change_test

import (
	"bytes"
	"context"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/postgres"
)

// announce is what a program does that changed a row by itself.
func announce(ctx context.Context, nc *nats.Conn) error {
	p, err := change.NewPublisher(ctx, nc, "orders", change.PublisherOptions{})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Announce(change.Notice{Key: change.Key{"customers", "42"}, Kind: change.Update, Version: 7}); err != nil {
		return err
	}
	return p.Flush(ctx)
}

// inTransaction announces a change that a crash cannot part from its commit.
func inTransaction(ctx context.Context, db *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "UPDATE customers SET limit_eur = 500 WHERE id = 42"); err != nil {
			return err
		}
		return postgres.Emit(ctx, tx, change.Key{"customers", "42"}, change.Update)
	})
}

// followSettings keeps the settings of a server as the database has them.
func followSettings(ctx context.Context, nc *nats.Conn, load func(context.Context) error) error {
	for n, err := range change.Watch(ctx, nc, "config", "settings.>") {
		if err != nil {
			return err
		}
		log.Printf("loading the settings again: %s of %s", n.Kind, n.Key)
		if err := load(ctx); err != nil {
			return err
		}
	}
	return nil
}

// users is who may come in, by name.
type users struct {
	db    *pgxpool.Pool
	cache *change.Cache[bool]
}

func newUsers(ctx context.Context, nc *nats.Conn, db *pgxpool.Pool) (*users, error) {
	u := &users{db: db}
	u.cache = change.NewCache(0, func(ctx context.Context, key change.Key) (allowed bool, err error) {
		err = db.QueryRow(ctx, "SELECT count(*) > 0 FROM users WHERE name = $1 AND allowed", key[1]).Scan(&allowed)
		return allowed, err
	})
	w, err := change.NewWatcher(ctx, nc, "people", "users.*", change.WatcherOptions{})
	if err != nil {
		return nil, err
	}
	go func() {
		defer w.Close()
		log.Print(u.cache.Follow(ctx, w, nil))
	}()
	return u, nil
}

// Allowed asks the database once, and again when the user has changed.
func (u *users) Allowed(ctx context.Context, name string) (bool, error) {
	return u.cache.Get(ctx, change.Key{"users", name})
}

// readReplica reads a replica that may be older than the notice.
func readReplica(ctx context.Context, replica *pgxpool.Pool, n change.Notice) error {
	if err := postgres.WaitFor(ctx, replica, n.Epoch, n.Version); err != nil {
		return err // read the primary instead
	}
	return replica.QueryRow(ctx, "SELECT 1").Scan(new(int))
}

// TestDocument holds the code of the documentation to what compiles here.
func TestDocument(t *testing.T) {
	_ = []any{announce, inTransaction, followSettings, newUsers, (*users).Allowed, readReplica}
	page, err := os.ReadFile(filepath.Join("..", "docs", "changes.md"))
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	plain := func(b []byte) string { return strings.Join(strings.Fields(string(b)), " ") }
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(page, -1)
	if len(blocks) < 5 {
		t.Errorf("there are %d examples", len(blocks))
	}
	for _, block := range blocks {
		if !strings.Contains(plain(code), plain(bytes.TrimSpace(block[1]))) {
			t.Errorf("this does not stand in example_test.go:\n%s", block[1])
		}
	}
}
