package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A JetStream cluster elects only when it has two members and a route, and
// JetStream that ran outside a cluster deletes its streams inside one. So the
// first member is founded with a witness beside it in the process, which is
// removed from the group as soon as there is a leader; and a member that is
// alone at a later start has a companion, a server without JetStream, until it
// has elected itself. Neither outlives the start.

// foundingMark exists in the store while a founding is under way.
const foundingMark = "founding"

// beginFounding reports whether the store has to be founded, and marks it so.
func (o *Options) beginFounding() (bool, error) {
	mark := filepath.Join(o.StoreDir, foundingMark)
	interrupted, err := exists(mark)
	if err != nil {
		return false, err
	}
	used, err := exists(filepath.Join(o.StoreDir, server.JetStreamStoreDir))
	switch {
	case err != nil:
		return false, err
	case interrupted:
		// The group of two that was left can never elect, and holds nothing: no
		// listener was open yet.
		if err := os.RemoveAll(o.StoreDir); err != nil {
			return false, fmt.Errorf("clearing an interrupted start in %q: %w", o.StoreDir, err)
		}
	case used || !o.Cluster.Found:
		return false, nil
	}
	if err := os.MkdirAll(o.StoreDir, 0o700); err != nil {
		return false, fmt.Errorf("making the store directory: %w", err)
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return false, fmt.Errorf("marking the store directory: %w", err)
	}
	return true, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking into the store directory: %w", err)
	}
	return true, nil
}

func (b *Broker) found(ctx context.Context) error {
	witness, err := b.beside(true)
	if err != nil {
		return err
	}
	defer witness.close()
	nc, err := b.Connect(b.opts.System()...)
	if err != nil {
		return fmt.Errorf("connecting to the system account: %w", err)
	}
	defer nc.Close()
	if err := b.lead(ctx, nc); err != nil {
		return err
	}
	if err := RemoveMember(ctx, nc, witness.srv.Name()); err != nil {
		return err
	}
	if err := b.poll(ctx, "removing the witness", func() bool { return len(b.Members()) == 1 && b.srv.JetStreamIsLeader() }); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(b.opts.StoreDir, foundingMark)); err != nil {
		return fmt.Errorf("ending the founding: %w", err)
	}
	return nil
}

// lead makes this server the leader of the group.
func (b *Broker) lead(ctx context.Context, nc *nats.Conn) error {
	if err := b.poll(ctx, "electing a leader", func() bool { return b.Leader() != "" }); err != nil {
		return err
	}
	if b.srv.JetStreamIsLeader() {
		return nil
	}
	if err := StepDown(ctx, nc, b.srv.Name()); err != nil && !b.srv.JetStreamIsLeader() {
		return err
	}
	return b.poll(ctx, "taking the lead", b.srv.JetStreamIsLeader)
}

// solitude is how long a member waits for another before it takes a companion.
const solitude = 200 * time.Millisecond

// consumersSettle is how much longer the groups of consumers may take.
const consumersSettle = time.Second

// accompany gives this server a companion, in the background, while it has
// neither a route nor a leader.
func (b *Broker) accompany() {
	ctx := b.background
	b.running.Go(func() {
		wait, cancel := context.WithTimeout(ctx, solitude)
		defer cancel()
		if b.poll(wait, "waiting for a route", b.settled) == nil || ctx.Err() != nil {
			return
		}
		end, err := b.Accompany()
		if err != nil {
			b.log.Warnf("%v", err)
			return
		}
		defer end()
		if err := b.poll(ctx, "waiting for leaders or a route", b.settled); err != nil && ctx.Err() == nil {
			b.log.Warnf("%v", err)
		}
	})
}

// settled reports that no group waits for a route. Every one does when it begins,
// those of the streams too.
func (b *Broker) settled() bool {
	return len(b.Routes()) > 0 || b.Leader() != "" &&
		!slices.ContainsFunc(b.Streams(), func(st Stream) bool { return st.Leader == "" })
}

// Accompany gives this server a companion, if it has neither one nor a route, so
// that a group that begins now can elect its leader. Call end when all of them
// have; it returns when the companion is gone.
func (b *Broker) Accompany() (end func(), err error) {
	if b.background.Err() != nil || len(b.Routes()) > 0 || !b.accompanied.CompareAndSwap(false, true) {
		return func() {}, nil
	}
	companion, err := b.beside(false)
	if err != nil {
		b.accompanied.Store(false)
		return nil, fmt.Errorf("starting a companion: %w", err)
	}
	return func() {
		defer b.accompanied.Store(false)
		defer companion.close()
		select {
		case <-b.background.Done():
		case <-time.After(consumersSettle):
		}
	}, nil
}

// neighborSuffix follows this server's name in its neighbor's. No node's name has
// such a character.
const neighborSuffix = "+beside"

// neighbor is a second server of the cluster in this process.
type neighbor struct {
	srv *server.Server
	dir string
}

func (n *neighbor) close() {
	n.srv.Shutdown()
	n.srv.WaitForShutdown()
	os.RemoveAll(n.dir)
}

// beside starts a neighbor, linked to this server over loopback.
func (b *Broker) beside(store bool) (_ *neighbor, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(b.opts.StoreDir), ".neighbor-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	o := b.opts
	o.Name += neighborSuffix
	o.AccountDir, o.StoreDir = filepath.Join(dir, "accounts"), filepath.Join(dir, "store")
	o.Clients, o.Leafs, o.Gateway, o.Monitor = nil, nil, nil, ""
	o.MaxFile, o.MaxMemory = 64<<20, 16<<20
	cluster := *o.Cluster
	cluster.Addr, cluster.Advertise = "127.0.0.1:0", ""
	cluster.Routes = []string{b.loopbackRoute()}
	o.Cluster = &cluster
	so, err := o.server()
	if err != nil {
		return nil, err
	}
	so.JetStream = store
	so.Cluster.NoAdvertise = true
	if so.AccountResolver, err = openResolver(o); err != nil {
		return nil, err
	}
	srv, err := server.NewServer(so)
	if err != nil {
		return nil, fmt.Errorf("configuring the neighbor: %w", err)
	}
	srv.SetLoggerV2(&logger{slog: b.opts.Logger, quiet: true}, false, false, false)
	srv.Start()
	return &neighbor{srv: srv, dir: dir}, nil
}

// loopbackRoute is the route address as this machine reaches it.
func (b *Broker) loopbackRoute() string {
	addr := b.srv.ClusterAddr()
	if addr.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", fmt.Sprint(addr.Port))
	}
	return addr.String()
}

// poll waits until done, the end of ctx, or a fatal error of the engine.
func (b *Broker) poll(ctx context.Context, what string, done func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if err := b.log.fatal(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// Leader names the leader of the cluster's group, "" if this server knows none.
// It is this server's opinion: a leader that has lost its quorum holds it for
// up to 20 s.
func (b *Broker) Leader() string {
	if z := b.meta(); z != nil {
		return z.Leader
	}
	return ""
}

// IsLeader reports whether this server leads the group.
func (b *Broker) IsLeader() bool { return b.srv.JetStreamIsLeader() }

// A Member is a server of the group that agrees on streams.
type Member struct {
	// Name of the server; "Server name unknown at this time" in the engine's words
	// is empty here.
	Name string
	// Current says that it has all entries, Offline that nobody hears it. Lag
	// counts missing entries.
	Current, Offline bool
	Lag              uint64
	// Active is how long ago the leader heard of it.
	Active time.Duration
}

// Members lists the group as this server knows it, itself included.
func (b *Broker) Members() []Member {
	z := b.meta()
	if z == nil {
		return nil
	}
	var members []Member
	self := false
	for _, r := range z.Replicas {
		self = self || r.Name == b.srv.Name()
		members = append(members, Member{Name: r.Name, Current: r.Current, Offline: r.Offline, Lag: r.Lag, Active: r.Active})
	}
	if !self {
		members = append(members, Member{Name: b.srv.Name(), Current: true})
	}
	// A follower does not list its peers one by one, but it counts them.
	for len(members) < z.Size {
		members = append(members, Member{})
	}
	return members
}

func (b *Broker) meta() *server.MetaClusterInfo {
	z, err := b.srv.Jsz(&server.JSzOptions{})
	if err != nil {
		return nil
	}
	return z.Meta
}

// Routes names the servers that this one has a route to.
func (b *Broker) Routes() []string {
	z, err := b.srv.Routez(&server.RoutezOptions{})
	if err != nil {
		return nil
	}
	seen := map[string]bool{}
	var names []string
	for _, r := range z.Routes {
		if !seen[r.RemoteName] && r.RemoteName != b.opts.Name+neighborSuffix {
			seen[r.RemoteName] = true
			names = append(names, r.RemoteName)
		}
	}
	return names
}

// A Stream is one that this server keeps.
type Stream struct {
	// Account is the public key of its account.
	Account, Name string
	// Replicas is how many copies its configuration wants.
	Replicas int
	// Leader is the server that leads it, "" if none is known. Others counts the
	// servers besides that keep it, those that are gone among them.
	Leader string
	Others int
	// Config is its configuration as the engine's API takes it.
	Config json.RawMessage
}

// Streams lists the streams that this server keeps.
func (b *Broker) Streams() []Stream {
	b.claims.RLock()
	defer b.claims.RUnlock()
	z, err := b.srv.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Config: true, Limit: 1 << 20})
	if err != nil {
		return nil
	}
	var all []Stream
	for _, a := range z.AccountDetails {
		for _, st := range a.Streams {
			one := Stream{Account: a.Id, Name: st.Name, Replicas: 1}
			if st.Config != nil {
				one.Replicas = st.Config.Replicas
				one.Config, _ = json.Marshal(st.Config)
			}
			if st.Cluster != nil {
				one.Leader, one.Others = st.Cluster.Leader, len(st.Cluster.Replicas)
			}
			all = append(all, one)
		}
	}
	return all
}

// StepDownStream hands the lead of a stream to the server named preferred. nc is
// a connection to the stream's account.
func StepDownStream(ctx context.Context, nc *nats.Conn, stream, preferred string) error {
	req := server.JSApiLeaderStepdownRequest{Placement: &server.Placement{Preferred: preferred}}
	return call(ctx, nc, fmt.Sprintf(server.JSApiStreamLeaderStepDownT, stream), req)
}

// StepDown hands the lead of the group to the server named preferred. nc is a
// connection to the system account, as for all functions here.
func StepDown(ctx context.Context, nc *nats.Conn, preferred string) error {
	req := server.JSApiLeaderStepdownRequest{Placement: &server.Placement{Preferred: preferred}}
	return call(ctx, nc, server.JSApiLeaderStepDown, req)
}

// ErrNotMember says that a server is not in the group.
var ErrNotMember = errors.New("the server is no member of the group")

// RemoveMember takes a server out of the group for good. Its streams move to
// others where there are others.
func RemoveMember(ctx context.Context, nc *nats.Conn, name string) error {
	return call(ctx, nc, server.JSApiRemoveServer, server.JSApiMetaServerRemoveRequest{Server: name})
}

// Evacuate moves the streams of a server to others, as far as there are others.
func Evacuate(ctx context.Context, nc *nats.Conn, name string) error {
	return call(ctx, nc, server.JSApiEvacuateServer, server.JSApiMetaServerEvacuateRequest{Server: name})
}

// Rescue lowers the quorum of the group to one for a while, after the majority
// was lost for good. It is refused while a leader is still assumed.
func Rescue(ctx context.Context, nc *nats.Conn) error {
	return call(ctx, nc, server.JSApiMetaRescue, server.JSApiMetaRescueRequest{QuorumNeeded: 1})
}

// attempt is how long one request of call waits. Only the leader answers, and
// for a moment after an election or a new route nobody hears it.
const attempt = 250 * time.Millisecond

// call sends a request of the engine's API until it is answered, and turns its
// error into one of ours.
func call(ctx context.Context, nc *nats.Conn, subject string, req any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encoding a request for %q: %w", subject, err)
	}
	for tries := 0; ; tries++ {
		try, cancel := context.WithTimeout(ctx, attempt<<min(tries, 4))
		msg, err := nc.RequestWithContext(try, subject, body)
		cancel()
		if err != nil {
			if ctx.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders)) {
				continue
			}
			return fmt.Errorf("asking the engine %q: %w", subject, err)
		}
		var resp server.ApiResponse
		if err := json.Unmarshal(msg.Data, &resp); err != nil {
			return fmt.Errorf("reading the engine's answer to %q: %w", subject, err)
		}
		if resp.Error == nil {
			return nil
		}
		switch server.ErrorIdentifier(resp.Error.ErrCode) {
		case server.JSClusterServerNotMemberErr:
			if tries > 0 {
				return nil
			}
			return ErrNotMember
		case server.JSClusterServerMemberChangeInflightErr:
			// Most likely it is what an earlier try asked for, on a slow machine.
			select {
			case <-ctx.Done():
			case <-time.After(attempt):
				continue
			}
		}
		return fmt.Errorf("asking the engine %q: %w", subject, resp.Error)
	}
}
