package postgres

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/fleetbus/fleetbus/change"
)

const (
	// statusEvery is how often the server is told how far the Source has come.
	statusEvery = time.Second
	// checkEvery is how often tables and the log kept are looked at.
	checkEvery = 5 * time.Second
	// silent is how long the server may say nothing. It is asked with each status.
	silent = 30 * time.Second
	// flushTimeout bounds the wait for the bus, so that the server goes on hearing
	// of the Source.
	flushTimeout = 5 * time.Second
	// busy is how many messages in busyTime make a busy server. Then the Source
	// reads in steps, because to wake for each message would take from the writers
	// what they need.
	busy, busyTime, step = 100, 50 * time.Millisecond, 10 * time.Millisecond
	// retainedWarning is how much log may be kept if the server sets no limit.
	retainedWarning = 1 << 30
)

// relation is a table as the log describes it: its name in keys, and where its
// primary key is.
type relation struct {
	table   string
	columns []string
	key     []int
}

// pace is how often a reader does what nothing wakes it for: statusEvery and
// checkEvery, but in tests.
type pace struct{ status, check time.Duration }

// reader is one Run.
type reader struct {
	options   Options
	pace      pace
	setup     *setup
	conn      *pgconn.PgConn
	publisher *change.Publisher

	epoch     string
	relations map[uint32]*relation
	// begun and committed are of the transaction that is being read.
	begun     pglogrepl.LSN
	committed time.Time
	open      bool
	// read is how far everything was announced, safe how far it is recorded, and
	// announced says that something was since. flushing has what is being recorded.
	read, safe pglogrepl.LSN
	announced  bool
	flushing   chan pglogrepl.LSN
	heard      time.Time
	progress   change.Progress
}

func (r *reader) run(ctx context.Context) error {
	system, err := pglogrepl.IdentifySystem(ctx, r.conn)
	if err != nil {
		return fmt.Errorf("asking which system it is: %w", err)
	}
	r.epoch = epochOf(system.SystemID, int(system.Timeline))
	slot, start, fresh, err := r.slot(ctx)
	if err != nil {
		return err
	}
	err = pglogrepl.StartReplication(ctx, r.conn, slot, start, pglogrepl.StartReplicationOptions{
		Mode:       pglogrepl.LogicalReplication,
		PluginArgs: []string{"proto_version '1'", "publication_names '" + strings.ReplaceAll(quote(r.options.Publication), "'", "''") + "'", "messages 'true'"},
	})
	if err != nil {
		return fmt.Errorf("starting to read the log from slot %q: %w", slot, err)
	}
	r.read, r.safe, r.heard = start, start, time.Now()
	r.progress.Warning = r.setup.warning()
	if fresh {
		if err := r.resync(nil); err != nil {
			return err
		}
	}
	err = r.follow(ctx)
	if code(err) == missingCode && r.options.Slot != "" {
		// The slot's place in the log is older than the publication, which somebody
		// dropped: the server cannot read on from there.
		return errors.Join(err, r.drop(ctx))
	}
	return err
}

// slot makes a slot, or finds the permanent one. fresh says that changes before
// it are not known.
func (r *reader) slot(ctx context.Context) (name string, start pglogrepl.LSN, fresh bool, err error) {
	name = r.options.Slot
	if name == "" {
		name = "fleetbus_" + strings.ToLower(rand.Text()[:16])
	} else if start, there, err := r.permanent(ctx); err != nil {
		return name, 0, false, err
	} else if there {
		if r.setup.marked(r.setup.mark(r.epoch)) {
			return name, start, false, nil
		}
		return name, start, true, r.setup.unsure(ctx, []change.Key{nil})
	} else if err := r.setup.forget(ctx); err != nil {
		return name, 0, false, err
	}
	made, err := pglogrepl.CreateReplicationSlot(ctx, r.conn, name, "pgoutput", pglogrepl.CreateReplicationSlotOptions{
		Temporary: r.options.Slot == "", Mode: pglogrepl.LogicalReplication, SnapshotAction: "NOEXPORT_SNAPSHOT",
	})
	if code(err) == noSlotCode { // somebody was faster
		var slots int
		if r.setup.conn.row(ctx, "SELECT current_setting('max_replication_slots')", nil, &slots) == nil {
			err = noSlot(slots)
		}
	}
	if err != nil {
		return "", 0, false, fmt.Errorf("making replication slot %q: %w", name, err)
	}
	start, err = pglogrepl.ParseLSN(made.ConsistentPoint)
	return name, start, true, err
}

// permanent reports whether the permanent slot is there and whole, and how far it
// was read. One that lost its log is dropped.
func (r *reader) permanent(ctx context.Context) (start pglogrepl.LSN, there bool, err error) {
	var active *int64
	var status, plugin, confirmed string
	var here bool
	err = r.setup.conn.row(ctx, `SELECT active_pid, coalesce(wal_status, ''), coalesce(plugin, 'physical'), coalesce(confirmed_flush_lsn, '0/0')::text,
		coalesce(database = current_database(), false) FROM pg_replication_slots WHERE slot_name = $1`, []string{r.options.Slot},
		&active, &status, &plugin, &confirmed, &here)
	switch {
	case errors.Is(err, errNoRow):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("looking for replication slot %q: %w", r.options.Slot, err)
	case plugin != "pgoutput" || !here:
		return 0, false, &change.SetupError{Problem: fmt.Sprintf("replication slot %q is another's: it is of plugin %s, or of another database", r.options.Slot, plugin),
			Fix: "choose another name for the slot, or, if nobody needs it, SELECT pg_drop_replication_slot('" + r.options.Slot + "');"}
	case active != nil:
		return 0, false, fmt.Errorf("replication slot %q is in use, by process %d of the server", r.options.Slot, *active)
	case status == "lost":
		return 0, false, r.drop(ctx)
	}
	start, err = pglogrepl.ParseLSN(confirmed)
	return start, true, err
}

func (r *reader) drop(ctx context.Context) error {
	if err := r.setup.conn.exec(ctx, "SELECT pg_drop_replication_slot($1)", r.options.Slot); err != nil {
		return fmt.Errorf("dropping replication slot %q, which lost its log: %w", r.options.Slot, err)
	}
	return nil
}

func (r *reader) resync(key change.Key) error {
	r.announced = true
	return r.publisher.Announce(change.Notice{Kind: change.Resync, Key: key, Version: uint64(r.read), Epoch: r.epoch})
}

// follow reads the log until ctx is done.
func (r *reader) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var looking chan looked
	defer func() {
		if cancel(); looking != nil {
			<-looking
		}
	}()
	var began time.Time
	for {
		select {
		case l := <-looking:
			looking = nil
			if err := r.found(l); err != nil {
				return err
			}
		default:
		}
		if looking == nil && time.Since(began) >= r.pace.check {
			began, looking = time.Now(), make(chan looked, 1)
			go func() { looking <- r.look(ctx) }()
		}
		if err := r.status(ctx); err != nil {
			return err
		}
		if time.Since(r.heard) > silent {
			return fmt.Errorf("the server has been silent for %v", silent)
		}
		if err := r.receive(ctx, time.Now().Add(r.pace.status)); err != nil {
			return err
		}
	}
}

// receive takes messages until then.
func (r *reader) receive(ctx context.Context, until time.Time) error {
	wait, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	count, since := 0, time.Now()
	for {
		if count++; count == busy {
			now := time.Now()
			if now.After(until) {
				return nil
			}
			if now.Sub(since) < busyTime {
				select {
				case <-wait.Done():
				case <-time.After(step):
				}
			}
			count, since = 0, now
		}
		msg, err := r.conn.ReceiveMessage(wait)
		if err != nil {
			if pgconn.Timeout(err) && ctx.Err() == nil {
				return nil
			}
			return fmt.Errorf("reading the log: %w", err)
		}
		r.heard = time.Now()
		switch msg := msg.(type) {
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("reading the log: %w", pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.CopyData:
			if err := r.take(ctx, msg.Data); err != nil {
				return err
			}
		}
	}
}

func (r *reader) take(ctx context.Context, data []byte) error {
	switch data[0] {
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		alive, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
		// All that was in the log until there, and concerned us, was sent.
		if !r.open {
			r.read = max(r.read, alive.ServerWALEnd)
		}
		if alive.ReplyRequested {
			return r.status(ctx)
		}
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
		msg, err := pglogrepl.Parse(x.WALData)
		if err != nil {
			return fmt.Errorf("reading the log: %w", err)
		}
		return r.message(ctx, msg)
	}
	return nil
}

// message is one message of the log. Of a row nothing but its key goes on.
func (r *reader) message(ctx context.Context, msg pglogrepl.Message) error {
	switch msg := msg.(type) {
	case *pglogrepl.BeginMessage:
		r.begun, r.committed, r.open = msg.FinalLSN, msg.CommitTime, true
	case *pglogrepl.CommitMessage:
		r.open, r.read = false, msg.TransactionEndLSN
		r.progress.Version, r.progress.Lag = uint64(r.begun), time.Since(r.committed)
	case *pglogrepl.RelationMessage:
		return r.relation(ctx, msg)
	case *pglogrepl.InsertMessage:
		return r.row(msg.RelationID, change.Insert, msg.Tuple)
	case *pglogrepl.DeleteMessage:
		return r.row(msg.RelationID, change.Delete, msg.OldTuple)
	case *pglogrepl.UpdateMessage:
		return r.update(msg)
	case *pglogrepl.TruncateMessage:
		for _, id := range msg.RelationIDs {
			if err := r.all(id); err != nil {
				return err
			}
		}
	case *pglogrepl.LogicalDecodingMessage:
		return r.emitted(msg)
	}
	return nil
}

func (r *reader) announce(key change.Key, kind change.Kind) error {
	r.announced = true
	return r.publisher.Announce(change.Notice{Key: key, Kind: kind, Version: uint64(r.begun), Epoch: r.epoch, Time: r.committed})
}

// all says that everything in a table may have changed.
func (r *reader) all(id uint32) error {
	rel := r.relations[id]
	if rel == nil {
		return r.announce(nil, change.Resync)
	}
	return r.announce(change.Key{rel.table}, change.Resync)
}

// row announces the row whose key tuple holds.
func (r *reader) row(id uint32, kind change.Kind, tuple *pglogrepl.TupleData) error {
	key, ok := r.key(id, tuple)
	if !ok {
		return r.all(id)
	}
	return r.announce(key, kind)
}

// key is the key in tuple; false if it is not known.
func (r *reader) key(id uint32, tuple *pglogrepl.TupleData) (change.Key, bool) {
	rel := r.relations[id]
	if rel == nil || tuple == nil || len(rel.key) == 0 {
		return nil, false
	}
	key := change.Key{rel.table}
	for _, i := range rel.key {
		if i >= len(tuple.Columns) {
			return nil, false
		}
		switch c := tuple.Columns[i]; c.DataType {
		case pglogrepl.TupleDataTypeNull:
			key = append(key, "")
		case pglogrepl.TupleDataTypeText:
			key = append(key, string(c.Data))
		default:
			return nil, false
		}
	}
	return key, true
}

// update announces a row, or two if its key changed.
func (r *reader) update(msg *pglogrepl.UpdateMessage) error {
	if msg.OldTuple == nil {
		return r.row(msg.RelationID, change.Update, msg.NewTuple)
	}
	before, ok := r.key(msg.RelationID, msg.OldTuple)
	after, also := r.key(msg.RelationID, msg.NewTuple)
	if !ok || !also {
		return r.all(msg.RelationID)
	}
	if slices.Equal(before, after) {
		return r.announce(after, change.Update)
	}
	return errors.Join(r.announce(before, change.Delete), r.announce(after, change.Insert))
}

// emitted announces what Emit wrote.
func (r *reader) emitted(msg *pglogrepl.LogicalDecodingMessage) error {
	if msg.Prefix != MessagePrefix {
		return nil
	}
	if !msg.Transactional {
		r.begun, r.committed = msg.LSN, time.Now()
	}
	kind, text, _ := bytes.Cut(msg.Content, []byte(" "))
	key, err := change.ParseKey(string(text))
	if err == nil {
		err = r.announce(key, change.Kind(kind))
	}
	if errors.Is(err, change.ErrClosed) {
		return err
	}
	if err != nil { // somebody wrote it by hand; something changed
		return r.announce(nil, change.Resync)
	}
	return nil
}

// relation learns of a table, or that it is another than before.
func (r *reader) relation(ctx context.Context, msg *pglogrepl.RelationMessage) error {
	rel := &relation{table: tableName(msg.Namespace, msg.RelationName)}
	for _, c := range msg.Columns {
		rel.columns = append(rel.columns, c.Name)
	}
	// The connection to the catalog may have gone silent.
	ctx, cancel := context.WithTimeout(ctx, silent)
	defer cancel()
	r.setup.mu.Lock()
	defer r.setup.mu.Unlock()
	whole, err := r.setup.whole(ctx, msg.RelationID)
	if err != nil {
		return fmt.Errorf("looking for the table of %q: %w", rel.table, err)
	}
	rel.table = cmp.Or(whole, rel.table)
	primary, err := r.setup.primaryKey(ctx, msg.RelationID)
	if err != nil {
		return fmt.Errorf("looking for the primary key of table %q: %w", rel.table, err)
	}
	for _, column := range primary {
		if i := slices.Index(rel.columns, column); i >= 0 {
			rel.key = append(rel.key, i)
		}
	}
	// The catalog is of today, and the log may be older; a table may have another
	// identity than its primary key.
	identity := 0
	for _, i := range rel.key {
		if msg.Columns[i].Flags&1 != 0 {
			identity++
		}
	}
	if len(rel.key) == 0 || len(rel.key) != len(primary) || identity < len(primary) {
		rel.key = nil
		for i, c := range msg.Columns {
			if c.Flags&1 != 0 && msg.ReplicaIdentity != 'f' {
				rel.key = append(rel.key, i)
			}
		}
	}
	before := r.relations[msg.RelationID]
	r.relations[msg.RelationID] = rel
	if before == nil || before.table == rel.table && slices.Equal(before.columns, rel.columns) && slices.Equal(before.key, rel.key) {
		return nil
	}
	return errors.Join(r.announce(change.Key{before.table}, change.Resync), r.announce(change.Key{rel.table}, change.Resync))
}

// status tells the server how far the Source has come: as far as it is recorded.
func (r *reader) status(ctx context.Context) error {
	r.settle(ctx)
	err := pglogrepl.SendStandbyStatusUpdate(ctx, r.conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: r.safe, ReplyRequested: true})
	if err != nil {
		return fmt.Errorf("telling the server how far it was read: %w", err)
	}
	r.progress.Position, r.progress.Epoch, r.progress.Seen = r.read.String(), r.epoch, r.heard
	r.publisher.Report(r.progress)
	return nil
}

// settle moves safe to what is recorded, and has what was announced since
// recorded, while the log is read on.
func (r *reader) settle(ctx context.Context) {
	if r.flushing != nil {
		select {
		case at := <-r.flushing:
			r.safe, r.flushing = max(r.safe, at), nil
		default:
			return
		}
	}
	switch {
	case r.open || r.read <= r.safe:
	case !r.announced:
		r.safe = r.read
	default:
		r.announced = false
		at, was, done := r.read, r.safe, make(chan pglogrepl.LSN, 1)
		r.flushing = done
		go func() {
			ctx, cancel := context.WithTimeout(ctx, flushTimeout)
			defer cancel()
			if r.publisher.Flush(ctx) != nil {
				at = was
			}
			done <- at
		}()
	}
}

// looked is what the log does not tell: tables that came, went or became others,
// and how much log is kept.
type looked struct {
	changed  []change.Key
	warning  string
	retained uint64
	err      error
}

// look looks while the log is read on. What was found the last time is announced.
func (r *reader) look(ctx context.Context) (l looked) {
	unmarked := ""
	if r.options.Slot != "" {
		if unmarked, l.err = r.mark(ctx); l.err != nil {
			return l
		}
	}
	ctx, cancel := context.WithTimeout(ctx, silent)
	defer cancel()
	r.setup.mu.Lock()
	defer r.setup.mu.Unlock()
	if l.changed, l.err = r.setup.publish(ctx); l.err != nil {
		return l
	}
	l.warning = cmp.Or(unmarked, r.setup.warning())
	if r.options.Slot == "" {
		return l
	}
	var retained, limit int64
	err := r.setup.conn.row(ctx, `SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
		(SELECT setting::bigint * 1048576 FROM pg_settings WHERE name = 'max_slot_wal_keep_size') FROM pg_replication_slots WHERE slot_name = $1`, []string{r.options.Slot},
		&retained, &limit)
	if err != nil {
		l.err = fmt.Errorf("looking at replication slot %q: %w", r.options.Slot, err)
		return l
	}
	l.retained = uint64(max(retained, 0))
	most := int64(retainedWarning)
	if limit > 0 {
		most = limit / 2
	}
	if retained > most {
		l.warning = fmt.Sprintf("the server keeps %d MiB of log for slot %q; fix: look why the source is behind, or set max_slot_wal_keep_size", retained>>20, r.options.Slot)
	}
	return l
}

func (r *reader) found(l looked) error {
	if l.err != nil {
		return l.err
	}
	r.progress.Warning, r.progress.Retained = l.warning, l.retained
	for _, key := range l.changed {
		if err := r.resync(key); err != nil {
			return err
		}
	}
	return nil
}

// mark notes with which tables the slot was read, once nothing that concerns them
// waits to be recorded. It returns a warning if it may not.
func (r *reader) mark(ctx context.Context) (warning string, err error) {
	mark := r.setup.mark(r.epoch)
	if r.setup.marked(mark) || len(r.setup.late) > 0 {
		return "", nil
	}
	flush, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if r.publisher.Flush(flush) != nil {
		return "", nil // at the next look
	}
	r.setup.mu.Lock()
	defer r.setup.mu.Unlock()
	ctx, cancel = context.WithTimeout(ctx, silent)
	defer cancel()
	err = r.setup.keep(ctx, mark)
	switch {
	case code(err) == refusedCode:
		return fmt.Sprintf("the source may not comment on publication %s, and begins with a resync each time; fix: %s", quote(r.options.Publication), r.setup.own()), nil
	case code(err) == lockedCode:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("commenting on publication %q: %w", r.options.Publication, err)
	}
	return "", nil
}
