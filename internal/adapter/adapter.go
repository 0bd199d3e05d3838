// Package adapter takes the messages of other accounts, which the engine has signed
// with who sent them, and stores each in the stream of its adapter before its sender
// is told. It holds a bounded number of them.
package adapter

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// maxPending and maxBytes bound what an adapter holds on one node that its stream
	// has not acknowledged.
	maxPending = 256
	maxBytes   = 32 << 20
	// Timeout bounds how long the stream may take.
	Timeout = 5 * time.Second
	// check is how often is looked for adapters that have ended.
	check = time.Second
)

// A Host is the node that adapters work on.
type Host struct {
	// Input is before the subjects by which a stream takes from its adapter.
	Input func() string
	// Find is the adapter of that name.
	Find func(name string) (identity.Adapter, bool)
	// Open connects as the principal, and says how that ends.
	Open func(identity.Principal) (conn *nats.Conn, end func(), err error)
	// Logger is told who was refused.
	Logger *slog.Logger
}

// Adapters are those that this node has worked for. They are safe for concurrent use.
type Adapters struct {
	host Host

	mu  sync.Mutex
	all map[string]*adapter
}

// New has no adapters yet.
func New(h Host) *Adapters { return &Adapters{host: h, all: map[string]*adapter{}} }

// adapter is one of the fleet's, on this node. Its counts go on when it is set
// anew.
type adapter struct {
	slots                     chan struct{}
	bytes                     atomic.Int64
	received, stored, refused atomic.Uint64

	mu   sync.Mutex
	to   identity.Party
	conn *nats.Conn // in the stream's account; nil before the first message
	end  func()
	js   jetstream.JetStream
}

// adapter finds the adapter of a record.
func (a *Adapters) adapter(record identity.Adapter) *adapter {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.all[record.Name]
	if one == nil {
		one = &adapter{slots: make(chan struct{}, maxPending)}
		a.all[record.Name] = one
	}
	return one
}

// stream is the way to the adapter's stream, which is opened if it is not.
func (a *adapter) stream(h Host, record identity.Adapter) (jetstream.JetStream, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil && !a.conn.IsClosed() && a.to == record.To {
		return a.js, nil
	}
	if a.conn != nil {
		a.end()
		a.conn = nil
	}
	conn, end, err := h.Open(identity.Principal{
		Account: record.To.Account, Name: "adapter", Kind: identity.KindService,
		Permissions: identity.Permissions{
			Publish: identity.Rule{Allow: []string{h.Input() + ">"}}, Subscribe: identity.Rule{Allow: []string{"_INBOX.>"}},
		},
	})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		end()
		return nil, err
	}
	a.conn, a.end, a.js, a.to = conn, end, js, record.To
	return js, nil
}

func (a *adapter) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		a.end()
		a.conn = nil
	}
}

// Keep closes what adapters that have ended had open, until ctx is done and all is
// closed.
func (a *Adapters) Keep(ctx context.Context) {
	tick := time.NewTicker(check)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		a.mu.Lock()
		for name, one := range a.all {
			if _, ok := a.host.Find(name); !ok || ctx.Err() != nil {
				one.close()
				delete(a.all, name)
			}
		}
		a.mu.Unlock()
	}
}

// Counts are what the adapters of this node, which is called node, did so far.
func (a *Adapters) Counts(node string) map[string]admin.AdapterCount {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := map[string]admin.AdapterCount{}
	for name, one := range a.all {
		all[name] = admin.AdapterCount{
			Node: node, Received: one.received.Load(), Stored: one.stored.Load(), Refused: one.refused.Load(), Pending: uint64(len(one.slots)),
		}
	}
	return all
}

// A Taken message is one that an adapter has room for, until Store has returned.
type Taken struct {
	host    Host
	adapter *adapter
	record  identity.Adapter
	size    int64
	msg     *nats.Msg // as it is to be stored
}

// errBusy asks the sender to come again.
func errBusy() error {
	return admin.Errorf(admin.Busy, "send it again, more slowly", "too much waits for the stream")
}

// Take says whose a message is, and finds room for it. It never waits. Its errors are
// for the sender; most are an *admin.Error.
func (a *Adapters) Take(msg *nats.Msg) (*Taken, error) {
	name, public, subject, err := identity.AdapterMessage(msg.Subject)
	if err != nil {
		return nil, err
	}
	record, ok := a.host.Find(name)
	i := slices.IndexFunc(record.From, func(p identity.Party) bool { return p.Public == public })
	if !ok || i < 0 {
		return nil, admin.Errorf(admin.NotFound, "fleetbus adapter ls", "there is no adapter for this subject")
	}
	one := a.adapter(record)
	one.received.Add(1)
	sender, err := identity.ParseSender(msg.Header.Get(identity.RenewInfoHeader))
	if err == nil && sender.Account != public {
		err = fmt.Errorf("reading who sent a message: it is of another account")
	}
	if err != nil {
		one.refused.Add(1)
		a.host.Logger.Warn("a message was refused", "adapter", name, "account", record.From[i].Account, "error", err)
		return nil, admin.Errorf(admin.Denied, "send a header as the protocol says", "it is not certain who sent the message")
	}
	t := &Taken{host: a.host, adapter: one, record: record, size: int64(msg.Size())}
	if one.bytes.Add(t.size) > maxBytes {
		one.bytes.Add(-t.size)
		one.refused.Add(1)
		return nil, errBusy()
	}
	select {
	case one.slots <- struct{}{}:
	default:
		one.bytes.Add(-t.size)
		one.refused.Add(1)
		return nil, errBusy()
	}
	t.msg = stamped(msg, a.host.Input(), record, record.From[i].Account, sender.Name, subject)
	return t, nil
}

// stamped is msg as the stream takes it: with who sent it, from where and when, and
// without what the sender may have said of that.
func stamped(msg *nats.Msg, input string, record identity.Adapter, from, sender, subject string) *nats.Msg {
	out := &nats.Msg{Subject: input + record.Name + "." + from + "." + subject, Data: msg.Data, Header: nats.Header{}}
	for key, values := range msg.Header {
		lower := strings.ToLower(strings.TrimSpace(key))
		if !strings.HasPrefix(lower, "nats-") && !strings.HasPrefix(lower, "fleetbus-") {
			out.Header[key] = values
		}
	}
	// One sender's identifiers are none of another's.
	if id := msg.Header.Get(nats.MsgIdHdr); id != "" {
		out.Header.Set(nats.MsgIdHdr, from+"/"+sender+"/"+id)
	}
	out.Header.Set(nats.ExpectedStreamHdr, record.Stream)
	out.Header.Set(admin.AdapterAccount, from)
	out.Header.Set(admin.AdapterSender, sender)
	out.Header.Set(admin.AdapterSubject, subject)
	out.Header.Set(admin.AdapterTime, time.Now().UTC().Format(time.RFC3339Nano))
	return out
}

// Store returns when the stream has the message, or will not have it.
func (t *Taken) Store(ctx context.Context) (*admin.Stored, error) {
	defer func() {
		t.adapter.bytes.Add(-t.size)
		<-t.adapter.slots
	}()
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	js, err := t.adapter.stream(t.host, t.record)
	var ack *jetstream.PubAck
	if err == nil {
		ack, err = js.PublishMsg(ctx, t.msg)
	}
	if err != nil {
		t.adapter.refused.Add(1)
		t.host.Logger.Warn("a message was not stored", "adapter", t.record.Name, "error", err)
		return nil, admin.Errorf(admin.Unavailable, "send it again", "the stream did not take the message")
	}
	t.adapter.stored.Add(1)
	return &admin.Stored{Stream: ack.Stream, Sequence: ack.Sequence, Duplicate: ack.Duplicate}, nil
}
