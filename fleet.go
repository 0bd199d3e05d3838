package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/crowd"
	"github.com/fleetbus/fleetbus/internal/events"
	"github.com/fleetbus/fleetbus/internal/home"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	ledgerStream = "FLEET"
	ledgerPrefix = "ledger"
	// syncSubject is asked of all nodes: answer when you have applied event n.
	syncSubject = "node.sync"
	// syncTimeout is how long a node that has a route may take to answer.
	syncTimeout = 5 * time.Second
	// syncAgain is when the nodes are asked once more, at first.
	syncAgain = 200 * time.Millisecond
	// closedKept is for how many events a node remembers what it closed.
	closedKept = 1024
)

// fleet is this node's copy of what the fleet agrees on, and the way to change
// it. The ledger is the only writer: every node acts on an event when it has
// applied it, and not before.
type fleet struct {
	node      string
	server    string // as the engine calls the node
	authority *identity.Authority
	keys      *shared
	directory *identity.Directory
	follower  *ledger.Follower
	log       *slog.Logger
	// broker, and system, what authenticates in the system account, are set before
	// the follower runs.
	broker *broker.Broker
	system func() []nats.Option
	// publics are the accounts by name, as the engine has them, and adapting the accounts that
	// each adapter takes from; for act alone.
	publics  map[string]identity.Account
	adapting map[string][]string
	// reservedNames are those of the reserved accounts by public key, and names
	// those that were looked for.
	reservedNames map[string]string
	names         sync.Map
	events        *events.Queue
	audit         *audit.Journal

	// storing is held while accounts are handed to the engine, admitting changes
	// under it, and so do the revocations in the terms that the engine has, by account.
	storing   sync.Mutex
	admitting bool
	revoked   map[string]map[string]time.Time

	// region is the name of this node's. across has the newest record of a subject act
	// in the others, and gone acts on one that was removed; they are set before the
	// follower runs.
	region string
	across func(ctx context.Context, subject string) admin.Spread
	gone   func(region string) (closed int)

	resting resting
	crowd   crowd.Crowd
	sites   sites

	mu     sync.Mutex
	ledger *ledger.Ledger
	// closed counts the connections that an event ended here; recent are its keys
	// in order.
	closed map[uint64]int
	recent []uint64
	// written are the subjects of events that this node wrote lately.
	written map[uint64]string
}

func newFleet(h *home.Home, authority *identity.Authority, queue *events.Queue, log *slog.Logger) (*fleet, error) {
	f := &fleet{
		node: h.Node.Node.Name, server: h.Node.Node.Server(), authority: authority, directory: identity.NewDirectory(), events: queue, log: log,
		region: h.Node.Cluster, closed: map[uint64]int{}, written: map[uint64]string{}, publics: map[string]identity.Account{}, adapting: map[string][]string{}, reservedNames: map[string]string{}, revoked: map[string]map[string]time.Time{}, sites: newSites(),
	}
	reserved, err := f.reserved()
	if err != nil {
		return nil, err
	}
	for _, a := range reserved {
		f.reservedNames[a.Public] = a.Name
	}
	// What the snapshot is folded upon, and all there is if it is corrupt.
	_, genesis, err := ledger.ReadSnapshot(h.Path("genesis.snapshot"))
	if err == nil {
		err = f.directory.Unmarshal(genesis)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the fleet's first state: %w", err)
	}
	f.follower, err = ledger.NewFollower(f.directory, ledger.FollowOptions{
		Snapshot: h.Path("ledger.snapshot"),
		OnEvent:  f.act,
		Logger:   log,
	})
	if err != nil {
		return nil, fmt.Errorf("reading the fleet's state: %w", err)
	}
	if err := f.learnKeys(h.Path(boxName)); err != nil {
		return nil, err
	}
	for _, a := range f.directory.Accounts() {
		f.publics[a.Name] = a
	}
	for _, a := range f.directory.Adapters() {
		f.adapting[a.Name] = accountsOf(a)
	}
	f.knowLimits()
	return f, nil
}

// reserved are the accounts that every fleet has, which no event changes.
func (f *fleet) reserved() ([]identity.Account, error) {
	var all []identity.Account
	for _, make := range []func(time.Time) (identity.Account, error){f.authority.SystemAccount, f.authority.FleetAccount, f.authority.CalloutAccount, f.authority.RegionsAccount} {
		a, err := make(time.Unix(0, 0))
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// account finds an account by name, the fleet's own among them.
func (f *fleet) account(name string) (identity.Account, bool) {
	switch name {
	case identity.SystemName, identity.FleetName, identity.CalloutName, identity.RegionsName:
		all, err := f.reserved()
		i := slices.IndexFunc(all, func(a identity.Account) bool { return a.Name == name })
		if err != nil || i < 0 {
			return identity.Account{}, false
		}
		return all[i], true
	}
	return f.directory.Account(name)
}

// accountName is the name of the account with that public key, the fleet's own among
// them. What it found once it knows when the account is gone, too: no other account
// ever has that key.
func (f *fleet) accountName(public string) (string, bool) {
	if name, ok := f.reservedNames[public]; ok {
		return name, true
	}
	if name, ok := f.names.Load(public); ok {
		return name.(string), true
	}
	a, ok := f.directory.AccountByPublic(public)
	if ok {
		f.names.Store(public, a.Name)
	}
	return a.Name, ok
}

// accountTokens are the engine's tokens of all accounts, by public key.
func (f *fleet) accountTokens() (map[string]string, error) {
	f.storing.Lock()
	defer f.storing.Unlock()
	all, err := f.reserved()
	if err != nil {
		return nil, err
	}
	tokens := map[string]string{}
	for _, a := range append(all, f.directory.Accounts()...) {
		if tokens[a.Public], err = f.accountToken(a, f.directory.Revocations(a.Name)); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// accountToken is the account as the engine wants it. It is a function of the
// fleet's state alone, so that every node derives the same one. Until the node
// admits users it knows no role, so that no creds file is good: this token is
// older than any that another node has, and so never taken for news.
func (f *fleet) accountToken(a identity.Account, revoked map[string]time.Time) (string, error) {
	roles, issued := f.directory.Roles(), f.directory.Issued(a)
	if !f.admitting && slices.ContainsFunc(roles, func(r identity.Role) bool { return r.AllowedIn(a.Name) }) {
		roles, issued = nil, a.Created
	}
	token, err := f.authority.AccountJWT(a, roles, revoked, f.directory.Flows(a.Name), issued)
	if err != nil {
		return "", fmt.Errorf("signing account %q: %w", a.Name, err)
	}
	return token, nil
}

// act does what an event demands of this node, after it was applied.
func (f *fleet) act(ev ledger.Event) {
	noun, name, _ := strings.Cut(ev.Subject, ".")
	closed := 0
	var err error
	switch noun {
	case "account":
		closed, err = f.actAccount(name)
	case "role":
		closed, err = f.actRole(name)
	case "user":
		account, user, _ := strings.Cut(name, ".")
		closed, err = f.actUser(account, user)
	case "export", "import":
		account, _, _ := strings.Cut(name, ".")
		err = f.actFlow(noun, account)
	case "adapter":
		err = f.actAdapter(name)
	case "region":
		if r, ok := f.directory.Region(name); ok && r.Removed && name != f.region {
			closed = f.gone(name)
		}
	case identity.KeyNoun:
		closed, err = f.actKey(name)
	}
	if err != nil {
		f.log.Error("an event could not be acted on", "subject", ev.Subject, "error", err)
	}
	f.log.Info("fleet changed", "subject", ev.Subject, "sequence", ev.Seq, "closed", closed)
	f.sites.kick()
	if closed == 0 {
		return
	}
	f.tellDenial(noun, name, closed)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed[ev.Seq] = closed
	f.recent = append(f.recent, ev.Seq)
	if len(f.recent) > closedKept {
		delete(f.closed, f.recent[0])
		f.recent = f.recent[1:]
	}
}

// tellDenial tells of an event of the ledger that closed connections here. What a
// role does to those who have it is no denial.
func (f *fleet) tellDenial(noun, name string, closed int) {
	ev := admin.Event{Kind: admin.EventDenied, Account: name, Reason: "the account is removed", Count: closed}
	switch noun {
	case "user":
		account, user, _ := strings.Cut(name, ".")
		ev.Account, ev.Principal, ev.Reason = account, account+"/"+user, "the user is removed"
		if _, ok := f.directory.User(account, user); ok {
			ev.Reason = "the user is denied"
		}
	case "account":
	default:
		return
	}
	f.events.Tell(ev)
}

// ownAccounts are the fleet's own that can have users.
func (f *fleet) ownAccounts() (all []identity.Account) {
	for _, name := range []string{identity.FleetName, identity.SystemName} {
		if a, ok := f.account(name); ok {
			all = append(all, a)
		}
	}
	return all
}

// actAccount stores an account, or drops the one that had the name before.
func (f *fleet) actAccount(name string) (closed int, err error) {
	a, ok := f.directory.Account(name)
	old := f.publics[name]
	delete(f.publics, name)
	if ok {
		f.publics[name] = a
		err = f.storeAccounts([]identity.Account{a})
	}
	if old.Public == a.Public && old.Signing != a.Signing { // as after a change of a role
		users := map[string]bool{}
		for _, u := range f.directory.Users(name) {
			users[u.Name] = true
		}
		closed, e := f.closeSessions(a, users)
		return closed, errors.Join(err, e)
	}
	if old.Public == "" || old.Public == a.Public {
		return 0, err
	}
	conns, e := f.broker.Connections(old.Public)
	closed = len(conns) + f.resting.end(name, func(string) bool { return true })
	return closed, errors.Join(err, e, f.dropAccount(old.Public))
}

// dropAccount removes an account from the engine, which closes its connections.
func (f *fleet) dropAccount(public string) error {
	token, err := f.authority.DeleteAccountsJWT(public)
	if err != nil {
		return err
	}
	nc, err := f.broker.Connect(f.system()...)
	if err != nil {
		return fmt.Errorf("connecting to the system account: %w", err)
	}
	defer nc.Close()
	return broker.DropAccounts(nc, token, syncTimeout)
}

// actUser closes what a user may not have any more, whatever credential opened
// it.
func (f *fleet) actUser(account, name string) (closed int, err error) {
	a, ok := f.account(account)
	if !ok {
		return 0, nil
	}
	if u, ok := f.directory.User(account, name); ok && !u.Denied {
		// Of users the terms of the account have the revocations alone, and to hand them
		// over has the engine look at each of its clients.
		if f.revokes(account) {
			return 0, nil
		}
		return 0, f.storeAccounts([]identity.Account{a})
	}
	// Who comes back before the account is stored is closed by the engine, or by
	// whoever let them in and looks again.
	u, _ := f.directory.User(account, name)
	// Those that rest come first: one that is opened meanwhile rests no more, and the
	// engine has it.
	closed = f.resting.end(account, func(one string) bool { return one == name })
	open, err := f.closeUser(a.Public, u, name)
	closed += open
	return closed, errors.Join(err, f.storeAccounts([]identity.Account{a}))
}

// actRole gives everybody on this node what the role allows now. The engine does
// so for who showed a creds file. What the others may do was settled when they
// came in, so that they have to come in again.
func (f *fleet) actRole(name string) (closed int, err error) {
	f.knowLimits()
	accounts := append(f.directory.Accounts(), f.ownAccounts()...)
	err = f.storeAccounts(accounts)
	for _, a := range accounts {
		holders := map[string]bool{}
		for _, u := range f.directory.Users(a.Name) {
			if u.Role == name {
				holders[u.Name] = true
			}
		}
		if len(holders) == 0 {
			continue
		}
		n, e := f.closeSessions(a, holders)
		closed, err = closed+n, errors.Join(err, e)
	}
	return closed, err
}

// closeUser ends every connection of a user on this node.
func (f *fleet) closeUser(public string, u identity.User, name string) (closed int, err error) {
	ids, err := f.broker.UserConnections(public, name, u.Publics())
	for _, id := range ids {
		if f.broker.Close(id) {
			closed++
		}
	}
	for _, id := range f.sites.of(public, name) {
		if f.broker.Close(id) {
			closed++
		}
	}
	return closed, err
}

// admit lets users in from now on: the denials are known, as far as they can be.
// A listener with TLS has a gate of its own.
func (f *fleet) admit() error {
	f.storing.Lock()
	f.admitting = true
	f.storing.Unlock()
	return f.storeAccounts(append(f.directory.Accounts(), f.ownAccounts()...))
}

// admits reports whether users are let in.
func (f *fleet) admits() bool {
	f.storing.Lock()
	defer f.storing.Unlock()
	return f.admitting
}

// revokes reports whether the engine has the revocations of an account as they are.
func (f *fleet) revokes(account string) bool {
	f.storing.Lock()
	defer f.storing.Unlock()
	known, ok := f.revoked[account]
	return ok && maps.EqualFunc(known, f.directory.Revocations(account), time.Time.Equal)
}

func (f *fleet) storeAccounts(accounts []identity.Account) error {
	f.storing.Lock()
	defer f.storing.Unlock()
	for _, a := range accounts {
		revoked := f.directory.Revocations(a.Name)
		token, err := f.accountToken(a, revoked)
		if err != nil {
			return err
		}
		delete(f.revoked, a.Name)
		if err := f.broker.StoreAccount(a.Public, token); err != nil {
			return err
		}
		f.revoked[a.Name] = revoked
	}
	return nil
}

// connections lists this node's connections of a user, or of a whole account.
func (f *fleet) connections(public, name string) (all []broker.Connection, err error) {
	if name == "" {
		all, err = f.broker.Connections(public)
	} else {
		account, _ := f.accountName(public)
		u, _ := f.directory.User(account, name)
		all, err = f.broker.ConnectionsOf(public, name, u.Publics())
	}
	for _, s := range f.resting.of("") {
		if a, ok := f.account(s.Principal.Account); ok && (public == "" || a.Public == public) && (name == "" || s.Principal.Name == name) {
			all = append(all, s.connection(a.Public))
		}
	}
	return all, err
}

// numConnections counts this node's connections of an account.
func (f *fleet) numConnections(public string) int {
	n := f.broker.LocalConnections(public)
	if name, ok := f.accountName(public); ok {
		n += f.resting.count(name)
	}
	return n
}

// follow runs the ledger's follower over nc until ctx is done.
func (f *fleet) follow(ctx context.Context, nc *nats.Conn, replicas int) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("opening the ledger: %w", err)
	}
	var l *ledger.Ledger
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		// A request that is sent before there is a leader may never be answered.
		try, cancel := context.WithTimeout(ctx, 200*time.Millisecond+2*wait)
		l, err = ledger.Open(try, js, ledger.Options{Stream: ledgerStream, Prefix: ledgerPrefix, Replicas: replicas})
		cancel()
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
	f.mu.Lock()
	f.ledger = l
	f.mu.Unlock()
	return f.follower.Run(ctx, l)
}

// writer is the ledger, nil while it cannot be written.
func (f *fleet) writer() *ledger.Ledger {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ledger
}

// errSame says that a change has nothing to do.
var errSame = errors.New("nothing to change")

// change appends the record that build makes to subject. build sees the
// directory as it is, and is called again when somebody was faster. The event's
// number is returned when this node has acted on it; 0 if build said errSame.
func (f *fleet) change(ctx context.Context, subject string, build func() (any, error)) (uint64, error) {
	l := f.writer()
	if l == nil {
		return 0, admin.Errorf(admin.Unavailable, "fleetbus status", "the ledger cannot be written: the fleet has no quorum")
	}
	for {
		version, before := f.directory.Version(subject), f.directory.Record(subject)
		record, err := build()
		if errors.Is(err, errSame) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		record = f.stamped(subject, record)
		var data []byte
		if record != nil {
			if data, err = json.Marshal(record); err != nil {
				return 0, fmt.Errorf("encoding %q: %w", subject, err)
			}
		}
		seq, err := l.Append(ctx, subject, version, data)
		if err == nil || errors.Is(err, ledger.ErrUnknown) {
			f.audit.Changed(ctx, subject, before, data)
		}
		if err == nil {
			f.wrote(seq, subject)
			return seq, f.follower.Wait(ctx, seq)
		}
		if !errors.Is(err, ledger.ErrConflict) {
			return 0, fmt.Errorf("writing %q to the ledger: %w", subject, err)
		}
		if err := f.passed(ctx, subject, version); err != nil {
			return 0, err
		}
	}
}

// wrote remembers of an event that this node wrote what it is about.
func (f *fleet) wrote(seq uint64, subject string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written[seq] = subject
	for old := range f.written {
		if old+closedKept < seq {
			delete(f.written, old)
		}
	}
}

// passed returns when this node knows a version of subject other than the one
// that lost.
func (f *fleet) passed(ctx context.Context, subject string, version uint64) error {
	for {
		seq := f.directory.Seq()
		if f.directory.Version(subject) != version {
			return nil
		}
		if err := f.follower.Wait(ctx, seq+1); err != nil {
			return fmt.Errorf("learning the newest version of %q: %w", subject, err)
		}
	}
}

// syncRequest and syncReply travel on syncSubject.
type syncRequest struct {
	Seq uint64 `json:"seq"`
}

type syncReply struct {
	Node   string `json:"node"`
	Closed int    `json:"closed"`
}

// answerSync tells that this node has acted on an event.
func (f *fleet) answerSync(ctx context.Context, msg *nats.Msg) error {
	var req syncRequest
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if err := f.follower.Wait(ctx, req.Seq); err != nil {
		return err
	}
	f.mu.Lock()
	reply := syncReply{Node: f.node, Closed: f.closed[req.Seq]}
	f.mu.Unlock()
	return ask.Answer(msg, reply)
}

// spread returns when event seq, which this node wrote, has acted on every node that
// has a route, and in every other region if it concerns them, or after syncTimeout.
func (f *fleet) spread(ctx context.Context, nc *nats.Conn, seq uint64, began time.Time) (admin.Spread, error) {
	f.mu.Lock()
	subject := f.written[seq]
	f.mu.Unlock()
	if subject == "" || identity.Regional(subject) || len(f.directory.Regions()) == 0 {
		return f.spreadHere(ctx, nc, seq, began)
	}
	across := make(chan admin.Spread, 1)
	go func() { across <- f.across(ctx, subject) }()
	s, err := f.spreadHere(ctx, nc, seq, began)
	there := <-across
	slices.SortFunc(there.Nodes, func(a, b admin.Applied) int { return strings.Compare(a.Node, b.Node) })
	s.Nodes, s.Missing = append(s.Nodes, there.Nodes...), append(s.Missing, there.Missing...)
	s.Took = time.Since(began)
	return s, err
}

// spreadHere is spread for the nodes of this region.
func (f *fleet) spreadHere(ctx context.Context, nc *nats.Conn, seq uint64, began time.Time) (admin.Spread, error) {
	s := admin.Spread{Changed: seq > 0, Nodes: []admin.Applied{}, Missing: []string{}}
	if seq == 0 {
		seq = f.directory.Seq()
	}
	// A node that has just been linked may not hear the first question.
	expect, deadline := f.up(), began.Add(syncTimeout)
	var err error
	for wait := syncAgain; err == nil && len(expect) > 0 && time.Now().Before(deadline); wait *= 2 {
		_, err = ask.All(ctx, nc, syncSubject, syncRequest{seq}, wait, func(r syncReply) bool {
			if expect[r.Node] {
				delete(expect, r.Node)
				s.Nodes = append(s.Nodes, admin.Applied{Node: r.Node, Closed: r.Closed})
			}
			return len(expect) == 0
		})
		if ctx.Err() != nil {
			break
		}
	}
	s.Took = time.Since(began)
	for _, n := range f.directory.Nodes() {
		if !slices.ContainsFunc(s.Nodes, func(a admin.Applied) bool { return a.Node == n.Name }) {
			s.Missing = append(s.Missing, n.Name)
		}
	}
	slices.SortFunc(s.Nodes, func(a, b admin.Applied) int { return strings.Compare(a.Node, b.Node) })
	return s, err
}

// up names the nodes that this one has a route to, and itself.
func (f *fleet) up() map[string]bool {
	up := map[string]bool{f.node: true}
	routes := f.broker.Routes()
	for _, n := range f.directory.Nodes() {
		if slices.Contains(routes, n.Server()) {
			up[n.Name] = true
		}
	}
	return up
}

// member says why the node with that engine name may not take part, or nil. One
// that is not known yet may: it joined a moment ago.
func (f *fleet) member(server string) error {
	name, _, _ := strings.Cut(server, ".")
	n, ok := f.directory.Node(name)
	switch {
	case !ok:
		return nil
	case n.Removed:
		return fmt.Errorf("node %q was removed from the fleet", name)
	case n.Server() != server:
		return fmt.Errorf("node %q was replaced by another of its name", name)
	}
	return nil
}
