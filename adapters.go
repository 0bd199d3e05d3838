package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	// adapterPending and adapterBytes bound what an adapter holds on one node that
	// its stream has not acknowledged.
	adapterPending = 256
	adapterBytes   = 32 << 20
	// adapterTimeout bounds how long the stream may take.
	adapterTimeout = 5 * time.Second
	// adaptersCheck is how often a node looks for adapters that have ended.
	adaptersCheck = time.Second
	// nodeAdaptersSubject is asked of all nodes: what did your adapters do.
	nodeAdaptersSubject = "node.adapters"
)

// adapterInput is before the subjects by which a stream takes from its adapter. They
// are private, so that nobody else can write there, and each region's own, so that no
// adapter of that name elsewhere does. The stream stores them with admin.AdapterPrefix
// in its place, so that they can be read.
func (s *Server) adapterInput() string {
	if region := s.fleet.authority.Region(); region != "" {
		return identity.Private + "adapter-" + region + "."
	}
	return identity.Private + "adapter."
}

func adapterSubject(name string) string { return "adapter." + name }

// adapters are those that this node has worked for.
type adapters struct {
	mu  sync.Mutex
	all map[string]*adapter
}

// adapter is one of the fleet's, on this node. Its counts go on when it is set
// anew.
type adapter struct {
	slots                     chan struct{}
	bytes                     atomic.Int64
	received, stored, refused atomic.Uint64

	mu      sync.Mutex
	record  identity.Adapter
	session *Session // in the stream's account; nil before the first message
	js      jetstream.JetStream
}

// adapter finds the adapter of a record.
func (a *adapters) adapter(record identity.Adapter) *adapter {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.all[record.Name]
	if one == nil {
		if a.all == nil {
			a.all = map[string]*adapter{}
		}
		one = &adapter{slots: make(chan struct{}, adapterPending)}
		a.all[record.Name] = one
	}
	return one
}

// stream is the way to the adapter's stream, which is opened if it is not.
func (a *adapter) stream(s *Server, record identity.Adapter) (jetstream.JetStream, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != nil && !a.session.IsClosed() && a.record.To == record.To {
		return a.js, nil
	}
	if a.session != nil {
		a.session.Close()
	}
	session, err := s.open(identity.Principal{
		Account: record.To.Account, Name: "adapter", Kind: identity.KindService,
		Permissions: identity.Permissions{
			Publish: identity.Rule{Allow: []string{s.adapterInput() + ">"}}, Subscribe: identity.Rule{Allow: []string{"_INBOX.>"}},
		},
	})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(session.Conn)
	if err != nil {
		session.Close()
		return nil, err
	}
	a.session, a.js, a.record = session, js, record
	return js, nil
}

func (a *adapter) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != nil {
		a.session.Close()
		a.session = nil
	}
}

// runAdapters closes what adapters that have ended had open, until ctx is done and
// all is closed.
func (s *Server) runAdapters(ctx context.Context) {
	tick := time.NewTicker(adaptersCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		s.adapters.mu.Lock()
		for name, a := range s.adapters.all {
			if _, ok := s.fleet.directory.Adapter(name); !ok || ctx.Err() != nil {
				a.close()
				delete(s.adapters.all, name)
			}
		}
		s.adapters.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
	}
}

// serveAdapters takes the messages of all accounts for all adapters. The nodes
// share them. It never blocks: who cannot be served at once is told so.
func (s *Server) serveAdapters(ctx context.Context, nc *nats.Conn) error {
	_, err := nc.QueueSubscribe(identity.AdapterRequests, "adapter", func(msg *nats.Msg) {
		taken, err := s.takeMessage(msg)
		if err != nil {
			s.answerMessage(msg, nil, err)
			return
		}
		s.group.Go(func() {
			defer taken.done()
			stored, err := taken.store(ctx)
			s.answerMessage(msg, stored, err)
		})
	})
	if err != nil {
		return fmt.Errorf("subscribing to %q: %w", identity.AdapterRequests, err)
	}
	return nil
}

// takenMessage is one that an adapter has room for.
type takenMessage struct {
	*Server
	adapter *adapter
	record  identity.Adapter
	size    int64
	msg     *nats.Msg // as it is to be stored
}

// takeMessage says whose a message is, and finds room for it.
func (s *Server) takeMessage(msg *nats.Msg) (*takenMessage, error) {
	name, public, subject, err := identity.AdapterMessage(msg.Subject)
	if err != nil {
		return nil, err
	}
	record, ok := s.fleet.directory.Adapter(name)
	i := slices.IndexFunc(record.From, func(p identity.Party) bool { return p.Public == public })
	if !ok || i < 0 {
		return nil, admin.Errorf(admin.NotFound, "fleetbus adapter ls", "there is no adapter for this subject")
	}
	a := s.adapters.adapter(record)
	a.received.Add(1)
	sender, err := identity.ParseSender(msg.Header.Get(identity.RenewInfoHeader))
	if err == nil && sender.Account != public {
		err = fmt.Errorf("reading who sent a message: it is of another account")
	}
	if err != nil {
		a.refused.Add(1)
		s.log.Warn("a message was refused", "adapter", name, "account", record.From[i].Account, "error", err)
		return nil, admin.Errorf(admin.Denied, "send a header as the protocol says", "it is not certain who sent the message")
	}
	t := &takenMessage{Server: s, adapter: a, record: record, size: int64(msg.Size())}
	if a.bytes.Add(t.size) > adapterBytes {
		a.bytes.Add(-t.size)
		a.refused.Add(1)
		return nil, errBusy
	}
	select {
	case a.slots <- struct{}{}:
	default:
		a.bytes.Add(-t.size)
		a.refused.Add(1)
		return nil, errBusy
	}
	from := record.From[i].Account
	t.msg = &nats.Msg{Subject: s.adapterInput() + name + "." + from + "." + subject, Data: msg.Data, Header: nats.Header{}}
	for key, values := range msg.Header {
		lower := strings.ToLower(strings.TrimSpace(key))
		if !strings.HasPrefix(lower, "nats-") && !strings.HasPrefix(lower, "fleetbus-") {
			t.msg.Header[key] = values
		}
	}
	// One sender's identifiers are none of another's.
	if id := msg.Header.Get(nats.MsgIdHdr); id != "" {
		t.msg.Header.Set(nats.MsgIdHdr, from+"/"+sender.Name+"/"+id)
	}
	t.msg.Header.Set(nats.ExpectedStreamHdr, record.Stream)
	t.msg.Header.Set(admin.AdapterAccount, from)
	t.msg.Header.Set(admin.AdapterSender, sender.Name)
	t.msg.Header.Set(admin.AdapterSubject, subject)
	t.msg.Header.Set(admin.AdapterTime, time.Now().UTC().Format(time.RFC3339Nano))
	return t, nil
}

// errBusy asks the sender to come again.
var errBusy = admin.Errorf(admin.Busy, "send it again, more slowly", "too much waits for the stream")

func (t *takenMessage) done() {
	t.adapter.bytes.Add(-t.size)
	<-t.adapter.slots
}

// store returns when the stream has the message.
func (t *takenMessage) store(ctx context.Context) (*admin.Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, adapterTimeout)
	defer cancel()
	js, err := t.adapter.stream(t.Server, t.record)
	var ack *jetstream.PubAck
	if err == nil {
		ack, err = js.PublishMsg(ctx, t.msg)
	}
	if err != nil {
		t.adapter.refused.Add(1)
		t.log.Warn("a message was not stored", "adapter", t.record.Name, "error", err)
		return nil, admin.Errorf(admin.Unavailable, "send it again", "the stream did not take the message")
	}
	t.adapter.stored.Add(1)
	return &admin.Stored{Stream: ack.Stream, Sequence: ack.Sequence, Duplicate: ack.Duplicate}, nil
}

// answerMessage tells the sender, if it asked.
func (s *Server) answerMessage(msg *nats.Msg, stored *admin.Stored, err error) {
	if msg.Reply == "" {
		return
	}
	var reply admin.Reply
	if err == nil {
		reply.Data, err = json.Marshal(stored)
	}
	if err != nil && !errors.As(err, &reply.Error) {
		reply.Error = admin.Errorf(admin.Failed, "", "the message was not stored")
	}
	if err := respond(msg, reply); err != nil {
		s.log.Debug("a sender could not be answered", "error", err)
	}
}

// actAdapter gives the engine the new terms of the accounts that an adapter takes
// from, or took from.
func (f *fleet) actAdapter(name string) error {
	names := f.adapting[name]
	delete(f.adapting, name)
	if a, ok := f.directory.Adapter(name); ok {
		f.adapting[name] = accountsOf(a)
		names = append(names, f.adapting[name]...)
	}
	slices.Sort(names)
	return f.storeNamed(slices.Compact(names))
}

// accountsOf names the accounts that an adapter takes from.
func accountsOf(a identity.Adapter) (names []string) {
	for _, p := range a.From {
		names = append(names, p.Account)
	}
	return names
}

func (s *Server) addAdapter(ctx context.Context, r admin.AdapterRequest) (any, error) {
	began := time.Now()
	a := identity.Adapter{Name: r.Name, Subject: r.Subject, Stream: r.Stream, Created: began}
	slices.Sort(r.From)
	for _, name := range slices.Compact(r.From) {
		from, err := s.wantAccount(name)
		if err != nil {
			return nil, err
		}
		a.From = append(a.From, from.Party())
	}
	to, err := s.wantAccount(r.To)
	if err != nil {
		return nil, err
	}
	a.To = to.Party()
	if err := s.fleet.directory.CheckAdapter(a); err != nil {
		return nil, flowError(err)
	}
	if err := s.ensureStream(ctx, a); err != nil {
		return nil, err
	}
	seq, err := s.fleet.change(ctx, adapterSubject(a.Name), func() (any, error) {
		if known, ok := s.fleet.directory.Adapter(a.Name); ok {
			a.Created = known.Created
			if sameRecord(known, a) {
				return nil, errSame
			}
		}
		if err := s.fleet.directory.CheckAdapter(a); err != nil {
			return nil, flowError(err)
		}
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// ensureStream makes the stream of an adapter, if it is missing, or says why the
// one that is there does not do.
func (s *Server) ensureStream(ctx context.Context, a identity.Adapter) error {
	ctx, cancel := context.WithTimeout(ctx, adapterTimeout)
	defer cancel()
	in, out := s.adapterInput()+a.Name+".>", admin.AdapterPrefix+a.Name+".>"
	return s.inAccount(a.To.Account, func(js jetstream.JetStream) error {
		stream, err := js.Stream(ctx, a.Stream)
		if err == nil {
			c := stream.CachedInfo().Config
			if t := c.SubjectTransform; !slices.Equal(c.Subjects, []string{in}) || t == nil || t.Destination != out {
				return admin.Errorf(admin.Conflict, "name a stream that is not there yet: the adapter makes it", "stream %q of account %q keeps something else", a.Stream, a.To.Account)
			}
			return nil
		}
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("looking for stream %q: %w", a.Stream, err)
		}
		replicas := 1
		if len(s.broker.Members()) >= replicasWanted {
			replicas = replicasWanted
		}
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: a.Stream, Subjects: []string{in}, SubjectTransform: &jetstream.SubjectTransformConfig{Source: in, Destination: out},
			Replicas: replicas, Storage: jetstream.FileStorage, Metadata: map[string]string{ReplicasKey: "auto"},
		})
		if err != nil {
			return admin.Errorf(admin.Conflict, "name another stream, or raise the limits of the account", "stream %q of account %q cannot be made: %v", a.Stream, a.To.Account, err)
		}
		return nil
	})
}

func (s *Server) removeAdapter(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	if _, ok := s.fleet.directory.Adapter(r.Name); !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus adapter ls", "there is no adapter %q", r.Name)
	}
	seq, err := s.fleet.change(ctx, adapterSubject(r.Name), func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// adaptersReply is one node's answer on nodeAdaptersSubject, by adapter.
type adaptersReply struct {
	Node     string                        `json:"node"`
	Adapters map[string]admin.AdapterCount `json:"adapters"`
}

func (s *Server) answerAdapters(_ context.Context, msg *nats.Msg) error {
	reply := adaptersReply{Node: s.fleet.node, Adapters: map[string]admin.AdapterCount{}}
	s.adapters.mu.Lock()
	for name, a := range s.adapters.all {
		reply.Adapters[name] = admin.AdapterCount{
			Node: s.fleet.node, Received: a.received.Load(), Stored: a.stored.Load(), Refused: a.refused.Load(), Pending: uint64(len(a.slots)),
		}
	}
	s.adapters.mu.Unlock()
	return respond(msg, reply)
}

func (s *Server) listAdapters(ctx context.Context, _ struct{}) (any, error) {
	expect := s.fleet.up()
	counts, err := scatter(ctx, s.conn, nodeAdaptersSubject, struct{}{}, infoTimeout, func(r adaptersReply) bool {
		delete(expect, r.Node)
		return len(expect) == 0
	})
	if err != nil {
		return nil, err
	}
	all := []admin.AdapterInfo{}
	for _, a := range s.fleet.directory.Adapters() {
		info := admin.AdapterInfo{Adapter: a, Nodes: []admin.AdapterCount{}, Missing: slices.Sorted(maps.Keys(expect)), Waiting: []string{}}
		for _, r := range counts {
			count := r.Adapters[a.Name]
			count.Node = r.Node
			info.Nodes = append(info.Nodes, count)
		}
		slices.SortFunc(info.Nodes, func(a, b admin.AdapterCount) int { return strings.Compare(a.Node, b.Node) })
		for _, p := range a.From {
			if !s.fleet.directory.Flows(p.Account).Adapts(a.Name) {
				info.Waiting = append(info.Waiting, p.Account)
			}
		}
		all = append(all, info)
	}
	return all, nil
}

// removeAdapters takes an account from all adapters, and ends those that wrote to
// it, or have no other.
func (s *Server) removeAdapters(ctx context.Context, account string) error {
	for _, a := range s.fleet.directory.Adapters() {
		if a.To.Account != account && !slices.Contains(accountsOf(a), account) {
			continue
		}
		_, err := s.fleet.change(ctx, adapterSubject(a.Name), func() (any, error) {
			a, ok := s.fleet.directory.Adapter(a.Name)
			if !ok {
				return nil, errSame
			}
			a.From = slices.DeleteFunc(a.From, func(p identity.Party) bool { return p.Account == account })
			if a.To.Account == account || len(a.From) == 0 {
				return nil, nil
			}
			return a, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
