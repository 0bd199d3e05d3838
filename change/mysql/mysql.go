// Package mysql is a change.Source for MySQL and MariaDB: it tells of committed
// changes from the binary log, as a replica reads it, and costs writers nothing
// but the log that they write anyway.
//
// The server has to write its log by rows:
//
//	[mysqld]
//	log_bin       = binlog
//	binlog_format = ROW
//	gtid_mode     = ON                # MySQL only
//	enforce_gtid_consistency = ON     # MySQL only
//	sync_binlog   = 1                 # with Options.PositionFile
//
// And there has to be a user that may read it, and see the tables:
//
//	CREATE USER 'fleetbus'@'%' IDENTIFIED BY '…';
//	GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'fleetbus'@'%';
//	GRANT SELECT, REFERENCES ON orders.* TO 'fleetbus'@'%';
//
// Without REFERENCES it cannot see which foreign keys change rows, and takes all
// of them for such. What is missing is said in a change.SetupError, with the statements that add it.
//
// A notice's version is the number in the GTID of its transaction, and its epoch
// the rest of it: the UUID of the server on MySQL, domain and server as in "0-1"
// on MariaDB. It goes out when the transaction can be read on the server, which is
// a moment after it is in the log. Its time is in whole seconds on MariaDB.
//
// A key has the values of the primary key as text: times of the type TIMESTAMP in
// UTC, and characters in UTF-8. A key of another character set or of a type that
// has no such text, a table without a primary key, a statement that changes a
// table, and one that is in the log as a statement become a Resync. So do the
// tables whose rows a foreign key changes, because the log has not got those rows.
// A session that sets sql_log_bin = 0 is not heard of. Where the server takes
// names of tables for the same in any letter case, keys have the small letters.
//
// By default the Source begins where the log ends, with a Resync. With
// Options.PositionFile it goes on where it was, unless the server has removed that
// part of its log.
package mysql

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	library "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	driver "github.com/go-sql-driver/mysql"

	"github.com/fleetbus/fleetbus/change"
)

// dialTimeout bounds the making of a connection.
const dialTimeout = 10 * time.Second

// Options say which database a Source reads.
type Options struct {
	// DSN is where the database is and who reads it, as in
	// user:password@tcp(host:3306)/orders or user:password@unix(/run/mysqld.sock)/orders.
	// Without a database it is all of the server's.
	DSN string
	// TLS, if not nil, is how the connections are secured, in place of the DSN's tls.
	TLS *tls.Config
	// Tables to tell of, with their database before a dot if it is not the DSN's.
	// Empty: all of the database.
	Tables []string
	// PositionFile keeps how far the log was read, so that the next Run goes on
	// there. Empty: each Run begins with a Resync.
	PositionFile string
	// ServerID tells the Source from all replicas of the server; two with one id put
	// each other out. Default: a random one above 2^31.
	ServerID uint32
}

// A Source tells of the changes of one server. New makes one. Its Run must not be
// called twice at a time.
type Source struct {
	options   Options
	config    *driver.Config
	heartbeat time.Duration // heartbeatEvery, but in tests
}

// New returns a Source of o's database. It connects nothing.
func New(o Options) (*Source, error) {
	config, err := driver.ParseDSN(o.DSN)
	if err != nil || o.DSN == "" {
		// The driver's error may hold a part of the password.
		return nil, errors.New("reading the connection string of a MySQL database: it is not user:password@tcp(host:3306)/database")
	}
	if config.Net != "tcp" && config.Net != "unix" {
		return nil, fmt.Errorf("reading a MySQL database: network %q is neither tcp nor unix", config.Net)
	}
	if config.AllowFallbackToPlaintext {
		return nil, errors.New("reading a MySQL database: tls=preferred is no TLS where somebody is in between; use tls=true, or no tls")
	}
	if o.TLS != nil {
		config.TLS = o.TLS.Clone()
	}
	if config.TLS != nil && config.TLS.ServerName == "" && !config.TLS.InsecureSkipVerify {
		host, _, err := net.SplitHostPort(config.Addr)
		if err != nil {
			host = config.Addr
		}
		config.TLS.ServerName = host
	}
	config.Logger, config.Timeout = &driver.NopLogger{}, dialTimeout
	config.ReadTimeout, config.WriteTimeout = silent, silent
	config.ParseTime, config.InterpolateParams = false, true
	if o.ServerID == 0 {
		o.ServerID = 1<<31 + rand.Uint32N(1<<31-1)
	}
	return &Source{options: o, config: config, heartbeat: heartbeatEvery}, nil
}

// Run is change.Source's.
func (s *Source) Run(ctx context.Context, p *change.Publisher) error {
	err := s.run(ctx, p)
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return fmt.Errorf("reading MySQL database %q on %s: %w", s.config.DBName, s.config.Addr, err)
}

func (s *Source) run(ctx context.Context, p *change.Publisher) error {
	connector, err := driver.NewConnector(s.config)
	if err != nil {
		return s.safe("connecting", err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return s.refused(s.safe("connecting", err))
	}
	defer conn.Close()
	c := &catalog{source: s, conn: conn}
	if err := c.check(ctx); err != nil {
		return err
	}
	r := &reader{source: s, catalog: c, publisher: p, altered: map[[2]string]bool{}}
	return r.run(ctx)
}

// The numbers of the server's errors that are told apart.
const (
	wrongDatabase    = 1044
	wrongPassword    = 1045
	unknownDatabase  = 1049
	syntaxError      = 1064
	logLost          = 1236
	missingPrivilege = 1227
)

// refusal is an error that the server gave.
type refusal struct {
	number  uint16
	message string
}

func (e *refusal) Error() string { return fmt.Sprintf("%s (%d)", e.message, e.number) }

// isRefusal reports whether err has one of those numbers.
func isRefusal(err error, numbers ...uint16) bool {
	var r *refusal
	return errors.As(err, &r) && slices.Contains(numbers, r.number)
}

// errUnreadable says that the log has something that is not understood.
var errUnreadable = errors.New("the log has an event that cannot be read")

// safe is an error without anything of a row or of the DSN: the libraries put
// both into theirs.
func (s *Source) safe(doing string, err error) error {
	for inner := err; inner != nil; {
		switch e := inner.(type) {
		case *driver.MySQLError:
			return fmt.Errorf("%s: %w", doing, &refusal{e.Number, s.masked(e.Message)})
		case *library.MyError:
			return fmt.Errorf("%s: %w", doing, &refusal{e.Code, s.masked(e.Message)})
		case *replication.EventError:
			return fmt.Errorf("%s: %w: of type %s", doing, errUnreadable, e.Header.EventType)
		case *net.OpError:
			return fmt.Errorf("%s: %w", doing, e)
		}
		if c, ok := inner.(interface{ Cause() error }); ok && c.Cause() != inner {
			inner = c.Cause()
		} else if next := errors.Unwrap(inner); next != nil {
			inner = next
		} else {
			err, inner = inner, nil
		}
	}
	text := err.Error()
	if strings.Contains(text, "panic") {
		return fmt.Errorf("%s: %w", doing, errUnreadable)
	}
	return fmt.Errorf("%s: %s", doing, s.masked(text))
}

func (s *Source) masked(text string) string {
	const most = 300
	if s.config.Passwd != "" {
		text = strings.ReplaceAll(text, s.config.Passwd, "***")
	}
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

// refused makes a SetupError of a database that the user may not see.
func (s *Source) refused(err error) error {
	if !isRefusal(err, wrongDatabase, unknownDatabase) {
		return err
	}
	return &change.SetupError{Problem: fmt.Sprintf("there is no database %q, or user %q may not see it", s.config.DBName, s.config.User),
		Fix: "create it, or GRANT SELECT ON " + quote(s.config.DBName) + ".* TO " + literal(s.config.User) + ";"}
}

func quote(name string) string   { return "`" + strings.ReplaceAll(name, "`", "``") + "`" }
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
