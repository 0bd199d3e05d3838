package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// maxWaiting and maxWaitingBytes bound the logins and refusals that wait to be
	// stored. What somebody waits for is bounded by how many may ask at once.
	maxWaiting, maxWaitingBytes = 1 << 14, 16 << 20
	// refusalRate and refusalBurst bound the refusals that are told one by one: anybody
	// can be refused, and may not push out of the stream what others did.
	refusalRate, refusalBurst = 5, 500
	// anchorsEvery is how often a node looks how far the journals of others are, and
	// says so in its own if they went on.
	anchorsEvery = 15 * time.Second
	// gapEvery is how often it says how much it did not tell.
	gapEvery = time.Second
	// storeTimeout bounds an attempt to store a block.
	storeTimeout = 15 * time.Second
	// stopTimeout is how long a node that stops tries to store what waits.
	stopTimeout = 2 * time.Second
)

// What is kept of the audit if nobody has decided otherwise.
const (
	DefaultAge  = 365 * 24 * time.Hour
	DefaultSize = 256 << 20
	// diskShare is the part of what streams may take that is set aside for it at most: the
	// engine reserves it.
	diskShare = 8
)

// Options are what a Journal needs.
type Options struct {
	// Node is its name.
	Node string
	// Path is where the journal's key is kept, and, with ".heads" after it, what is known
	// of all journals. Empty: the journal ends with the process.
	Path string
	// Write writes a file so that it is there whole, or not at all.
	Write func(path string, data []byte, mode fs.FileMode) error
	// Logger is told what goes wrong.
	Logger *slog.Logger
}

// A Journal is a node's own. Make it with New. Tell and Store are safe for concurrent
// use, before Run too, and whatever becomes of it.
type Journal struct {
	o        Options
	key      nkeys.KeyPair
	public   string
	refusals *rate.Limiter
	wake     chan struct{}

	mu      sync.Mutex
	waiting []waiting
	told    int // of those that wait, by Tell
	bytes   int // of those
	dropped map[gap]int
	heads   map[string]admin.AuditHead // by journal
	dirty   bool                       // heads are not on the disk
	stream  jetstream.Stream
	opened  chan struct{} // closed when there is a stream
	size    int64         // of a new stream

	// Of Run alone.
	ledger *ledger.Ledger
	tail   tail
}

// gap is what was not told one by one.
type gap struct {
	kind    admin.AuditKind
	account string
}

type waiting struct {
	entry  admin.AuditEntry
	size   int
	told   bool // nobody waits for it
	stored chan<- uint64
}

// tail is where a journal goes on.
type tail struct {
	sequence uint64 // of the last message on its subject; 0 if there is none
	block    uint64
	next     uint64 // number of the next entry
	hash     string
	time     time.Time
}

// New makes the journal of a node: with a new key, unless there is one at its path.
func New(o Options) (*Journal, error) {
	j := &Journal{
		o: o, refusals: rate.NewLimiter(refusalRate, refusalBurst), wake: make(chan struct{}, 1), opened: make(chan struct{}),
		dropped: map[gap]int{}, heads: map[string]admin.AuditHead{}, size: DefaultSize,
	}
	seed, err := os.ReadFile(o.Path)
	switch {
	case err == nil:
		j.key, err = nkeys.FromSeed(seed)
	case o.Path == "", errors.Is(err, fs.ErrNotExist):
		if j.key, err = nkeys.CreateServer(); err != nil {
			break
		}
		if seed, err = j.key.Seed(); err == nil && o.Path != "" {
			err = o.Write(o.Path, seed, 0o600)
		}
	}
	if err == nil {
		j.public, err = j.key.PublicKey()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key of the audit %q: %w", o.Path, err)
	}
	if data, err := os.ReadFile(o.Path + headsSuffix); err == nil {
		if err := json.Unmarshal(data, &j.heads); err != nil {
			o.Logger.Error("what was known of the audit cannot be read", "path", o.Path+headsSuffix, "error", err)
		}
	}
	j.Tell(admin.AuditEntry{Kind: admin.AuditStart})
	return j, nil
}

const headsSuffix = ".heads"

// Public is the journal's public key.
func (j *Journal) Public() string { return j.public }

// Within makes the audit small enough for a node whose streams may take so many bytes. It
// is called before Run.
func (j *Journal) Within(bytes int64) {
	if bytes > 0 {
		j.size = min(j.size, bytes/diskShare)
	}
}

// Heads are the last blocks of all journals that this node knows of, by public key.
func (j *Journal) Heads() map[string]admin.AuditHead {
	j.mu.Lock()
	defer j.mu.Unlock()
	return maps.Clone(j.heads)
}

// Tell has an entry stored soon, and waits for nothing. What is too much is counted, and
// the count is told.
func (j *Journal) Tell(e admin.AuditEntry) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC().Round(0)
	limited := e.Kind == admin.AuditRefused && !j.refusals.Allow()
	size := sizeOf(e)
	j.mu.Lock()
	defer j.mu.Unlock()
	if limited || j.told >= maxWaiting || j.bytes+size > maxWaitingBytes {
		j.drop(gap{e.Kind, e.Account}, max(e.Count, 1))
		return
	}
	j.told, j.bytes = j.told+1, j.bytes+size
	j.waiting = append(j.waiting, waiting{entry: e, size: size, told: true})
	j.signal()
}

// maxGaps bounds the accounts that gaps are told of one by one: a stranger may name any.
const maxGaps = 256

// Drop counts what the node could not even look at.
func (j *Journal) Drop(kind admin.AuditKind, account string, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.drop(gap{kind, account}, n)
}

// drop counts what is not told; mu is held.
func (j *Journal) drop(g gap, n int) {
	if _, known := j.dropped[g]; !known && len(j.dropped) >= maxGaps {
		g.account = ""
	}
	j.dropped[g] += n
}

// sizeOf is about what an entry takes.
func sizeOf(e admin.AuditEntry) int {
	n := 256 + len(e.Who) + len(e.What) + len(e.Account) + len(e.Listener) + len(e.Request) + len(e.Result)
	for _, f := range e.From {
		n += len(f) + 4
	}
	for _, c := range e.Changes {
		n += len(c.Subject) + len(c.Before) + len(c.After) + 64
	}
	return n
}

// Store returns the number of an entry when it is stored. If ctx ends before, it may be
// stored later.
func (j *Journal) Store(ctx context.Context, e admin.AuditEntry) (uint64, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC().Round(0)
	stored := make(chan uint64, 1)
	j.mu.Lock()
	j.waiting = append(j.waiting, waiting{entry: e, size: sizeOf(e), stored: stored})
	j.signal()
	j.mu.Unlock()
	select {
	case n := <-stored:
		return n, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("storing an entry of the audit: %w", ctx.Err())
	}
}

// signal wakes Run; mu is held.
func (j *Journal) signal() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Run stores what the journal is told, until ctx is done: over nc, in a stream that is
// made with so many copies. What then waits still has a moment.
func (j *Journal) Run(ctx context.Context, nc *nats.Conn, replicas int) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("opening the audit: %w", err)
	}
	if err := j.begin(ctx, js, replicas); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// What is being stored when ctx ends is stored once, and not begun again.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopTimeout, cancel) })()
	anchors, gaps := time.NewTicker(anchorsEvery), time.NewTicker(gapEvery)
	defer anchors.Stop()
	defer gaps.Stop()
	for {
		var news map[string]admin.AuditHead
		select {
		case <-ctx.Done():
			return j.end(lasting)
		case <-j.wake:
		case <-gaps.C:
			j.tellGaps()
			continue
		case <-anchors.C:
			news = j.look(ctx)
			j.remember()
		}
		if err := j.drain(lasting, news); err != nil && lasting.Err() == nil {
			return err
		}
	}
}

// Keep is Run, again and again.
func (j *Journal) Keep(ctx context.Context, nc *nats.Conn, replicas int) {
	for ctx.Err() == nil {
		if err := j.Run(ctx, nc, replicas); err != nil {
			j.o.Logger.Error("the audit is interrupted", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// begin opens the stream and finds the journal's end, as long as it takes.
func (j *Journal) begin(ctx context.Context, js jetstream.JetStream, replicas int) error {
	o := ledger.Options{Stream: Stream, Prefix: Prefix, Replicas: replicas, MaxAge: DefaultAge, MaxBytes: j.size}
	var err error
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		// A request that is sent before there is a leader may never be answered.
		try, cancel := context.WithTimeout(ctx, 100*time.Millisecond+2*wait)
		if j.ledger, err = ledger.Open(try, js, o); err == nil {
			var stream jetstream.Stream
			if stream, err = js.Stream(try, Stream); err == nil {
				j.open(stream)
				err = j.find(try)
			}
		}
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// find learns where the journal goes on: after the last block that is stored, or, if
// more is remembered, after that. What was taken out then shows. A read that was stale
// shows when the next block is refused.
func (j *Journal) find(ctx context.Context) error {
	known := j.Heads()[j.public]
	t := tail{next: known.Next, block: known.Block, hash: known.Hash, time: known.Time}
	t.next = max(t.next, 1)
	msg, err := j.Stream().GetLastMsgForSubject(ctx, Prefix+"."+j.public)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
	case err != nil:
		return fmt.Errorf("reading the end of the journal: %w", err)
	default:
		t.sequence = msg.Sequence
		b, hash, err := open(j.public, msg.Data)
		if err != nil {
			j.o.Logger.Error("the end of this node's journal was altered", "sequence", msg.Sequence, "error", err)
			break
		}
		if b.Number >= known.Block {
			t = tail{sequence: msg.Sequence, block: b.Number, next: b.Next(), hash: hash, time: b.Time}
		}
	}
	j.tail = t
	return nil
}

// Stream holds the journals; nil before Run has opened it.
func (j *Journal) Stream() jetstream.Stream {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stream
}

func (j *Journal) open(stream jetstream.Stream) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stream == nil {
		close(j.opened)
	}
	j.stream = stream
}

// take takes what the next block holds.
func (j *Journal) take() (some []waiting) {
	j.mu.Lock()
	defer j.mu.Unlock()
	size := 0
	for n, w := range j.waiting {
		if size += w.size; n == maxEntries || n > 0 && size > maxBlock/2 {
			break
		}
		some = append(some, w)
	}
	j.waiting = slices.Clone(j.waiting[len(some):])
	for _, w := range some {
		if w.told {
			j.told, j.bytes = j.told-1, j.bytes-w.size
		}
	}
	return some
}

// drain stores everything that waits, and news of other journals.
func (j *Journal) drain(ctx context.Context, news map[string]admin.AuditHead) error {
	for {
		some := j.take()
		if len(some) == 0 && len(news) == 0 {
			return nil
		}
		if err := j.store(ctx, some, news); err != nil {
			j.mu.Lock()
			j.waiting = append(some, j.waiting...)
			for _, w := range some {
				if w.told {
					j.told, j.bytes = j.told+1, j.bytes+w.size
				}
			}
			j.mu.Unlock()
			return err
		}
		news = nil
	}
}

// store stores one block, as long as it takes.
func (j *Journal) store(ctx context.Context, some []waiting, news map[string]admin.AuditHead) error {
	lost := false
	for {
		b := Block{
			Version: 1, Journal: j.public, Node: j.o.Node, Number: j.tail.block + 1, Previous: j.tail.hash, PreviousTime: j.tail.time,
			Time: time.Now().UTC().Round(0), First: j.tail.next, Anchors: news,
		}
		for _, w := range some {
			b.Entries = append(b.Entries, w.entry)
		}
		data, hash, err := seal(&b, j.key)
		if err != nil {
			return err
		}
		sequence, err := j.append(ctx, data, hash)
		switch {
		case err == nil:
			if lost {
				j.o.Logger.Info("the audit is stored again", "count", len(some))
			}
			j.tail = tail{sequence: sequence, block: b.Number, next: b.Next(), hash: hash, time: b.Time}
			j.advance(&b, hash)
			for i, w := range some {
				if w.stored != nil {
					w.stored <- b.First + uint64(i)
				}
			}
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, nats.ErrConnectionClosed):
			return fmt.Errorf("storing the audit: %w", err)
		}
		if !lost {
			lost = true
			j.o.Logger.Warn("the audit cannot be stored now", "count", len(some), "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// append stores the data of a block after the tail. If it is not certain whether that
// was done, or somebody was faster, the tail is looked for anew: it may be this block.
func (j *Journal) append(ctx context.Context, data []byte, hash string) (uint64, error) {
	try, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	sequence, err := j.ledger.Append(try, j.public, j.tail.sequence, data)
	if err == nil || ctx.Err() != nil {
		return sequence, err
	}
	again, stop := context.WithTimeout(ctx, storeTimeout)
	defer stop()
	if e := j.find(again); e != nil {
		return 0, errors.Join(err, e)
	}
	if j.tail.hash == hash {
		return j.tail.sequence, nil
	}
	return 0, err
}

// advance remembers a block of this journal.
func (j *Journal) advance(b *Block, hash string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.heads[j.public] = admin.AuditHead{Node: b.Node, Block: b.Number, Hash: hash, Next: b.Next(), Time: b.Time}
	j.dirty = true
}

// look learns how far the journals of others are, and returns what is news to whoever
// reads this one: a block that only tells of others is none.
func (j *Journal) look(ctx context.Context) map[string]admin.AuditHead {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	info, err := j.Stream().Info(ctx, jetstream.WithSubjectFilter(Prefix+".*"))
	if err != nil {
		return nil // it is looked again
	}
	news := map[string]admin.AuditHead{}
	for subject := range info.State.Subjects {
		journal := strings.TrimPrefix(subject, Prefix+".")
		if journal == j.public || len(news) == maxAnchors {
			continue
		}
		msg, err := j.Stream().GetLastMsgForSubject(ctx, subject)
		if err != nil {
			continue
		}
		b, hash, err := open(journal, msg.Data)
		if err != nil {
			j.o.Logger.Error("a journal of the audit was altered", "name", journal, "sequence", msg.Sequence, "error", err)
			continue
		}
		head := admin.AuditHead{Node: b.Node, Block: b.Number, Hash: hash, Next: b.Next(), Time: b.Time}
		j.mu.Lock()
		if known := j.heads[journal]; b.Number > known.Block {
			j.heads[journal], j.dirty = head, true
			if b.Next() > known.Next {
				news[journal] = head
			}
		}
		j.mu.Unlock()
	}
	return news
}

// remember writes the heads to the disk, if there are new ones.
func (j *Journal) remember() {
	j.mu.Lock()
	dirty := j.dirty && j.o.Path != ""
	j.dirty = false
	data, err := json.Marshal(j.heads)
	j.mu.Unlock()
	if !dirty {
		return
	}
	if err == nil {
		err = j.o.Write(j.o.Path+headsSuffix, data, 0o600)
	}
	if err != nil {
		j.mu.Lock()
		j.dirty = true
		j.mu.Unlock()
		j.o.Logger.Warn("what is known of the audit could not be kept", "error", err)
	}
}

// tellGaps says how much was not told since it was called last.
func (j *Journal) tellGaps() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for g, n := range j.dropped {
		e := admin.AuditEntry{
			Kind: admin.AuditGap, Time: time.Now().UTC().Round(0), What: string(g.kind), Account: g.account, Count: n,
			Result: "there were more than are told one by one",
		}
		j.waiting = append(j.waiting, waiting{entry: e, size: sizeOf(e)})
	}
	if len(j.dropped) > 0 {
		clear(j.dropped)
		j.signal()
	}
}

// end stores what waits, if that can be done at once, and that the journal ends.
func (j *Journal) end(ctx context.Context) error {
	j.tellGaps()
	j.Tell(admin.AuditEntry{Kind: admin.AuditStop})
	if err := j.drain(ctx, nil); err != nil {
		j.o.Logger.Warn("the end of the audit could not be stored", "error", err)
	}
	j.remember()
	return nil
}
