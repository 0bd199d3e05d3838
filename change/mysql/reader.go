package mysql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-mysql-org/go-mysql/client"
	library "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/google/uuid"

	"github.com/fleetbus/fleetbus/change"
)

const (
	// heartbeatEvery is how often the server says that it has nothing to say, and
	// silent how long it may say nothing.
	heartbeatEvery, silent = 2 * time.Second, 10 * time.Second
	// tidyEvery is how often progress is reported and the position kept.
	tidyEvery = time.Second
	// flushTimeout bounds the wait for the bus, so that the log goes on being read.
	flushTimeout = 5 * time.Second
	// committed is how long a transaction that is in the log may take to be there
	// for readers; a server that waits for its replicas does not commit before.
	committed = 2 * time.Minute
	// buffered is how many events of the log are read ahead.
	buffered = 16
)

// reader is one Run.
type reader struct {
	source    *Source
	catalog   *catalog
	publisher *change.Publisher

	position *position // announced, to the end of a transaction
	kept     string    // in the position file
	// current is the transaction that is read, if it is open; grouped says that it
	// has an end of its own, and seen that readers can see it.
	current gtid
	open    bool
	grouped bool
	seen    bool
	time    time.Time
	// file and offset are where the last event ends, and visible how far readers can
	// see: on MySQL a set, on MariaDB a place in the log.
	file          string
	offset        uint64
	visible       *position
	visibleFile   string
	visibleOffset uint64

	heard    time.Time
	tidied   time.Time
	altered  map[[2]string]bool // tables that statements changed; see lost
	keyless  []string           // tables whose rows have no key
	asText   bool               // the log has statements
	progress change.Progress
}

// run reads the log from where it was left and, if that is not there any more,
// from its end.
func (r *reader) run(ctx context.Context) error {
	if r.source.options.PositionFile != "" {
		at, err := load(r.source.options.PositionFile, r.catalog.mariadb)
		if err != nil {
			return err
		}
		if at != nil {
			r.position, r.kept = at, at.String()
			err := r.follow(ctx, false)
			if !isRefusal(err, logLost) && !errors.Is(err, errUnreadable) {
				return r.explained(ctx, err)
			}
		}
	}
	if err := r.end(ctx); err != nil {
		return err
	}
	return r.explained(ctx, r.follow(ctx, true))
}

// explained makes a SetupError of a missing right.
func (r *reader) explained(ctx context.Context, err error) error {
	if isRefusal(err, missingPrivilege, wrongPassword) {
		return r.catalog.rights(ctx)
	}
	return err
}

// end is the position after which nothing was committed that readers cannot see.
func (r *reader) end(ctx context.Context) error {
	expression := "@@global.gtid_executed"
	if r.catalog.mariadb {
		expression = "@@global.gtid_binlog_pos"
	}
	text, err := r.catalog.value(ctx, expression)
	if err != nil {
		return err
	}
	if r.position, err = parsePosition(r.catalog.mariadb, text); err != nil {
		return err
	}
	r.open, r.file, r.offset = false, "", 0
	if !r.catalog.mariadb {
		return nil
	}
	log, err := r.catalog.log(ctx)
	if err != nil {
		return err
	}
	r.file = log["file"]
	if r.offset, err = strconv.ParseUint(log["position"], 10, 64); err != nil {
		return fmt.Errorf("reading where the log ends: %w", err)
	}
	return r.await(ctx)
}

// line is the connection over which the log comes. The library sets no deadline
// of its own then, and cannot call the server again after it was closed.
type line struct {
	silent time.Duration // how long it may be

	mu     sync.Mutex
	conn   net.Conn
	closed bool
}

type lineConn struct {
	net.Conn
	silent time.Duration
}

func (c lineConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silent)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (l *line) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	l.conn = conn
	return lineConn{conn, l.silent}, nil
}

// close ends what is read, and what is dialed later.
func (l *line) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.conn != nil {
		l.conn.Close()
	}
}

// decode decodes the rows of an event. Those that cannot be are left out, and
// then the event has none.
func decode(e *replication.RowsEvent, data []byte) error {
	at, err := e.DecodeHeader(data)
	if err != nil {
		return err
	}
	if err := e.DecodeData(at, data); err != nil {
		e.Rows = nil
	}
	return nil
}

// follow reads the log from the position until ctx is done.
func (r *reader) follow(ctx context.Context, fresh bool) error {
	l, c := &line{silent: r.source.config.ReadTimeout}, r.source.config
	config := replication.BinlogSyncerConfig{
		ServerID: r.source.options.ServerID, Flavor: library.MySQLFlavor, Host: c.Addr, User: c.User, Password: c.Passwd, Localhost: "fleetbus",
		TLSConfig: c.TLS, HeartbeatPeriod: r.source.heartbeat, DisableRetrySync: true, DiscardGTIDSet: true, EventCacheCount: buffered,
		TimestampStringLocation: time.UTC, RowsEventDecodeFunc: decode, Logger: slog.New(slog.DiscardHandler),
		Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx, c.Net, c.Addr) },
	}
	start := r.position.String()
	if r.catalog.mariadb {
		config.Flavor = library.MariaDBFlavor
		// The library keeps a position too, and writes to the standard error when it
		// does not like the numbers.
		config.Option = func(conn *client.Conn) error {
			_, err := conn.Execute("SET @slave_connect_state = '" + start + "', @slave_gtid_strict_mode = 1")
			return err
		}
	}
	syncer := replication.NewBinlogSyncer(config)
	stop := context.AfterFunc(ctx, l.close)
	defer func() { stop(); l.close(); syncer.Close() }()
	var stream *replication.BinlogStreamer
	var err error
	if r.catalog.mariadb {
		stream, err = syncer.StartSync(library.Position{})
	} else {
		stream, err = syncer.StartSyncGTID(r.position.set.Clone())
	}
	if err != nil {
		return r.source.safe("beginning to read the log", err)
	}
	r.heard = time.Now()
	last := r.position.last(r.catalog.server)
	r.progress.Version, r.progress.Epoch = last.number, ""
	if last.number > 0 {
		r.progress.Epoch = last.epoch(r.catalog.mariadb)
	}
	if fresh {
		if err := r.publisher.Announce(change.Notice{Kind: change.Resync, Version: last.number, Epoch: r.progress.Epoch}); err != nil {
			return err
		}
	}
	for {
		if err := r.tidy(ctx); err != nil {
			return err
		}
		if err := r.receive(ctx, stream); err != nil {
			return err
		}
	}
}

// receive takes events until it is time to tidy.
func (r *reader) receive(ctx context.Context, stream *replication.BinlogStreamer) error {
	wait, cancel := context.WithDeadline(ctx, r.tidied.Add(tidyEvery))
	defer cancel()
	for wait.Err() == nil {
		event, err := stream.GetEvent(wait)
		if err != nil {
			if wait.Err() != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return nil
			}
			return r.source.safe("reading the log", err)
		}
		r.heard = time.Now()
		r.place(event)
		if err := r.take(ctx, event); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// place keeps where in the log the reader is.
func (r *reader) place(event *replication.BinlogEvent) {
	if e, ok := event.Event.(*replication.RotateEvent); ok {
		r.file, r.offset = string(e.NextLogName), e.Position
		return
	}
	switch h := event.Header; {
	case h.LogPos != 0:
		r.offset = uint64(h.LogPos)
	case h.Flags&replication.LOG_EVENT_ARTIFICIAL_F == 0:
		r.offset += uint64(h.EventSize)
	}
}

// take is one event of the log.
func (r *reader) take(ctx context.Context, event *replication.BinlogEvent) error {
	at := time.Unix(int64(event.Header.Timestamp), 0)
	switch e := event.Event.(type) {
	case *replication.MariadbGTIDEvent:
		r.begin(gtid{domain: e.GTID.DomainID, id: e.GTID.ServerID, number: e.GTID.SequenceNumber}, at, !e.IsStandalone())
	case *replication.GtidTaggedLogEvent:
		return errors.New("reading the log: GTIDs with tags are not known")
	case *replication.GTIDEvent:
		server, err := uuid.FromBytes(e.SID)
		if err != nil || e.GNO == 0 {
			return errors.New("reading the log: it has a transaction without a GTID")
		}
		if e.ImmediateCommitTimestamp != 0 {
			at = e.ImmediateCommitTime()
		}
		r.begin(gtid{server: server, number: uint64(e.GNO)}, at, false)
	case *replication.TransactionPayloadEvent:
		for _, inner := range e.Events {
			if err := r.take(ctx, inner); err != nil {
				return err
			}
		}
	case *replication.RowsEvent:
		return r.rows(ctx, e)
	case *replication.QueryEvent:
		return r.statement(ctx, e)
	case *replication.ExecuteLoadQueryEvent:
		r.asText = true
		return r.announce(ctx, nil, change.Resync)
	case *replication.XIDEvent:
		r.commit()
	case *replication.GenericEvent:
		switch event.Header.EventType {
		case replication.XA_PREPARE_LOG_EVENT:
			r.commit()
		case replication.INCIDENT_EVENT:
			// The server itself has lost something.
			return r.announce(ctx, nil, change.Resync)
		}
	}
	return nil
}

func (r *reader) begin(g gtid, at time.Time, grouped bool) {
	r.commit()
	r.current, r.time, r.open, r.grouped, r.seen = g, at, true, grouped, false
}

// commit ends the transaction that is open.
func (r *reader) commit() {
	if !r.open {
		return
	}
	r.open = false
	r.position.add(r.current)
	r.progress.Version, r.progress.Epoch = r.current.number, r.current.epoch(r.catalog.mariadb)
	if r.seen {
		r.progress.Lag = max(0, time.Since(r.time))
	}
}

// announce tells of a key of the transaction that is open, when readers can see
// it.
func (r *reader) announce(ctx context.Context, key change.Key, kind change.Kind) error {
	if err := r.see(ctx); err != nil {
		return err
	}
	return r.publisher.Announce(change.Notice{Key: key, Kind: kind, Version: r.current.number, Epoch: r.current.epoch(r.catalog.mariadb), Time: r.time})
}

// see is await, once for each transaction.
func (r *reader) see(ctx context.Context) error {
	if r.seen {
		return nil
	}
	err := r.await(ctx)
	r.seen = err == nil
	return err
}

// await returns when readers can see the current transaction. The server sends a
// transaction when it is in the log, which is before it is committed.
func (r *reader) await(ctx context.Context) error {
	deadline := time.Now().Add(committed)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if r.isVisible() {
			return nil
		}
		if err := r.look(ctx); err != nil {
			return err
		}
		if r.isVisible() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("transaction %s is in the log and was not committed for %v", r.current.text(r.catalog.mariadb), committed)
		}
		if time.Since(r.tidied) > tidyEvery {
			if err := r.tidy(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (r *reader) isVisible() bool {
	if !r.catalog.mariadb {
		return r.visible != nil && r.visible.has(r.current)
	}
	a, b := fileNumber(r.visibleFile), fileNumber(r.file)
	return a > b || a == b && r.visibleOffset >= r.offset
}

// fileNumber is the number at the end of a log file's name.
func fileNumber(name string) uint64 {
	n, _ := strconv.ParseUint(name[strings.LastIndexByte(name, '.')+1:], 10, 64)
	return n
}

// look asks how far readers can see.
func (r *reader) look(ctx context.Context) error {
	if !r.catalog.mariadb {
		text, err := r.catalog.value(ctx, "@@global.gtid_executed")
		if err == nil {
			r.visible, err = parsePosition(false, text)
		}
		return err
	}
	// The server answers under the lock that it holds while it commits what is in
	// the log until there.
	return r.catalog.query(ctx, func(m map[string]string) {
		switch value := m["value"]; strings.ToLower(m["variable_name"]) {
		case "binlog_snapshot_file":
			r.visibleFile = value
		case "binlog_snapshot_position":
			r.visibleOffset, _ = strconv.ParseUint(value, 10, 64)
		}
	}, "SHOW STATUS LIKE 'binlog_snapshot_%'")
}

// rows announces the rows of an event. Of a row nothing but its key goes on.
func (r *reader) rows(ctx context.Context, e *replication.RowsEvent) error {
	schema, name := r.catalog.same(string(e.Table.Schema)), r.catalog.same(string(e.Table.Table))
	if err := r.cascade(ctx, e, schema, name); err != nil || !r.catalog.wanted(schema, name) {
		return err
	}
	t, err := r.catalog.table(ctx, schema, name)
	if err != nil {
		return err
	}
	if len(t.key) == 0 || len(t.columns) != int(e.ColumnCount) {
		if !slices.Contains(r.keyless, t.name) && len(r.keyless) < 100 {
			r.keyless = append(r.keyless, t.name)
		}
		return r.announce(ctx, change.Key{t.name}, change.Resync)
	}
	if len(e.Rows) == 0 {
		return r.announce(ctx, change.Key{t.name}, change.Resync)
	}
	kind, step := change.Insert, 1
	switch e.Type() {
	case replication.EnumRowsEventTypeDelete:
		kind = change.Delete
	case replication.EnumRowsEventTypeUpdate:
		kind, step = change.Update, 2
	}
	for i := 0; i+step <= len(e.Rows); i += step {
		if err := r.row(ctx, t, e, i, kind); err != nil {
			return err
		}
	}
	return nil
}

// row announces a row, or two if its key changed.
func (r *reader) row(ctx context.Context, t *table, e *replication.RowsEvent, i int, kind change.Kind) error {
	key, ok := t.rowKey(e, i, nil)
	if kind != change.Update {
		if !ok {
			return r.announce(ctx, change.Key{t.name}, change.Resync)
		}
		return r.announce(ctx, key, kind)
	}
	after, also := t.rowKey(e, i+1, key)
	switch {
	case !ok || !also:
		return r.announce(ctx, change.Key{t.name}, change.Resync)
	case slices.Equal(key, after):
		return r.announce(ctx, key, change.Update)
	}
	if err := r.announce(ctx, key, change.Delete); err != nil {
		return err
	}
	return r.announce(ctx, after, change.Insert)
}

// rowKey is the key of a row; false if it has none. What the log leaves out of a
// changed row is as it was before.
func (t *table) rowKey(e *replication.RowsEvent, i int, before change.Key) (change.Key, bool) {
	key := change.Key{t.name}
	for _, column := range t.key {
		if slices.Contains(e.SkippedColumns[i], column) {
			if before == nil {
				return nil, false
			}
			key = append(key, before[len(key)])
			continue
		}
		text, ok := t.columns[column].text(e.Rows[i][column])
		if !ok {
			return nil, false
		}
		key = append(key, text)
	}
	return key, true
}

// cascade announces the tables in which foreign keys change rows: the log has
// not got those.
func (r *reader) cascade(ctx context.Context, e *replication.RowsEvent, schema, name string) error {
	kind := e.Type()
	if kind == replication.EnumRowsEventTypeInsert {
		return nil
	}
	cascades, err := r.catalog.cascading(ctx, schema, name)
	if err != nil || len(cascades) == 0 {
		return err
	}
	t, err := r.catalog.table(ctx, schema, name)
	if err != nil {
		return err
	}
	for _, c := range cascades {
		if kind == replication.EnumRowsEventTypeDelete && c.deletes || kind == replication.EnumRowsEventTypeUpdate && c.updates && t.differ(e, c.referred) {
			if err := r.announce(ctx, change.Key{c.child}, change.Resync); err != nil {
				return err
			}
		}
	}
	return nil
}

// differ reports whether an update may have changed one of those columns.
func (t *table) differ(e *replication.RowsEvent, names []string) bool {
	if len(e.Rows) == 0 || len(t.columns) != int(e.ColumnCount) {
		return true
	}
	for i, col := range t.columns {
		if !slices.Contains(names, col.name) {
			continue
		}
		for j := 0; j+1 < len(e.Rows); j += 2 {
			if slices.Contains(e.SkippedColumns[j+1], i) {
				continue
			}
			if fmt.Sprint(e.Rows[j][i]) != fmt.Sprint(e.Rows[j+1][i]) {
				return true
			}
		}
	}
	return false
}

// statement is one that the log has as text.
func (r *reader) statement(ctx context.Context, e *replication.QueryEvent) error {
	words := tokens(string(e.Query[:min(len(e.Query), 64)]))
	switch {
	case len(words) == 0:
	case words[0].is("BEGIN"), words[0].is("XA") && len(words) > 1 && words[1].is("START", "BEGIN"):
		r.grouped = true
		return nil
	case words[0].is("COMMIT"), words[0].is("ROLLBACK") && len(words) == 1:
		r.commit()
		return nil
	}
	t := read(string(e.Query), string(e.Schema))
	if t.schema {
		// What the server says of its tables before may be old.
		if err := r.see(ctx); err != nil {
			return err
		}
		r.catalog.forget()
	}
	for _, at := range t.tables {
		schema, name := r.catalog.same(at[0]), r.catalog.same(at[1])
		if t.schema {
			r.altered[[2]string{schema, name}] = true
		}
		if !r.catalog.wanted(schema, name) {
			continue
		}
		if err := r.announce(ctx, change.Key{r.catalog.name(schema, name)}, change.Resync); err != nil {
			return err
		}
	}
	if t.all {
		r.asText = r.asText || !t.schema
		if err := r.announce(ctx, nil, change.Resync); err != nil {
			return err
		}
	}
	if !r.grouped {
		r.commit()
	}
	return nil
}

// lost announces the tables that foreign keys changed by way of one that is another
// now. Who reads the log late sees the foreign keys of today, and not that a row
// of the past took others with it, two tables further on.
func (r *reader) lost(ctx context.Context) error {
	for at := range r.altered {
		cascades, err := r.catalog.cascading(ctx, at[0], at[1])
		if err != nil {
			return err
		}
		for _, c := range cascades {
			n := change.Notice{Key: change.Key{c.child}, Kind: change.Resync, Version: r.progress.Version, Epoch: r.progress.Epoch}
			if err := r.publisher.Announce(n); err != nil {
				return err
			}
		}
	}
	clear(r.altered)
	return nil
}

// tidy keeps the position, if what was announced is recorded, and reports.
func (r *reader) tidy(ctx context.Context) error {
	r.tidied = time.Now()
	if err := r.lost(ctx); err != nil {
		return err
	}
	if path := r.source.options.PositionFile; path != "" {
		if now := r.position.String(); now != r.kept && r.flush(ctx) {
			if err := save(path, r.catalog.mariadb, now); err != nil {
				return err
			}
			r.kept = now
		}
	}
	r.progress.Position = r.position.String()
	if !r.catalog.mariadb {
		r.progress.Position = fmt.Sprintf("%s:%d", r.progress.Epoch, r.progress.Version)
	}
	r.progress.Seen = r.heard
	r.progress.Warning = r.warning()
	r.publisher.Report(r.progress)
	return nil
}

func (r *reader) flush(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	return r.publisher.Flush(ctx) == nil
}

// warning says what is announced more widely than it need be.
func (r *reader) warning() string {
	var all []string
	if len(r.keyless) > 0 {
		all = append(all, fmt.Sprintf("tables whose rows are not told apart: %s; fix: give them a primary key, or GRANT SELECT on them", strings.Join(r.keyless[:min(3, len(r.keyless))], ", ")))
	}
	if r.asText {
		all = append(all, "the log has changes as statements; fix: have no session set binlog_format, and end no transaction by XA COMMIT")
	}
	return strings.Join(all, "; ")
}
