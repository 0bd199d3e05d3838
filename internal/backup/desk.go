package backup

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
)

const (
	// partSize is how much is in an answer.
	partSize = 256 << 10
	// abandoned is after how long a backup that nobody asks for any more is given up.
	abandoned = 2 * time.Minute
	// atOnce bounds the backups that a node makes.
	atOnce = 2
)

// A Desk is where a node hands out backups. Its fields are set before it is used.
type Desk struct {
	Node string
	// Context ends with the node, and Group holds what is under way.
	Context context.Context
	Group   *sync.WaitGroup
	Conn    *nats.Conn
	// Source describes the fleet now, with the streams that were asked for.
	Source func(admin.BackupRequest) (Source, error)
	// Subjects are those of a request of that name.
	Subjects func(name string) []string
	Logger   *slog.Logger

	mu   sync.Mutex
	made int
}

// Begin answers who wants a backup. It is made while its parts are asked for.
func (d *Desk) Begin(_ context.Context, r admin.BackupRequest) (any, error) {
	recipient, err := age.ParseX25519Recipient(r.Recipient)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "the recipient is no public key of age: %v", err)
	}
	source, err := d.Source(r)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made >= atOnce {
		return nil, admin.Errorf(admin.Unavailable, "wait for the others to end", "node %s makes %d backups already", d.Node, d.made)
	}
	ctx, cancel := context.WithCancel(d.Context)
	out, in := io.Pipe()
	b := &handout{id: rand.Text(), from: out, asked: time.AfterFunc(abandoned, cancel)}
	for _, subject := range d.Subjects(admin.BackupParts + b.id) {
		sub, err := d.Conn.Subscribe(subject, func(msg *nats.Msg) { b.answer(msg, partOf(d.Conn.MaxPayload())) })
		if err != nil {
			b.asked.Stop()
			cancel()
			return nil, fmt.Errorf("subscribing to %q: %w", subject, err)
		}
		b.subs = append(b.subs, sub)
	}
	d.made++
	d.Group.Go(func() {
		err := Write(ctx, in, source, recipient)
		in.CloseWithError(err)
		if err != nil && d.Context.Err() == nil {
			d.Logger.Error("a backup failed", "error", err)
		}
	})
	d.Group.Go(func() {
		// The last part may be asked for again; then nobody asks any more.
		<-ctx.Done()
		out.CloseWithError(errAbandoned)
		for _, s := range b.subs {
			_ = s.Unsubscribe() // the connection may be closed
		}
		b.asked.Stop()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.made--
	})
	b.end = cancel
	return admin.BackupBegun{ID: b.id, Node: d.Node}, nil
}

var errAbandoned = errors.New("nobody asks for the backup any more")

// partOf is how much fits into an answer of so many bytes.
func partOf(payload int64) int { return int(min(partSize, max(payload/2, 1<<10))) }

// handout is a backup that is under way.
type handout struct {
	id    string
	from  *io.PipeReader
	asked *time.Timer
	subs  []*nats.Subscription
	end   context.CancelFunc

	mu     sync.Mutex
	number int
	last   admin.Reply
}

func (b *handout) answer(msg *nats.Msg, size int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked.Reset(abandoned)
	var r admin.BackupNext
	if json.Unmarshal(msg.Data, &r) != nil || r.Number != b.number && r.Number != b.number+1 {
		b.say(msg, admin.Reply{Error: admin.Errorf(admin.Invalid, "begin anew", "parts of a backup are asked for one after another")})
		return
	}
	if r.Number == b.number+1 {
		b.number = r.Number
		b.last = b.read(size)
	}
	b.say(msg, b.last)
}

func (b *handout) read(size int) (reply admin.Reply) {
	part := admin.BackupPart{Data: make([]byte, size)}
	n, err := io.ReadFull(b.from, part.Data)
	part.Data = part.Data[:n]
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		part.End = true
		b.asked.Reset(time.Second) // the rest is nobody's
	case err != nil:
		reply.Error = admin.Errorf(admin.Failed, "look at the log of the node", "the backup could not be made: %v", err)
		return reply
	}
	if reply.Data, err = json.Marshal(part); err != nil {
		reply.Error = admin.Errorf(admin.Failed, "", "a part could not be encoded")
	}
	return reply
}

func (b *handout) say(msg *nats.Msg, reply admin.Reply) {
	if data, err := json.Marshal(reply); err == nil {
		_ = msg.Respond(data) // who does not get it asks again
	}
}
