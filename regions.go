package fleetbus

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/region"
	"github.com/fleetbus/fleetbus/internal/source"
)

// gatewayListenerName is the listener that other regions are linked by.
const gatewayListenerName = "gateway"

// What nodes of one region ask another, besides what package region asks.
const (
	takeAcross   = "take"   // act on changes, and say where they have acted
	adminAcross  = "admin"  // do what the home region alone does
	statusAcross = "status" // tell of yourself
)

// regions is this node's part in a fleet that may have several.
type regions struct {
	exchange *region.Exchange
	conn     *nats.Conn // in the account of the regions
	relays   *region.Relays
}

// regionName is the name of this node's region, which is its cluster's.
func (s *Server) regionName() string { return s.home.Node.Cluster }

// gateway is the listener for other regions, nil if there is none.
func (o *Options) gateway() *Listener {
	i := slices.IndexFunc(o.Listeners, func(l Listener) bool { return l.Protocol == Gateway() })
	if i < 0 {
		return nil
	}
	return &o.Listeners[i]
}

// gatewayOptions link the engine's cluster to those of other regions.
func (s *Server) gatewayOptions(o *broker.Options) {
	l := s.opts.gateway()
	if l == nil {
		return
	}
	g := &broker.Gateway{
		Endpoint: broker.Endpoint{Addr: l.Addr, Advertise: reachable(l.Advertise, l.Addr, s.opts.Advertise), TLS: s.certs.ForGateways()},
		Remotes:  map[string][]string{},
	}
	for _, r := range s.otherRegions() {
		g.Remotes[r.Name] = r.Addrs
	}
	o.Gateway = g
}

// mayLink says why the region of that name may not be linked to this one, or nil.
func (s *Server) mayLink(name string) error {
	switch r, ok := s.fleet.directory.Region(name); {
	case !ok:
		return fmt.Errorf("region %q is not known here", name)
	case r.Removed:
		return fmt.Errorf("region %q was removed from the fleet", name)
	}
	return nil
}

func (s *Server) otherRegions() []identity.Region {
	return slices.DeleteFunc(s.fleet.directory.Regions(), func(r identity.Region) bool { return r.Name == s.regionName() })
}

// Regions tells a Protocol of the region that its node is in, so that what it keeps for
// itself is kept apart from what the others keep: here is the name, empty if the server
// is of no mesh, first that it is the one which the fleet began with, and others the
// names of the others, which come and go.
func (s *Session) Regions() (here string, first bool, others []string) {
	if s.server == nil || s.server.opts.Mode != Mesh || s.server.site != nil {
		return "", true, nil
	}
	for _, r := range s.server.otherRegions() {
		others = append(others, r.Name)
	}
	return s.server.regionName(), s.server.fleet.authority.Region() == "", others
}

// HeardElsewhere reports whether somebody in another region hears a subject of the
// session's account, so that a Protocol asks only who may answer.
func (s *Session) HeardElsewhere(subject string) bool {
	if s.server == nil || s.server.opts.gateway() == nil {
		return false
	}
	a, ok := s.server.fleet.account(s.Principal.Account)
	return ok && s.server.broker.HeardAcross(a.Public, subject)
}

// gatewayAddrs are where other regions are linked to the nodes of this one.
func (s *Server) gatewayAddrs() []string {
	return s.nodeAddrs(func(n identity.Node) string { return n.GatewayAddr })
}

// keepRegions keeps this region and the others in agreement, until ctx is done.
func (s *Server) keepRegions(ctx context.Context) {
	err := s.regions.exchange.Keep(ctx, s.regions.conn)
	if err != nil && ctx.Err() == nil {
		s.fail(err)
	}
}

// joinRegions connects the node to the account of the regions, and answers there.
func (s *Server) joinRegions(ctx context.Context) (*Session, error) {
	session, err := s.open(s.nodePrincipal(identity.RegionsName), func(o *nats.Options) error {
		o.AllowReconnect, o.MaxReconnect, o.ReconnectWait = true, -1, 50*time.Millisecond
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.regions.conn = session.Conn
	s.regions.exchange = region.New(region.Options{
		Name: s.regionName(), Directory: s.fleet.directory, Leads: s.broker.IsLeader, Addrs: s.gatewayAddrs, Boxes: s.fleet.keys.Boxes,
		Take: s.takeChanges, Learn: s.learnRegions, Logger: s.log,
	})
	busy := make(chan struct{}, requestsAtOnce)
	serve := func(what string, h handler) error {
		_, err := session.QueueSubscribe(region.Subject(s.regionName(), what), "region", func(msg *nats.Msg) {
			select {
			case busy <- struct{}{}:
			case <-ctx.Done():
				return
			}
			s.group.Go(func() {
				defer func() { <-busy }()
				ctx, cancel := context.WithTimeout(ctx, requestTimeout)
				defer cancel()
				if err := s.answer(h)(ctx, msg); err != nil && ctx.Err() == nil {
					s.log.Warn("a request of another region failed", "subject", msg.Subject, "error", err)
				}
			})
		})
		return err
	}
	err = errors.Join(
		serve(takeAcross, on(s.takeAcross)),
		serve(adminAcross, s.adminAcross),
		serve(statusAcross, on(s.statusAcross)),
		session.Flush(),
	)
	if err != nil {
		session.Close()
		return nil, fmt.Errorf("answering other regions: %w", err)
	}
	return session, nil
}

// takeChanges makes what another region has hold here.
func (s *Server) takeChanges(ctx context.Context, from string, changes []identity.Change) error {
	// A user's new credentials are good by the key that signed them.
	order := func(c identity.Change) int {
		return map[bool]int{true: 0, false: 1}[strings.HasPrefix(c.Subject, identity.KeyNoun+".")]
	}
	changes = slices.SortedStableFunc(slices.Values(changes), func(a, b identity.Change) int { return order(a) - order(b) })
	for _, c := range changes {
		if _, err := s.takeChange(ctx, from, c); err != nil {
			return err
		}
	}
	return nil
}

// takeChange makes one change hold here, and returns the event it became; 0 if it is
// so already.
func (s *Server) takeChange(ctx context.Context, from string, c identity.Change) (uint64, error) {
	if identity.Regional(c.Subject) {
		return 0, nil
	}
	d := s.fleet.directory
	fromHome := d.HomeRegion() == from
	if name, ok := strings.CutPrefix(c.Subject, "account."); ok && fromHome && len(c.Data) == 0 {
		if a, ok := d.Account(name); ok {
			if err := s.clearAccount(ctx, a); err != nil {
				return 0, err
			}
		}
	}
	return s.fleet.change(ctx, c.Subject, func() (any, error) {
		mine := d.Record(c.Subject)
		merged, err := identity.Merge(c.Subject, mine, c.Data, fromHome)
		if err != nil {
			s.log.Warn("what another region knows was left alone", "region", from, "subject", c.Subject, "error", err)
			return nil, errSame
		}
		if bytes.Equal(merged, mine) {
			return nil, errSame
		}
		if len(merged) == 0 {
			return nil, nil
		}
		return merged, nil
	})
}

// learnRegions takes note of what another region knows of regions.
func (s *Server) learnRegions(ctx context.Context, from string, told []identity.Region) error {
	for _, r := range region.Learned(s.fleet.directory, s.regionName(), from, told) {
		if err := s.putRegion(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) putRegion(ctx context.Context, r identity.Region) error {
	_, err := s.fleet.change(ctx, "region."+r.Name, func() (any, error) {
		if known, ok := s.fleet.directory.Region(r.Name); ok && sameRecord(known, r) {
			return nil, errSame
		}
		return r, nil
	})
	return err
}

// stamped is a record as it is written in a fleet of regions: of a user, so that the
// others can merge it.
func (f *fleet) stamped(subject string, record any) any {
	if identity.Regional(subject) || len(f.directory.Regions()) == 0 {
		return record
	}
	noun, name, _ := strings.Cut(subject, ".")
	if noun != "user" {
		return record
	}
	account, user, _ := strings.Cut(name, ".")
	before, ok := f.directory.UserRecord(account, user)
	switch now := record.(type) {
	case identity.User:
		return now.Stamped(before, f.region)
	case nil:
		if ok && !before.Removed {
			return before.Gone().Stamped(before, f.region)
		}
	}
	return record
}

// across is one request to a region, and where a change has acted there.
type acrossRequest struct {
	From    string            `json:"from"`
	Changes []identity.Change `json:"changes"`
}

// takeAcross acts on changes of another region, for somebody who waits for them.
func (s *Server) takeAcross(ctx context.Context, r acrossRequest) (any, error) {
	began := time.Now()
	last := uint64(0)
	for _, c := range r.Changes {
		seq, err := s.takeChange(ctx, r.From, c)
		if err != nil {
			return nil, err
		}
		last = max(last, seq)
	}
	return s.fleet.spreadHere(ctx, s.conn, last, began)
}

// spreadAcross has the newest record of a subject act in all other regions, and says
// on which nodes it has.
func (s *Server) spreadAcross(ctx context.Context, subject string) admin.Spread {
	all := admin.Spread{Nodes: []admin.Applied{}, Missing: []string{}}
	linked := s.broker.Gateways()
	request := acrossRequest{From: s.regionName(), Changes: []identity.Change{{
		Subject: subject, Version: s.fleet.directory.Version(subject), Data: s.fleet.directory.Record(subject),
	}}}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, r := range s.otherRegions() {
		asked.Go(func() {
			var there admin.Spread
			err := errNotLinked
			if slices.Contains(linked, r.Name) {
				there, err = askRegion[admin.Spread](ctx, s, r.Name, takeAcross, request, syncTimeout)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				all.Missing = append(all.Missing, "region "+r.Name)
				s.log.Warn("a change has not acted in a region, which learns of it when it is linked", "region", r.Name, "subject", subject, "error", err)
				return
			}
			for _, n := range there.Nodes {
				all.Nodes = append(all.Nodes, admin.Applied{Node: r.Name + "/" + n.Node, Closed: n.Closed})
			}
			for _, name := range there.Missing {
				all.Missing = append(all.Missing, r.Name+"/"+name)
			}
		})
	}
	asked.Wait()
	return all
}

var errNotLinked = errors.New("it is not linked")

// askRegion asks any node of another region.
func askRegion[Out any](ctx context.Context, s *Server, name, what string, in any, d time.Duration) (out Out, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("encoding a request for region %q: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	msg, err := s.regions.conn.RequestWithContext(ctx, region.Subject(name, what), body)
	if err != nil {
		return out, fmt.Errorf("asking region %q: %w", name, err)
	}
	var reply admin.Reply
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return out, fmt.Errorf("reading the answer of region %q: %w", name, err)
	}
	if reply.Error != nil {
		return out, reply.Error
	}
	if err := json.Unmarshal(reply.Data, &out); err != nil {
		return out, fmt.Errorf("reading the answer of region %q: %w", name, err)
	}
	return out, nil
}

// homeRequest is one that the home region alone answers.
type homeRequest struct {
	Name string          `json:"name"`
	Body json.RawMessage `json:"body"`
	// By is who made it, in the other region.
	By string `json:"by,omitempty"`
}

// homeHandlers are the requests that change what is not a user: they are answered in
// one region, so that no two change the same thing at once.
func (s *Server) homeHandlers() map[string]handler {
	return map[string]handler{
		"account.add": on(s.addAccount),
		"account.rm":  on(s.removeAccount),
		"export.add":  on(s.addExport),
		"export.rm":   on(s.removeExport),
		"import.add":  on(s.addImport),
		"import.rm":   on(s.removeImport),
		"role.add":    on(s.addRole),
		"role.rm":     on(s.removeRole),
		"key.rotate":  on(s.rotateKey),
	}
}

// isHome reports whether this region is the home one, or the only one.
func (s *Server) isHome() bool {
	home := s.fleet.directory.HomeRegion()
	return home == "" || home == s.regionName()
}

// atHome has a request answered in the home region.
func (s *Server) atHome(name string, h handler) handler {
	return func(ctx context.Context, msg *nats.Msg) (any, error) {
		if s.isHome() || name == "key.rotate" && s.ownKey(msg.Data) {
			return h(ctx, msg)
		}
		home := s.fleet.directory.HomeRegion()
		out, err := askRegion[json.RawMessage](ctx, s, home, adminAcross, homeRequest{name, msg.Data, s.audit.Requester(msg)}, requestTimeout)
		var refused *admin.Error
		if err != nil && !errors.As(err, &refused) {
			s.log.Warn("the home region does not answer", "region", home, "error", err)
			return nil, admin.Errorf(admin.Unavailable, "try again when it is linked: fleetbus gateway ls; if it is lost for good: fleetbus gateway rm "+home,
				"region %s is away, where accounts, roles, keys and what crosses between accounts are changed", home)
		}
		return out, err
	}
}

func (s *Server) adminAcross(ctx context.Context, msg *nats.Msg) (any, error) {
	var r homeRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "the request cannot be read: %v", err)
	}
	h, ok := s.homeHandlers()[r.Name]
	switch {
	case !ok:
		return nil, admin.Errorf(admin.Invalid, "", "%q is nothing that a home region is asked for", r.Name)
	case !s.isHome():
		return nil, admin.Errorf(admin.Conflict, "try again", "region %s is not the home region", s.regionName())
	}
	passed := &nats.Msg{Subject: admin.Prefix + r.Name, Data: r.Body, Header: nats.Header{audit.ByHeader: {r.By}}}
	return s.audit.Auditing(h)(ctx, passed)
}

// clearAccount removes what this region has of an account for itself.
func (s *Server) clearAccount(ctx context.Context, a identity.Account) error {
	err := s.inAccount(a.Name, func(js jetstream.JetStream) error {
		names := js.StreamNames(ctx)
		for name := range names.Name() {
			if err := js.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				return err
			}
		}
		return names.Err()
	})
	if err != nil {
		return err
	}
	if err := s.removeAdapters(ctx, a.Name); err != nil {
		return err
	}
	for _, src := range s.fleet.sources() {
		if src.Account != a.Name {
			continue
		}
		if _, err := s.fleet.change(ctx, source.Subject(src.Account, src.Name), func() (any, error) { return nil, nil }); err != nil {
			return err
		}
	}
	return nil
}

// newRelays are what other regions ask this one's streams by.
func (s *Server) newRelays() *region.Relays {
	return region.NewRelays(region.RelayOptions{
		Region: s.regionName(), Logger: s.log,
		Many: func() bool { return len(s.otherRegions()) > 0 },
		Streams: func() (accounts []string) {
			for _, st := range s.broker.Streams() {
				if a, ok := s.fleet.directory.AccountByPublic(st.Account); ok {
					accounts = append(accounts, a.Name)
				}
			}
			return accounts
		},
		Clients: func() (accounts []string) {
			clients, err := s.broker.Connections("")
			if err != nil {
				s.log.Warn("clients cannot be listed", "error", err)
			}
			for _, c := range clients {
				if name, ok := s.fleet.accountName(c.Account); ok {
					accounts = append(accounts, name)
				}
			}
			return accounts
		},
		Known: func(account string) bool { _, ok := s.fleet.directory.Account(account); return ok },
		Alone: func(account string) bool {
			a, ok := s.fleet.directory.Account(account)
			return !ok || s.broker.LocalConnections(a.Public) <= 1
		},
		Heard: func(account, subject string) bool {
			a, ok := s.fleet.directory.Account(account)
			return ok && s.broker.HeardAcross(a.Public, subject)
		},
		Open: func(p identity.Principal) (*nats.Conn, func(), error) {
			session, err := s.open(p)
			if err != nil {
				return nil, nil, err
			}
			return session.Conn, session.Close, nil
		},
	})
}

// statusAcross tells another region of this one.
func (s *Server) statusAcross(ctx context.Context, _ struct{}) (any, error) {
	nodes, err := s.askNodes(ctx)
	if err != nil {
		return nil, err
	}
	return admin.Region{Servers: s.clientAddrs(), Nodes: nodes}, nil
}

// askNodes has the nodes of this region tell of themselves.
func (s *Server) askNodes(ctx context.Context) ([]admin.NodeInfo, error) {
	expect := s.fleet.up()
	nodes, err := ask.All(ctx, s.conn, nodeInfoSubject, struct{}{}, infoTimeout, func(n admin.NodeInfo) bool {
		delete(expect, n.Name)
		return len(expect) == 0
	})
	slices.SortFunc(nodes, func(a, b admin.NodeInfo) int { return cmp.Compare(a.Name, b.Name) })
	return nodes, err
}

// regionList are the regions of the fleet, as the nodes of this one, who answered,
// know them.
func (s *Server) regionList(ctx context.Context, nodes []admin.NodeInfo) []admin.Region {
	all := []admin.Region{}
	home := s.fleet.directory.HomeRegion()
	for _, r := range s.fleet.directory.Regions() {
		one := admin.Region{RegionLink: admin.RegionLink{Name: r.Name, State: admin.RegionAway}, Home: r.Name == home, Addrs: r.Addrs, Joined: r.Joined, Machine: r.Machine}
		if r.Name == s.regionName() {
			one.State, one.Current, one.Servers, one.Addrs, one.Nodes = admin.RegionHere, true, s.clientAddrs(), s.gatewayAddrs(), nodes
		}
		for _, n := range nodes {
			if i := slices.IndexFunc(n.Regions, func(l admin.RegionLink) bool { return l.Name == r.Name }); i >= 0 {
				one.RegionLink = n.Regions[i]
			}
		}
		all = append(all, one)
	}
	var asked sync.WaitGroup
	for i := range all {
		if one := &all[i]; one.State == admin.RegionLinked {
			asked.Go(func() {
				if there, err := askRegion[admin.Region](ctx, s, one.Name, statusAcross, struct{}{}, infoTimeout+time.Second); err == nil {
					one.Servers, one.Nodes = there.Servers, there.Nodes
				}
			})
		}
	}
	asked.Wait()
	return all
}

// regionLinks are the other regions, if it is this node that asks them.
func (s *Server) regionLinks() []admin.RegionLink {
	if s.regions.exchange == nil {
		return nil
	}
	return s.regions.exchange.Links()
}

func (s *Server) listRegions(ctx context.Context, _ struct{}) (any, error) {
	nodes, err := s.askNodes(ctx)
	if err != nil {
		return nil, err
	}
	return s.regionList(ctx, nodes), nil
}

// regionFindings are the regions that are not linked.
func (s *Server) regionFindings(all []admin.Region) (findings []doctor.Finding) {
	for _, r := range all {
		if r.State == admin.RegionAway {
			findings = append(findings, doctor.Finding{
				Code: "REGION-AWAY", Severity: doctor.Warning, Subject: r.Name, Text: fmt.Sprintf("region %s is not linked: neither knows of the newest denials of the other", r.Name),
				Fix: fmt.Sprintf("look at the network between, and at fleetbus status there; if it is lost for good: fleetbus gateway rm %s", r.Name),
			})
		}
	}
	if len(all) > 0 {
		for _, n := range s.fleet.directory.Nodes() {
			if n.GatewayAddr == "" {
				findings = append(findings, doctor.Finding{
					Code: "GATEWAY-MISSING", Severity: doctor.Problem, Subject: n.Name, Text: fmt.Sprintf("node %s has no gateway: its clients hear nothing of other regions", n.Name),
					Fix: "serve it with --listeners-gateway-addr :7222, or in its file: listeners: {gateway: {}}",
				})
			}
		}
	}
	return findings
}

// removeRegion ends the links with a region.
func (s *Server) removeRegion(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	known, ok := s.fleet.directory.Region(r.Name)
	switch {
	case !ok || known.Removed:
		return nil, admin.Errorf(admin.NotFound, "fleetbus gateway ls", "there is no region %q", r.Name)
	case r.Name == s.regionName():
		return nil, admin.Errorf(admin.Conflict, "run it in another region", "region %q is this one", r.Name)
	}
	known.Removed, known.RemovedAt = true, began
	// It learns of it while it can still be told, and goes on by itself.
	if err := s.regions.exchange.Tell(ctx, s.regions.conn, r.Name, []identity.Region{known}); err != nil {
		s.log.Warn("a region that is removed does not know it", "region", r.Name, "error", err)
	}
	seq, err := s.fleet.change(ctx, "region."+r.Name, func() (any, error) { return known, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// mayJoinRegion says why a token for a region would be of no use.
func (s *Server) mayJoinRegion(name string) error {
	switch {
	case s.site != nil:
		return admin.Errorf(admin.Invalid, "ask the hub", "this is a site, which has no regions")
	case name == "":
		return admin.Errorf(admin.Invalid, "fleetbus gateway token REGION", "a token for a region needs the region's name")
	case len(s.gatewayAddrs()) == 0:
		return admin.Errorf(admin.Unavailable, "serve with --listeners-gateway-addr :7222 on each node, or in its file: listeners: {gateway: {}}", "no node has a gateway")
	case !s.isHome():
		return admin.Errorf(admin.Conflict, "ask there", "region %s is the one that others join by", s.fleet.directory.HomeRegion())
	}
	if err := identity.CheckRegionName(name); err != nil {
		return admin.Errorf(admin.Invalid, "choose another name", "%v", err)
	}
	return s.regionTaken(name, "")
}

// regionTaken says that there is a region of that name with another key.
func (s *Server) regionTaken(name, key string) error {
	if name == s.regionName() {
		return admin.Errorf(admin.Conflict, "choose another name for the region", "this region is called %q", name)
	}
	r, ok := s.fleet.directory.Region(name)
	if !ok || r.Removed || key != "" && r.Key == key {
		return nil
	}
	return admin.Errorf(admin.Conflict, "choose another name, or if it is lost for good: fleetbus gateway rm "+name,
		"region %q exists: it joined at %s on %s", name, r.Joined.UTC().Format(time.RFC3339), r.Machine)
}

// enrollRegion makes the holder of a token a region.
func (s *Server) enrollRegion(ctx context.Context, tokenID string, r enroll.RegionRequest) (any, error) {
	kinds := []identity.Kind{identity.KindRegion}
	token, ok := s.fleet.directory.Token(tokenID)
	if !ok {
		return nil, admin.Errorf(admin.Denied, "fleetbus gateway token", "the token is not known")
	}
	if token.Kind != identity.KindRegion {
		return nil, refuseToken(identity.ErrTokenKind, identity.KindRegion)
	}
	if why := refuseVersion(r.Version); why != "" {
		return nil, admin.Errorf(admin.Invalid, "upgrade the fleet's nodes first", "%s", why)
	}
	who := token.Name + " " + r.Seal
	again := token.Used && (token.UsedBy == who || r.Seal == "" && strings.HasPrefix(token.UsedBy, who))
	if !again {
		if err := refuseToken(checkToken(token, kinds, time.Now()), kinds[0]); err != nil {
			return nil, err
		}
	}
	if err := s.regionTaken(token.Name, r.Seal); err != nil && !again {
		return nil, err
	}
	reply := enroll.NodeReply{Fleet: s.fleet.authority.Fleet(), Cluster: token.Name, Founder: true, Addrs: s.gatewayAddrs()}
	if r.Seal == "" {
		return reply, nil
	}
	if err := identity.CheckName(r.Node.Name); err != nil {
		return nil, admin.Errorf(admin.Invalid, "choose another name: --name", "%v", err)
	}
	authority, err := s.fleet.authority.InRegion(token.Name)
	if err != nil {
		return nil, err
	}
	if reply.Authority, err = authority.SealTo(r.Seal); err != nil {
		return nil, admin.Errorf(admin.Invalid, "", "the joiner's key cannot be sealed to")
	}
	if reply.Sender, err = authority.SealPublic(); err != nil {
		return nil, err
	}
	if _, err := s.spend(ctx, tokenID, kinds, who); err != nil {
		return nil, err
	}
	if err := s.ensureRegion(ctx); err != nil {
		return nil, err
	}
	joined := identity.Region{Name: token.Name, Key: r.Seal, Machine: r.Machine, Addrs: []string{r.Node.GatewayAddr}, Joined: time.Now()}
	began := joined.Joined
	seq, err := s.fleet.change(ctx, "region."+token.Name, func() (any, error) {
		if known, ok := s.fleet.directory.Region(token.Name); ok && !known.Removed && known.Key == r.Seal {
			return nil, errSame
		}
		return joined, s.regionTaken(token.Name, r.Seal)
	})
	if err != nil {
		return nil, err
	}
	// All nodes let it in when it is told that it may come.
	if _, err := s.fleet.spread(ctx, s.conn, seq, began); err != nil {
		return nil, err
	}
	r.Node.Joined, r.Node.Incarnation = joined.Joined, 1
	reply.Node = r.Node
	reply.Snapshot, err = s.fleet.directory.RegionSnapshot(r.Node)
	return reply, err
}

// ensureRegion makes this fleet's own cluster a region, if it has none yet.
func (s *Server) ensureRegion(ctx context.Context) error {
	own := s.regionName()
	if r, ok := s.fleet.directory.Region(own); ok && !r.Removed {
		return nil
	}
	nodes := s.fleet.directory.Nodes()
	joined := make([]time.Time, len(nodes))
	for i, n := range nodes {
		joined[i] = n.Joined
	}
	return s.putRegion(ctx, identity.Region{Name: own, Addrs: s.gatewayAddrs(), Joined: slices.MinFunc(joined, time.Time.Compare)})
}
