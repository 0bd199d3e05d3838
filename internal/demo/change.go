package demo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // opens the database

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/identity"
)

// stock is the name of the database whose changes the demonstration hears of.
const stock = "stock"

// changeSteps are the steps about changes of a database.
func (d *Demo) changeSteps() []step {
	return []step{{name: "a SQLite row changes, a server on node 3 acts", try: d.follow,
		waiting: "having node 1 announce the changes of a database"}}
}

// follow has node 1 announce the changes of a SQLite file, which this process
// writes, and a server at node 3 hear of a row and read it again.
func (d *Demo) follow(ctx context.Context) (finding measured, err error) {
	path := filepath.Join(d.dir, "stock.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return finding, fmt.Errorf("making a database: %w", err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return finding, fmt.Errorf("opening a database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, "PRAGMA journal_mode=WAL; PRAGMA busy_timeout=5000; CREATE TABLE articles (id INTEGER PRIMARY KEY, price INTEGER); INSERT INTO articles VALUES (7, 10)"); err != nil {
		return finding, fmt.Errorf("filling a database: %w", err)
	}
	setup, err := d.api.SourceSetup(ctx)
	if err != nil {
		return finding, err
	}
	secret, err := identity.SealSecret(setup.SecretPublic, []byte(path))
	if err != nil {
		return finding, err
	}
	nc, err := d.dial(d.nodes[2], d.clerk)
	if err != nil {
		return finding, err
	}
	w, err := change.NewWatcher(ctx, nc, stock, "articles.*", change.WatcherOptions{Jitter: -1})
	if err != nil {
		return finding, err
	}
	defer w.Close()
	source := admin.Source{Account: account, Name: stock, Type: "sqlite", Secret: secret, Node: d.nodes[0].Name}
	if _, err := d.api.AddSource(ctx, source); err != nil {
		return finding, err
	}
	// The source has begun when it has told everybody to look.
	for n := (change.Notice{}); n.Reason != change.Announced; {
		if n, err = w.Next(ctx); err != nil {
			return finding, err
		}
	}
	if _, err := db.ExecContext(ctx, "UPDATE articles SET price = 12 WHERE id = 7"); err != nil {
		return finding, fmt.Errorf("changing a row: %w", err)
	}
	began := time.Now()
	for {
		n, err := w.Next(ctx)
		if err != nil {
			return finding, err
		}
		if n.Kind != change.Update || n.Key.String() != "articles.7" {
			continue // a resync that was under way
		}
		took := time.Since(began)
		var price int
		if err := db.QueryRowContext(ctx, "SELECT price FROM articles WHERE id = ?", n.Key[1]).Scan(&price); err != nil || price != 12 {
			return finding, errors.Join(fmt.Errorf("the server at node 3 reads price %d", price), err)
		}
		return measured{took: took, detail: fmt.Sprintf("notice %s, version %d; the row was read again", n.Key, n.Version)}, nil
	}
}
